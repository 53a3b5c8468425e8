// What the kernels of contraction take: plain pointers, no torch.
#pragma once

#include "operators/tensor_product_conv.h"

namespace fastmlip {

// Row-major tensors, channels innermost; a pointer that a kernel does not use is null. Where
// edge_attr is null x is [E, dim1, U], else [E, x_rows, U]: the weights of edge_attr [E, dim1].
template <class T>
struct ContractionTensors {
  int64_t channels, x_rows;
  const T *x, *edge_attr, *env, *weight, *grad;  // primal operands
  const T *hx, *ha, *henv, *hweight;             // second-order directions
  T *out, *dx, *da, *denv, *dweight;             // in second order `out` is the gradient of grad
};

// Tables are those of a TensorProductConv of which every multiplicity is one.
template <class T>
using ContractionKernel = void (*)(const ContractionTensors<T>&, const EdgeOrder&,
                                   const int64_t* tables, ParallelFor, int64_t threads);

struct Contraction {
  ContractionKernel<float> forward_f32, backward_f32, double_backward_f32;
  ContractionKernel<double> forward_f64, backward_f64, double_backward_f64;
};

}  // namespace fastmlip
