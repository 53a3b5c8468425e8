// What the kernels of scalar_mlp take: plain pointers, no torch.
#pragma once

#include <cstdint>
#include <vector>

#include "base/parallel.h"

namespace fastmlip {

// Columns of a tensor, whose rows are `stride` apart; zeros where there is no data.
template <class T>
struct Columns {
  const T* data;
  int64_t stride, count;
};

// Row-major tensors; a pointer that a kernel does not use is null. Two Columns stand side by side.
template <class T>
struct MlpTensors {
  int64_t rows;
  std::vector<int64_t> widths;
  const T *weights, *hweights;
  Columns<T> x[2], grad[2], h;
  T* kept;    // what hidden layers are before silu, layer behind layer; null: not kept
  T* out[2];  // with the columns that `split` says
  int64_t split[2];
  T *dgrad, *dx;  // [rows, outputs], [rows, inputs]
  T* dweights;    // as weights, or null
};

struct ScalarMlp {
  template <class T>
  using Kernel = void (*)(const MlpTensors<T>&, ParallelFor, int64_t threads);
  Kernel<float> forward_f32, backward_f32, double_backward_f32;
  Kernel<double> forward_f64, backward_f64, double_backward_f64;
};

}  // namespace fastmlip
