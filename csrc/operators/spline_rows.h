// Rows of edge_weight that are values of a spline.
#pragma once

#include "operators/radial_conv.h"
#include "operators/spline_batch.h"
#include "tensor_product/passes.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

// The table, where it is not aligned to cache lines a copy that is: constants of a compiled model
// are not, and every load would take two lines. And, for gradients, the differences of its rows.
template <class T>
class SplineTable {
 public:
  const int64_t blocks, block_size;

  SplineTable(const RadialTensors<T>& t, int64_t numel)
      : blocks(spline_blocks(numel)), block_size(t.weight_rows * kSplineBlock), table_(t.weight) {
    if (!t.first_row) return;  // no spline, and no memory that others could use
    const int64_t size = blocks * block_size;
    if (reinterpret_cast<uintptr_t>(table_) % 64) copy_ = allocate<T>(size);
    if (t.dradial) differences_ = allocate<T>(size);
  }

  const T* rows() const { return copy_ ? copy_.get() : table_; }
  // [row]: the next row less this one
  const T* differences() const { return differences_.get(); }

  bool ready() const { return !copy_ && !differences_; }

  void fill(int64_t part, int64_t parts) {
    for (int64_t b = blocks * part / parts; b < blocks * (part + 1) / parts; ++b) {
      const T* from = table_ + b * block_size;
      if (copy_) std::copy_n(from, block_size, copy_.get() + b * block_size);
      if (!differences_) continue;
      T* to = differences_.get() + b * block_size;
      for (int64_t i = 0; i + kSplineBlock < block_size; ++i)
        to[i] = from[i + kSplineBlock] - from[i];
    }
  }

 private:
  const T* const table_;
  Buffer<T> copy_, differences_;
};

// One thread's rows of the batch of edges at hand.
template <class T>
struct SplineRows {
  static constexpr bool stream = false;
  static constexpr int64_t parts = 8;
  const RadialTensors<T>& t;
  const SplineTable<T>& table;
  SplineBatch<T> batch;
  Buffer<T> rows, gradients;
  const int64_t* edges = nullptr;
  int64_t begin = 0, limit = 0;

  SplineRows(const RadialTensors<T>& t, const SplineTable<T>& table)
      : t(t),
        table(table),
        batch(table.blocks, t.weight_rows, t.dradial),
        rows(allocate<T>(kBatch * batch.stride)),
        gradients(t.dradial ? allocate<T>(kBatch * batch.stride) : nullptr) {
    const int64_t end = kSplineBlock + batch.kLine;
    for (int64_t e = 0; gradients && e < kBatch; ++e)  // columns behind the last path's
      std::fill_n(gradients.get() + (e + 1) * batch.stride - end, kSplineBlock, T(0));
  }

  int64_t end(int64_t) const { return limit; }
  const T* w(int64_t k, int64_t) const { return rows.get() + (k - begin) * batch.stride; }
  const T* hw(int64_t, int64_t) const { return nullptr; }
  T* dw(int64_t k, int64_t) const {
    return gradients ? gradients.get() + (k - begin) * batch.stride : nullptr;
  }

  void prepare(const Part& part, int64_t n, int64_t k) {
    if (k >= begin && k < limit) return;
    begin = limit = k;
    for (bool fits = true; fits && n < part.last; ++n) {
      const int64_t left = part.ptr[n + 1] - limit, room = begin + kBatch - limit;
      fits = left <= room;
      limit += fits ? left : room / kLanes<T> * kLanes<T>;  // of a node, whole groups
    }
    edges = part.edge + k;
    batch.begin(edges, limit - begin, t.radial, t.first_row);
    batch.make(table.rows(), rows.get());
  }

  void finish(int64_t k, int count) {
    if (k + count == limit)
      batch.template project<true>(table.differences(), gradients.get(), edges, t.dradial);
  }
};

}  // namespace
}  // namespace fastmlip::FASTMLIP_ISA
