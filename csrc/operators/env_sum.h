// What the kernels of env_sum take: plain pointers, no torch.
#pragma once

#include <cstdint>

#include "base/parallel.h"
#include "graph/edge_order.h"

namespace fastmlip {

// Row-major tensors, channels innermost; a pointer that a kernel does not use is null. edge_attr
// has blocks of dims[0], dims[1], ... columns, weight_rows one for each block, or one for all of
// them.
template <class T>
struct EnvSumTensors {
  int64_t channels, weight_rows, num_blocks;
  const int64_t* dims;
  const T *edge_weight, *edge_attr;  // [E, weight_rows, U], [E, dim]
  const T *hw, *ha;                  // directions, both or none
  const T* grad;                     // [N, dim, U]
  T *out, *dw, *da;
};

template <class T>
using EnvSumKernel = void (*)(const EnvSumTensors<T>&, const EdgeOrder&, ParallelFor,
                              int64_t threads);

struct EnvSum {
  EnvSumKernel<float> receive_f32, send_f32;
  EnvSumKernel<double> receive_f64, send_f64;
};

}  // namespace fastmlip
