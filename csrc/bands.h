// Rows of edge_weight that are bands of a table (splines): a few rows of it, from first_row on,
// times the edge's numbers in radial. Those of a batch of edges are made at a time, a block of
// columns after the other, so that a block of the table is read from the nearest cache.
#pragma once

#include "passes.h"
#include "radial_conv.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

constexpr int kBatch = 64;       // edges, at most, whose rows are made at a time
constexpr int kBandVectors = 4;  // of a block of columns

// weight, a block of columns behind the other: those of one block stay in the nearest cache.
template <class T>
struct BandTable {
  static constexpr int columns = kBandVectors * kLanes<T>;
  const int64_t rows, blocks;
  const Buffer<T> table;

  BandTable(const RadialTensors<T>& t, int64_t numel)
      : rows(t.weight_rows),
        blocks(std::max<int64_t>(1, (numel + columns - 1) / columns)),
        table(allocate<T>(blocks * rows * columns)) {
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t count = std::min<int64_t>(columns, numel - b * columns);
      for (int64_t r = 0; r < rows; ++r) {
        T* to = table.get() + (b * rows + r) * columns;
        std::fill(std::copy_n(t.weight + r * numel + b * columns, count, to), to + columns, T(0));
      }
    }
  }

  const T* block(int64_t b) const { return table.get() + b * rows * columns; }
};

// One thread's rows of the batch of edges at hand.
template <class T>
struct BandRows {
  static constexpr int columns = BandTable<T>::columns;
  static constexpr int line = 64 / sizeof(T);  // of a cache
  static constexpr bool stream = false;
  const RadialTensors<T>& t;
  const BandTable<T>& table;
  const int64_t
      stride;  // a cache line more than the columns: rows do not all fall on the same ones
  Buffer<T> rows, gradients;
  Buffer<T> radial;     // [edge][width], the batch's
  Buffer<Vec<T>> sums;  // [edge][width], not yet summed over lanes
  const int64_t* edges = nullptr;
  int64_t first[kBatch];  // where in a block of columns an edge's band begins
  int64_t begin = 0, limit = 0;

  BandRows(const RadialTensors<T>& t, const BandTable<T>& table)
      : t(t),
        table(table),
        stride(table.blocks * columns + line),
        rows(allocate<T>(kBatch * stride)),
        gradients(t.dradial ? allocate<T>(kBatch * stride) : nullptr),
        radial(allocate<T>(kBatch * t.width)),
        sums(t.dradial ? allocate<Vec<T>>(kBatch * t.width) : nullptr) {
    for (int64_t e = 0; gradients && e < kBatch; ++e)  // columns behind the last path's
      std::fill_n(gradients.get() + (e + 1) * stride - columns - line, columns, T(0));
  }

  int64_t end(int64_t) const { return limit; }
  const T* w(int64_t k, int64_t) const { return rows.get() + (k - begin) * stride; }
  const T* hw(int64_t, int64_t) const { return nullptr; }
  T* dw(int64_t k, int64_t) const {
    return gradients ? gradients.get() + (k - begin) * stride : nullptr;
  }

  void prepare(const Part& part, int64_t n, int64_t k) {
    if (k < limit) return;
    begin = limit = k;
    for (bool fits = true; fits && n < part.last; ++n) {
      const int64_t left = part.ptr[n + 1] - limit, room = begin + kBatch - limit;
      fits = left <= room;
      limit += fits ? left : room / kLanes<T> * kLanes<T>;  // of a node, whole groups
    }
    edges = part.edge + k;
    for (int64_t e = 0; e < limit - begin; ++e) {
      first[e] = t.first_row[edges[e]] * columns;
      std::copy_n(t.radial + edges[e] * t.width, t.width, radial.get() + e * t.width);
    }
    with_width([&](auto H) { make<H>(); });
  }

  void finish(int64_t k, int count) {
    if (k + count == limit) with_width([&](auto H) { project<H>(); });
  }

 private:
  template <class F>
  void with_width(const F& f) const {
    t.width == 6 ? f(std::integral_constant<int, 6>{}) : f(std::integral_constant<int, 0>{});
  }

  // f(block of columns, edge of the batch, its band there, where it is in the edge's row)
  template <class F>
  FASTMLIP_INLINE void for_bands(const F& f) const {
    for (int64_t b = 0; b < table.blocks; ++b)
      for (int64_t e = 0; e < limit - begin; ++e)
        f(b, e, table.block(b) + first[e], e * stride + b * columns);
  }

  template <int H>
  [[gnu::noinline]] void make() const {
    for_bands([&](int64_t, int64_t e, const T* band, int64_t at) FASTMLIP_INLINE {
      const T* factors = radial.get() + e * (H ? H : t.width);
      Vec<T> sum[kBandVectors] = {};
      unroll<H>(int(t.width), [&](int i) FASTMLIP_INLINE {
        const Vec<T> factor = pin(factors[i] + Vec<T>{});
        unroll<kBandVectors>(kBandVectors, [&](int v) FASTMLIP_INLINE {
          sum[v] += factor * load(band + i * columns + v * kLanes<T>);
        });
      });
      unroll<kBandVectors>(kBandVectors, [&](int v) FASTMLIP_INLINE {
        store(rows.get() + at + v * kLanes<T>, sum[v]);
      });
    });
  }

  template <int H>
  [[gnu::noinline]] void project() const {
    const int width = H ? H : int(t.width);
    const int64_t count = (limit - begin) * width;
    for_bands([&](int64_t b, int64_t e, const T* band, int64_t at) FASTMLIP_INLINE {
      Vec<T> g[kBandVectors];
      unroll<kBandVectors>(kBandVectors, [&](int v) FASTMLIP_INLINE {
        g[v] = pin(load(gradients.get() + at + v * kLanes<T>));
      });
      unroll<H>(width, [&](int i) FASTMLIP_INLINE {
        Vec<T> sum = b ? sums[e * width + i] : Vec<T>{};
        unroll<kBandVectors>(kBandVectors, [&](int v) FASTMLIP_INLINE {
          sum += g[v] * load(band + i * columns + v * kLanes<T>);
        });
        sums[e * width + i] = sum;
      });
    });
    for (int64_t j = 0; j < count; j += kLanes<T>) {
      T totals[kLanes<T>];
      store(totals, sum_each<T>(sums.get() + j, 1));
      for (int64_t i = j; i < std::min<int64_t>(j + kLanes<T>, count); ++i)
        t.dradial[edges[i / width] * width + i % width] = totals[i - j];
    }
  }
};

}  // namespace
}  // namespace fastmlip::FASTMLIP_ISA
