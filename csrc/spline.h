// Rows of edge_weight that are values of a spline: six rows of its coefficients, from first_row on,
// times the B_j of the edge's place; fastmlip/ops/_spline.py states the formulas. Those of a batch
// of edges are made at a time, a block of columns after the other, so that a block of the table is
// read from the nearest cache.
#pragma once

#include "passes.h"
#include "radial_conv.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

constexpr int kBatch = 64;  // edges, at most, whose rows are made at a time

// factor of the power of the place in B_j
constexpr double kPowers[kSplinePieces][kSplinePieces] = {
    {1 / 120., -5 / 120., 10 / 120., -10 / 120., 5 / 120., -1 / 120.},
    {26 / 120., -50 / 120., 20 / 120., 20 / 120., -20 / 120., 5 / 120.},
    {66 / 120., 0, -60 / 120., 0, 30 / 120., -10 / 120.},
    {26 / 120., 50 / 120., 20 / 120., -20 / 120., -20 / 120., 10 / 120.},
    {1 / 120., 5 / 120., 10 / 120., 10 / 120., 5 / 120., -5 / 120.},
    {0, 0, 0, 0, 0, 1 / 120.},
};

// The same of the pieces of one degree less. The derivative of the value is their sum, times the
// differences of coefficients that follow one another: factors above zero, so nothing cancels (sums
// of coefficients themselves, times the derivatives of B_j, would lose two digits of forces).
constexpr int kSlopePieces = kSplinePieces - 1;
constexpr double kSlopePowers[kSlopePieces][kSlopePieces] = {
    {1 / 24., -4 / 24., 6 / 24., -4 / 24., 1 / 24.},
    {11 / 24., -12 / 24., -6 / 24., 12 / 24., -4 / 24.},
    {11 / 24., 12 / 24., -6 / 24., -12 / 24., 6 / 24.},
    {1 / 24., 4 / 24., 6 / 24., 4 / 24., -4 / 24.},
    {0, 0, 0, 0, 1 / 24.},
};

// A piece at a vector of places.
template <class T, int N>
Vec<T> piece(const double (&powers)[N], Vec<T> place) {
  Vec<T> value{};
  for (int power = N - 1; power >= 0; --power) value = value * place + T(powers[power]);
  return value;
}

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
  // of columns that are made at a time
  static constexpr int vectors = std::min<int>(8, kSplineBlock / kLanes<T>);
  static constexpr int columns = vectors * kLanes<T>;
  static constexpr int line = 64 / sizeof(T);  // of a cache
  static constexpr bool stream = false;
  static constexpr int64_t parts = 8;
  static constexpr int kBasis = 8;
  const RadialTensors<T>& t;
  const SplineTable<T>& table;
  const int64_t
      stride;  // a cache line more than the columns: rows do not all fall on the same ones
  Buffer<T> rows, gradients;
  Buffer<T> place;      // of each edge of the batch
  Buffer<T> basis;      // [edge][kBasis]: its B_j, and room for a whole vector behind the last
  Buffer<Vec<T>> sums;  // [edge][piece of the slope], not yet summed over lanes
  const int64_t* edges = nullptr;
  int64_t first[kBatch];  // where in a block of columns an edge's rows begin
  int64_t begin = 0, limit = 0;

  SplineRows(const RadialTensors<T>& t, const SplineTable<T>& table)
      : t(t),
        table(table),
        stride(table.blocks * kSplineBlock + line),
        rows(allocate<T>(kBatch * stride)),
        gradients(t.dradial ? allocate<T>(kBatch * stride) : nullptr),
        place(zeros<T>(kBatch)),
        basis(zeros<T>(kBatch * kBasis + kLanes<T>)),
        sums(t.dradial ? allocate<Vec<T>>(kBatch * kSlopePieces) : nullptr) {
    for (int64_t e = 0; gradients && e < kBatch; ++e)  // columns behind the last path's
      std::fill_n(gradients.get() + (e + 1) * stride - kSplineBlock - line, kSplineBlock, T(0));
  }

  int64_t end(int64_t) const { return limit; }
  const T* w(int64_t k, int64_t) const { return rows.get() + (k - begin) * stride; }
  const T* hw(int64_t, int64_t) const { return nullptr; }
  T* dw(int64_t k, int64_t) const {
    return gradients ? gradients.get() + (k - begin) * stride : nullptr;
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
    for (int64_t e = 0; e < limit - begin; ++e) {
      first[e] = t.first_row[edges[e]] * kSplineBlock;
      place[e] = t.radial[edges[e]];
    }
    for (int j = 0; j < kSplinePieces; ++j)
      for (int64_t e = 0; e < limit - begin; e += kLanes<T>) {
        const Vec<T> pieces = piece<T>(kPowers[j], load(place.get() + e));
        for (int i = 0; i < kLanes<T>; ++i) basis[(e + i) * kBasis + j] = pieces[i];
      }
    make();
  }

  void finish(int64_t k, int count) {
    if (k + count == limit) project();
  }

 private:
  // f(edge of the batch, its rows of the table `from` in some columns, these columns of its row in
  // `to`, whether they are the first)
  template <class F>
  FASTMLIP_INLINE void for_columns(const T* from, T* to, const F& f) const {
    const int64_t all = table.blocks * kSplineBlock, count = limit - begin, row = stride;
    for (int64_t c = 0; c < all; c += columns) {
      const T* block = from + c / kSplineBlock * table.block_size + c % kSplineBlock;
      for (int64_t e = 0; e < count; ++e) f(e, block + first[e], to + e * row + c, c == 0);
    }
  }

  [[gnu::noinline]] void make() const {
    const T* numbers = basis.get();
    for_columns(table.rows(), rows.get(), [&](int64_t e, const T* six, T* w, bool) FASTMLIP_INLINE {
      Vec<T> sum[vectors] = {}, factors[kSplinePieces];
      splat<T, kSplinePieces>(numbers + e * kBasis, factors);
      unroll<kSplinePieces>(kSplinePieces, [&](int j) FASTMLIP_INLINE {
        const Vec<T> factor = pin(factors[j]);
        unroll<vectors>(vectors, [&](int v) FASTMLIP_INLINE {
          sum[v] += factor * load(six + j * kSplineBlock + v * kLanes<T>);
        });
      });
      unroll<vectors>(vectors, [&](int v) FASTMLIP_INLINE { store(w + v * kLanes<T>, sum[v]); });
    });
  }

  [[gnu::noinline]] void project() const {
    Vec<T>* totals = sums.get();
    for_columns(table.differences(), gradients.get(),
                [&](int64_t e, const T* five, T* dw, bool is_first) FASTMLIP_INLINE {
                  Vec<T>* total = totals + e * kSlopePieces;
                  Vec<T> sum[kSlopePieces];
                  unroll<kSlopePieces>(kSlopePieces, [&](int j) FASTMLIP_INLINE {
                    sum[j] = is_first ? Vec<T>{} : total[j];
                  });
                  unroll<vectors>(vectors, [&](int v) FASTMLIP_INLINE {
                    const Vec<T> g = pin(load(dw + v * kLanes<T>));
                    unroll<kSlopePieces>(kSlopePieces, [&](int j) FASTMLIP_INLINE {
                      sum[j] += g * load(five + j * kSplineBlock + v * kLanes<T>);
                    });
                  });
                  unroll<kSlopePieces>(kSlopePieces,
                                       [&](int j) FASTMLIP_INLINE { total[j] = sum[j]; });
                });
    for (int64_t e = 0; e < limit - begin; e += kLanes<T>) {
      Vec<T> total{};
      for (int j = 0; j < kSlopePieces; ++j)
        total += sum_each<T>(sums.get() + e * kSlopePieces + j, kSlopePieces) *
                 piece<T>(kSlopePowers[j], load(place.get() + e));
      for (int64_t i = 0; i < std::min<int64_t>(kLanes<T>, limit - begin - e); ++i)
        t.dradial[edges[e + i]] = total[i];
    }
  }
};

}  // namespace
}  // namespace fastmlip::FASTMLIP_ISA
