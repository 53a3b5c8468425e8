// The inner loops of contraction.cpp: products of rows of edges with the matrix of their node, for
// one vector of channels, and the sums over edges that are the gradient of that matrix.
#pragma once

#include "operators/contraction_plan.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

constexpr int kChunk = 24;  // edges whose rows are in cache together; whole tiles of any dimension

// One vector of channels of the rows of a chunk: component c of edge e at row[e] + c * stride.
template <class T>
struct Panel {
  T* row[kChunk];
  int64_t stride;
};

// Rows of a tile with D columns: for each of them D sums and an operand are kept in registers.
constexpr int kVectorRegisters = FASTMLIP_VECTOR_BYTES == 64 ? 32 : 16;
template <int D>
inline constexpr int kTile = D == 0 ? 1 : std::clamp((kVectorRegisters - 3) / (D + 1), 1, 6);
template <int D>
inline constexpr int kComponents = D ? D : kMaxDim;

// f(R, begin) for begin .. end, R = kTile<D> of them at a time, and fewer at the end.
template <int R, class F>
FASTMLIP_INLINE inline void for_tiles(int begin, int end, const F& f) {
  for (; begin + R <= end; begin += R) f(std::integral_constant<int, R>{}, begin);
  if constexpr (R > 1) for_tiles<R / 2>(begin, end, f);
}

// What is summed up in a product: the rows x of a chunk times a matrix.
template <class T>
struct Factor {
  Panel<T> x;
  const Vec<T>* matrix;
};

// out[r][d] = sum over factors, and over rows c, of x[r][rows[c]] * matrix[c][d], for R edges.
template <class T, int R, int D, int N>
[[gnu::noinline]] void multiply_tile(const Factor<T>* factors, const MatrixBlock& b,
                                     const int* rows, int edge, const Panel<T>& out) {
  constexpr int S = kComponents<D>;
  const int dim = D ? D : b.dim, count = b.end - b.begin;
  Vec<T> sum[R * S];
  unroll<R>(R, [&](int r) FASTMLIP_INLINE {
    unroll<D>(dim, [&](int d) FASTMLIP_INLINE { sum[r * S + d] = Vec<T>{}; });
  });
  for (int i = 0; i < N; ++i) {
    const Vec<T>* matrix = factors[i].matrix + b.matrix;
    const int64_t stride = factors[i].x.stride;
    const T* x[R];
    unroll<R>(R, [&](int r) FASTMLIP_INLINE { x[r] = factors[i].x.row[edge + r]; });
    for (int c = 0; c < count; ++c, matrix += dim) {
      const int64_t at = rows[c] * stride;
      Vec<T> v[R];
      unroll<R>(R, [&](int r) FASTMLIP_INLINE { v[r] = pin(load(x[r] + at)); });
      unroll<D>(dim, [&](int d) FASTMLIP_INLINE {
        const Vec<T> m = pin(matrix[d]);
        unroll<R>(R, [&](int r) FASTMLIP_INLINE { sum[r * S + d] += m * v[r]; });
      });
    }
  }
  unroll<R>(R, [&](int r) FASTMLIP_INLINE {
    T* to = out.row[edge + r] + b.offset * out.stride;
    unroll<D>(dim, [&](int d) FASTMLIP_INLINE { store(to + d * out.stride, sum[r * S + d]); });
  });
}

// out = the sum of N factors, for `count` edges of a chunk.
template <class T, int N>
void multiply(const MatrixSide<T>& side, const Factor<T> (&factors)[N], const Panel<T>& out,
              int count) {
  for (const MatrixBlock& b : side.blocks)
    with_dim(b.dim, [&](auto D) {
      for_tiles<kTile<D>>(0, count, [&](auto R, int e) {
        multiply_tile<T, R, D, N>(factors, b, side.rows.data() + b.begin, e, out);
      });
    });
}

// matrix[r][d] += sum over edges of x[rows[r]] * grad[d], for R rows.
template <class T, int R, int D>
[[gnu::noinline]] void outer_tile(T* const* x, int64_t x_stride, const int* rows, T* const* grad,
                                  int64_t offset, int64_t grad_stride, int count, int dim,
                                  Vec<T>* matrix) {
  constexpr int S = kComponents<D>;
  const int d3 = D ? D : dim;
  Vec<T> sum[R * S];
  unroll<R>(R, [&](int r) FASTMLIP_INLINE {
    unroll<D>(d3, [&](int d) FASTMLIP_INLINE { sum[r * S + d] = matrix[r * d3 + d]; });
  });
  int64_t at[R];
  for (int r = 0; r < R; ++r) at[r] = rows[r] * x_stride;
  for (int e = 0; e < count; ++e) {
    Vec<T> g[S];
    unroll<D>(d3,
              [&](int d) FASTMLIP_INLINE { g[d] = pin(load(grad[e] + offset + d * grad_stride)); });
    unroll<R>(R, [&](int r) FASTMLIP_INLINE {
      const Vec<T> v = pin(load(x[e] + at[r]));
      unroll<D>(d3, [&](int d) FASTMLIP_INLINE { sum[r * S + d] += v * g[d]; });
    });
  }
  unroll<R>(R, [&](int r) FASTMLIP_INLINE {
    unroll<D>(d3, [&](int d) FASTMLIP_INLINE { matrix[r * d3 + d] = sum[r * S + d]; });
  });
}

// The gradient of M, by `side` = plan.forward: += sum over `count` edges of x[i] grad[k].
template <class T>
void outer(const MatrixSide<T>& side, const Panel<T>& x, const Panel<T>& grad, int count,
           Vec<T>* matrix) {
  for (const MatrixBlock& b : side.blocks)
    with_dim(b.dim, [&](auto D) {
      for_tiles<kTile<D>>(b.begin, b.end, [&](auto R, int r) {
        outer_tile<T, R, D>(x.row, x.stride, side.rows.data() + r, grad.row, b.offset * grad.stride,
                            grad.stride, count, b.dim, matrix + b.matrix + (r - b.begin) * b.dim);
      });
    });
}

}  // namespace
}  // namespace fastmlip::FASTMLIP_ISA
