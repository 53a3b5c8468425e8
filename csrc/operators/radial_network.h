// The hidden layers of a radial network, silu(.. silu(row W0) W1 ..), for a block of rows at a
// time.
#pragma once

#include "base/memory.h"
#include "simd/activation.h"
#include "simd/gemm.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

// Weights [inputs, width] of the first layer, [width, width] of the others, one behind the other.
template <class T>
struct HiddenLayers {
  const T* weights;
  int64_t inputs, width, depth;  // without layers (depth 0) width is inputs

  int64_t size(int64_t layer) const { return layer ? width : inputs; }
  const T* weight(int64_t layer) const {
    return weights + (layer ? (inputs + (layer - 1) * width) * width : 0);
  }
};

// One thread's rows.
template <class T>
class HiddenRows {
 public:
  explicit HiddenRows(const HiddenLayers<T>& layers)
      : layers_(layers),
        inputs_(zeros<T>(kBlockRows * layers.inputs)),
        before_(zeros<T>(layers.depth * kBlockRows * layers.width)),
        after_(zeros<T>(layers.depth * kBlockRows * layers.width)) {}

  void set(int r, const T* row) {
    std::copy_n(row, layers_.inputs, inputs_.get() + r * layers_.inputs);
  }

  // Rows [kBlockRows, width] of the rows that were set.
  const T* forward(int count) {
    const T* rows = inputs_.get();
    const int64_t size = kBlockRows * layers_.width;
    for (int64_t i = 0; i < layers_.depth; ++i) {
      T *before = before_.get() + i * size, *after = after_.get() + i * size;
      T* c[kBlockRows] = {};
      for (int r = 0; r < count; ++r) c[r] = before + r * layers_.width;
      gemm_block<T, false>(rows, count, layers_.size(i), layers_.weight(i), layers_.width,
                           layers_.width, c);
      for_channels<T>(int(count * layers_.width), [&](auto, int u, int left) FASTMLIP_INLINE {
        store_some(after + u, silu<T>(load_some(before + u, left)).value, left);
      });
      rows = after;
    }
    return rows;
  }

  // Adds to to[r] the gradient of row r, where `gradients` [kBlockRows, width] are those of
  // forward's result, which was called for the same rows; they are overwritten. `transposed`: each
  // layer's weights.
  void backward(T* gradients, int count, const Buffer<T>* transposed, T* const* to) {
    const int64_t size = kBlockRows * layers_.width;
    for (int64_t i = layers_.depth - 1; i >= 0; --i) {
      const T* before = before_.get() + i * size;
      for_channels<T>(int(count * layers_.width), [&](auto, int u, int left) FASTMLIP_INLINE {
        const Vec<T> slope = silu<T>(load_some(before + u, left)).first;
        store_some(gradients + u, slope * load_some(gradients + u, left), left);
      });
      T* c[kBlockRows] = {};
      T* next = after_.get() + i * size;  // free again
      for (int r = 0; r < count; ++r) c[r] = i ? next + r * layers_.width : to[r];
      if (i == 0)
        return gemm_block<T, true>(gradients, count, layers_.width, transposed[0].get(),
                                   layers_.inputs, layers_.inputs, c);
      gemm_block<T, false>(gradients, count, layers_.width, transposed[i].get(), layers_.width,
                           layers_.width, c);
      gradients = next;
    }
  }

 private:
  const HiddenLayers<T> layers_;
  const Buffer<T> inputs_, before_, after_;  // before and after the activations
};

}  // namespace
}  // namespace fastmlip::FASTMLIP_ISA
