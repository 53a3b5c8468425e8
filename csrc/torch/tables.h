// Checks of the tables that the operators on tensor products share. Anybody can pass a table, so
// each is checked in full at each call: what a kernel reads and writes by it is there, and all of a
// result is written.
#pragma once

#include "operators/tensor_product_conv.h"
#include "torch/common.h"

namespace fastmlip {

struct TableSizes {
  int64_t dim1, dim2, dim3, weight_numel;
};

TableSizes check_tables(const Tensor& tables);

// `sides`: those that the operator reads.
void check_order(const Tensor& order, int64_t nodes, int64_t edges, EdgeOrder::Sides sides);

}  // namespace fastmlip
