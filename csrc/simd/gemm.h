// Matrix products for rows that stay in cache: a block of rows of A times B, columns a vector wide.
// Element (r, k) of A is a[r * stride + k], or a[r + k * stride] where kAcross.
#pragma once

#include <algorithm>

#include "base/parallel.h"
#include "simd/simd.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

constexpr int kTileRows = FASTMLIP_VECTOR_BYTES == 64 ? 8 : 4;  // with kTileVectors: the registers
constexpr int kTileVectors = 3;
constexpr int kBlockRows = 64;  // rows of A for which B is read once

// c[r] = or += sum_k a[r][k] b[k] for R rows r and C vectors of columns, `left` of them in the last
// one. Rows whose c is null are left out.
template <class T, int R, int C, bool kAdd, bool kAcross>
[[gnu::noinline]] void gemm_tile(const T* a, int64_t stride, int64_t depth, const T* b,
                                 int64_t b_stride, int left, T* const* c, int64_t column) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[R * C];
  unroll<R * C>(R * C, [&](int i) FASTMLIP_INLINE { sum[i] = Vec<T>{}; });
  auto products = [&](auto load_last) FASTMLIP_INLINE {
    for (int64_t k = 0; k < depth; ++k, b += b_stride) {
      Vec<T> row[C];
      unroll<C>(C, [&](int v) FASTMLIP_INLINE {
        row[v] = pin(v + 1 < C ? load(b + v * L) : load_last(b + v * L));
      });
      unroll<R>(R, [&](int r) FASTMLIP_INLINE {
        const Vec<T> factor = broadcast<T>(a[kAcross ? r + k * stride : r * stride + k]);
        unroll<C>(C, [&](int v) FASTMLIP_INLINE { sum[r * C + v] += factor * row[v]; });
      });
    }
  };
  if (left >= L)
    products([](const T* from) FASTMLIP_INLINE { return load(from); });
  else
    products([left](const T* from) FASTMLIP_INLINE { return load_some(from, left); });
  unroll<R>(R, [&](int r) FASTMLIP_INLINE {
    T* to = c[r] + column;
    if (c[r]) {
      unroll<C>(C, [&](int v) FASTMLIP_INLINE {
        const int count = v + 1 < C ? L : left;
        const Vec<T> value = sum[r * C + v];
        store_some(to + v * L, kAdd ? load_some(to + v * L, count) + value : value, count);
      });
    }
  });
}

// Row r of the product, r < rows, into or (kAdd) onto c[r][0 .. columns). a and c have room for
// whole tiles of R rows, c null behind `rows`.
template <class T, int R, bool kAdd, bool kAcross>
void gemm_rows(const T* a, int64_t stride, int rows, int64_t depth, const T* b, int64_t b_stride,
               int64_t columns, T* const* c) {
  constexpr int L = kLanes<T>;
  for (int64_t column = 0; column < columns; column += kTileVectors * L) {
    const int64_t left = std::min<int64_t>(columns - column, kTileVectors * L);
    const int vectors = int((left + L - 1) / L), last = int(left - (vectors - 1) * L);
    for (int r = 0; r < rows; r += R) {
      auto tile = [&](auto C) {
        gemm_tile<T, R, C, kAdd, kAcross>(a + (kAcross ? r : r * stride), stride, depth, b + column,
                                          b_stride, last, c + r, column);
      };
      if (vectors == 3)
        tile(std::integral_constant<int, 3>{});
      else if (vectors == 2)
        tile(std::integral_constant<int, 2>{});
      else
        tile(std::integral_constant<int, 1>{});
    }
  }
}

// The same for kBlockRows rows of A at most, one behind the other, with room for all of them.
template <class T, bool kAdd>
void gemm_block(const T* a, int rows, int64_t depth, const T* b, int64_t b_stride, int64_t columns,
                T* const* c) {
  gemm_rows<T, kTileRows, kAdd, false>(a, depth, rows, depth, b, b_stride, columns, c);
}

// make()(row, count) for blocks of kBlockRows rows, dealt out to threads; a thread makes one.
template <class F>
void for_blocks(int64_t rows, ParallelFor parallel_for, int64_t threads, const F& make) {
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  const int64_t parts = std::max<int64_t>(1, std::min(threads, blocks));
  Shares shares(blocks, parts);
  run(parallel_for, parts, [&](int64_t part) {
    auto f = make();
    for (int64_t b; (b = shares.take(part)) >= 0;)
      f(b * kBlockRows, int(std::min<int64_t>(kBlockRows, rows - b * kBlockRows)));
  });
}

// One of several parts of the transposed matrix.
template <class T>
void transpose(const T* weight, int64_t rows, int64_t columns, int64_t part, int64_t parts,
               T* result) {
  constexpr int64_t tile = 16;
  const int64_t tiles = (columns + tile - 1) / tile;
  for (int64_t t = tiles * part / parts; t < tiles * (part + 1) / parts; ++t)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = t * tile; i < std::min((t + 1) * tile, columns); ++i)
        result[i * rows + r] = weight[r * columns + i];
}

}  // namespace
}  // namespace fastmlip::FASTMLIP_ISA
