// What the kernels of pair_linear take: plain pointers, no torch.
#pragma once

#include <cstdint>

#include "base/parallel.h"

namespace fastmlip {

// Row-major tensors x [edges, inputs], weight [inputs, outputs] and grad [edges, outputs] of T: two
// of them, in this order, and the result, which has the shape of the third.
struct PairLinearTensors {
  const void *first, *second;
  void* result;
  const int64_t* edge_pair;  // [edges]
  int64_t edges, inputs, outputs;
};

struct PairLinear {
  using Kernel = void (*)(const PairLinearTensors&, ParallelFor, int64_t threads);
  Kernel forward_f32, forward_f64;  // x, weight
  Kernel dx_f32, dx_f64;            // weight, grad
  Kernel dweight_f32, dweight_f64;  // x, grad
};

}  // namespace fastmlip
