// What the kernels of tensor_product_conv take: plain pointers, no torch.
#pragma once

#include "base/parallel.h"
#include "graph/edge_order.h"
#include "tensor_product/table.h"

namespace fastmlip {

struct TensorProductConv {
  // out (forward), or with directions hx, ha, hw the sum of the three forwards they give.
  void (*receive_f32)(const Tensors<float>&, const EdgeOrder&, const int64_t* tables, ParallelFor,
                      int64_t threads);
  void (*receive_f64)(const Tensors<double>&, const EdgeOrder&, const int64_t* tables, ParallelFor,
                      int64_t threads);
  // dx, da, dw (backward), or with directions the gradients of the directional derivative.
  void (*send_f32)(const Tensors<float>&, const EdgeOrder&, const int64_t* tables, ParallelFor,
                   int64_t threads);
  void (*send_f64)(const Tensors<double>&, const EdgeOrder&, const int64_t* tables, ParallelFor,
                   int64_t threads);
};

}  // namespace fastmlip
