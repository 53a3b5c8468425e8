// Linear layers with silu between them, silu(.. silu(x W0) W1 ..) Wn, for a block of rows at a
// time.
#pragma once

#include "base/memory.h"
#include "simd/activation.h"
#include "simd/gemm.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

// Layer i takes widths[i] columns to widths[i + 1]. The weights lie one behind the other.
template <class T>
struct Layers {
  const T* weights;
  std::vector<int64_t> widths;

  int64_t last() const { return int64_t(widths.size()) - 2; }
  int64_t inputs(int64_t layer) const { return widths[layer]; }
  int64_t outputs(int64_t layer) const { return widths[layer + 1]; }
  int64_t first_weight(int64_t layer) const {
    int64_t first = 0;
    for (int64_t i = 0; i < layer; ++i) first += widths[i] * widths[i + 1];
    return first;
  }
  const T* weight(int64_t layer) const { return weights + first_weight(layer); }
  // Of the layers before `layer`, which silu follows: all their columns.
  int64_t hidden(int64_t layer) const {
    int64_t columns = 0;
    for (int64_t i = 0; i < layer; ++i) columns += widths[i + 1];
    return columns;
  }
  std::vector<Buffer<T>> transposed() const {
    std::vector<Buffer<T>> result;
    for (int64_t i = 0; i <= last(); ++i) {
      result.push_back(allocate<T>(inputs(i) * outputs(i)));
      transpose(weight(i), inputs(i), outputs(i), 0, 1, result.back().get());
    }
    return result;
  }
};

// Memory for a block of rows of `width` columns, with room for whole tiles.
template <class T>
Buffer<T> block_rows(int64_t width) {
  return zeros<T>(kBlockRows * width + kTileRows);
}

// Rows of a block, `stride` apart.
template <class T>
struct Rows {
  const T* data;
  int64_t stride;
};

// to[r] = or += row r of a times b, where a and b have `depth` columns and rows. There is memory
// for whole tiles of a.
template <class T, bool kAdd = false>
void product(const Rows<T>& a, int count, int64_t depth, const T* b, int64_t b_stride,
             int64_t columns, T* to, int64_t stride) {
  T* c[kBlockRows] = {};
  for (int r = 0; r < count; ++r) c[r] = to + r * stride;
  gemm_rows<T, kTileRows, kAdd, false>(a.data, a.stride, count, depth, b, b_stride, columns, c);
}

// sum += the rows of a, transposed, times those of b. There is memory for kTileRows behind a.
template <class T>
void add_transposed_product(const T* a, int64_t inputs, const Rows<T>& b, int64_t outputs,
                            int count, T* sum) {
  std::vector<T*> c(inputs + kTileRows);
  for (int64_t k = 0; k < inputs; ++k) c[k] = sum + k * outputs;
  gemm_rows<T, kTileRows, true, true>(a, inputs, int(inputs), count, b.data, b.stride, outputs,
                                      c.data());
}

// f(place, silu of the vector of z there, how many of its lanes)
template <class T, class F>
void for_silu(const T* z, int64_t count, const F& f) {
  for_channels<T>(int(count), [&](auto, int u, int left)
                                  FASTMLIP_INLINE { f(u, silu<T>(load_some(z + u, left)), left); });
}

}  // namespace
}  // namespace fastmlip::FASTMLIP_ISA
