// What the kernels of radial_conv take: plain pointers, no torch.
#pragma once

#include "graph/shared_rows.h"
#include "operators/spline.h"
#include "operators/tensor_product_conv.h"

namespace fastmlip {

// Row-major tensors; a pointer that a kernel does not use is null. Of shared and first_row one is
// given, first_row where weight is the table of a spline.
template <class T>
struct RadialTensors {
  const T *x, *edge_attr, *radial, *weight, *hidden, *grad;
  const SharedRows* shared;  // whose edges the backward pass needs
  const int64_t* first_row;
  int64_t inputs;        // columns of radial
  int64_t weight_rows;   // of the table
  int64_t width, depth;  // of the hidden layers
  T* kept;               // rows of edge_weight that the forward pass leaves to the backward pass
  int64_t room;          // for so many of their gradients to wait
  T *out, *dx, *da, *dradial;
};

struct RadialConv {
  void (*forward_f32)(const RadialTensors<float>&, const EdgeOrder&, const int64_t* tables,
                      ParallelFor, int64_t threads);
  void (*forward_f64)(const RadialTensors<double>&, const EdgeOrder&, const int64_t* tables,
                      ParallelFor, int64_t threads);
  void (*backward_f32)(const RadialTensors<float>&, const EdgeOrder&, const int64_t* tables,
                       ParallelFor, int64_t threads);
  void (*backward_f64)(const RadialTensors<double>&, const EdgeOrder&, const int64_t* tables,
                       ParallelFor, int64_t threads);
};

}  // namespace fastmlip
