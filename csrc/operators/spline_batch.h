// Values of splines for a batch of edges: six rows of coefficients, from first_row on, times the
// B_j of the edge's place; fastmlip/ops/spline.py states the formulas. A block of columns is made
// after the other, for all edges of the batch, so that a block of the table is read from the
// nearest cache.
#pragma once

#include "base/memory.h"
#include "operators/spline.h"
#include "simd/simd.h"

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

// The edges that one thread has at hand. `blocks` blocks of columns, each of `table_rows` rows.
template <class T>
class SplineBatch {
 public:
  static constexpr int kLine = 64 / sizeof(T);  // of a cache
  const int64_t blocks, block_size;
  // of rows in memory of ours: a cache line more than the columns, so that rows do not all fall on
  // the same ones
  const int64_t stride;
  int64_t count = 0;

  SplineBatch(int64_t blocks, int64_t table_rows, bool backward)
      : blocks(blocks),
        block_size(table_rows * kSplineBlock),
        stride(blocks * kSplineBlock + kLine),
        place_(zeros<T>(kBatch)),
        basis_(zeros<T>(kBatch * kBasis + kLanes<T>)),
        sums_(backward ? allocate<Vec<T>>(kBatch * kSlopePieces) : nullptr) {}

  // These edges from here on.
  void begin(const int64_t* edges, int64_t num_edges, const T* place, const int64_t* first_row) {
    count = num_edges;
    for (int64_t e = 0; e < count; ++e) {
      first_[e] = first_row[edges[e]] * kSplineBlock;
      place_[e] = place[edges[e]];
    }
    for (int j = 0; j < kSplinePieces; ++j)
      for (int64_t e = 0; e < count; e += kLanes<T>) {
        const Vec<T> pieces = piece<T>(kPowers[j], load(place_.get() + e));
        for (int i = 0; i < kLanes<T>; ++i) basis_[(e + i) * kBasis + j] = pieces[i];
      }
  }

  // Their values, all columns of all blocks, in rows of ours.
  [[gnu::noinline]] void make(const T* table, T* rows) const {
    const T* numbers = basis_.get();
    for_columns(table, rows, [&](int64_t e, const T* six, T* w, bool) FASTMLIP_INLINE {
      Vec<T> sum[kVectors] = {}, factors[kSplinePieces];
      splat<T, kSplinePieces>(numbers + e * kBasis, factors);
      unroll<kSplinePieces>(kSplinePieces, [&](int j) FASTMLIP_INLINE {
        const Vec<T> factor = pin(factors[j]);
        unroll<kVectors>(kVectors, [&](int v) FASTMLIP_INLINE {
          sum[v] += factor * load(six + j * kSplineBlock + v * kLanes<T>);
        });
      });
      unroll<kVectors>(kVectors, [&](int v) FASTMLIP_INLINE { store(w + v * kLanes<T>, sum[v]); });
    });
  }

  // The gradients of their places, from those of their values in rows of ours. `table` holds
  // differences of rows that follow one another, or the rows, whose differences are taken here.
  template <bool kDifferences>
  [[gnu::noinline]] void project(const T* table, T* gradients, const int64_t* edges,
                                 T* dplace) const {
    Vec<T>* totals = sums_.get();
    for_columns(
        table, gradients, [&](int64_t e, const T* rows, T* dw, bool is_first) FASTMLIP_INLINE {
          Vec<T>* total = totals + e * kSlopePieces;
          Vec<T> sum[kSlopePieces];
          unroll<kSlopePieces>(kSlopePieces, [&](int j) FASTMLIP_INLINE {
            sum[j] = is_first ? Vec<T>{} : total[j];
          });
          unroll<kVectors>(kVectors, [&](int v) FASTMLIP_INLINE {
            const T* column = rows + v * kLanes<T>;
            const Vec<T> g = pin(load(dw + v * kLanes<T>));
            unroll<kSlopePieces>(kSlopePieces, [&](int j) FASTMLIP_INLINE {
              if constexpr (kDifferences)
                sum[j] += g * load(column + j * kSplineBlock);
              else
                sum[j] +=
                    g * (load(column + (j + 1) * kSplineBlock) - load(column + j * kSplineBlock));
            });
          });
          unroll<kSlopePieces>(kSlopePieces, [&](int j) FASTMLIP_INLINE { total[j] = sum[j]; });
        });
    for (int64_t e = 0; e < count; e += kLanes<T>) {
      Vec<T> total{};
      for (int j = 0; j < kSlopePieces; ++j)
        total += sum_each<T>(sums_.get() + e * kSlopePieces + j, kSlopePieces) *
                 piece<T>(kSlopePowers[j], load(place_.get() + e));
      for (int64_t i = 0; i < std::min<int64_t>(kLanes<T>, count - e); ++i)
        dplace[edges[e + i]] = total[i];
    }
  }

 private:
  static constexpr int kBasis = 8;
  // of columns that are made at a time
  static constexpr int kVectors = std::min<int>(8, kSplineBlock / kLanes<T>);
  static constexpr int kColumns = kVectors * kLanes<T>;

  // f(edge of the batch, its rows of the table `from` in some columns, these columns of its row in
  // `to`, whether they are the first)
  template <class F>
  FASTMLIP_INLINE void for_columns(const T* from, T* to, const F& f) const {
    const int64_t all = blocks * kSplineBlock, edges = count, row = stride;
    for (int64_t c = 0; c < all; c += kColumns) {
      const T* block = from + c / kSplineBlock * block_size + c % kSplineBlock;
      for (int64_t e = 0; e < edges; ++e) f(e, block + first_[e], to + e * row + c, c == 0);
    }
  }

  Buffer<T> place_;        // of each edge of the batch
  Buffer<T> basis_;        // [edge][kBasis]: its B_j, and room for a whole vector behind the last
  Buffer<Vec<T>> sums_;    // [edge][piece of the slope], not yet summed over lanes
  int64_t first_[kBatch];  // where in a block of columns an edge's rows begin
};

}  // namespace
}  // namespace fastmlip::FASTMLIP_ISA
