// Checks of the tables that the operators on tensor products share.
#pragma once

#include "../tensor_product_conv.h"
#include "common.h"

namespace fastmlip {

struct TableSizes {
  int64_t dim1, dim2, dim3, weight_numel;
};

inline TableSizes check_tables(const Tensor& tables) {
  constexpr int64_t header_size = sizeof(Header) / sizeof(int64_t);
  expect(tables.dim() == 1 && tables.size(0) >= header_size, "tables: too short");
  const int64_t* table = tables.const_data_ptr<int64_t>();
  const auto& header = *reinterpret_cast<const Header*>(table);
  const int64_t blocks = header.num_blocks1 + header.num_blocks3;
  expect(tables.size(0) == header_size + 2 * blocks +
                               header.num_paths * int64_t(sizeof(PathRow) / sizeof(int64_t)) +
                               header.num_cg * int64_t(sizeof(CgRow) / sizeof(int64_t)),
         "tables: not a table of TensorProductProblem.tables()");
  TableSizes sizes{0, header.dim2, 0, header.weight_numel};
  const auto* block = reinterpret_cast<const Block*>(table + header_size);
  for (int64_t i = 0; i < blocks; ++i)
    (i < header.num_blocks1 ? sizes.dim1 : sizes.dim3) += block[i].mul * block[i].dim;
  return sizes;
}

inline void check_order(const Tensor& order, int64_t nodes, int64_t edges) {
  expect(order.dim() == 1 && order.size(0) == EdgeOrder::size(nodes, edges),
         "order: not the edge_order of these nodes and edges");
  const int64_t* ends = order.const_data_ptr<int64_t>();
  expect(ends[nodes] == edges && ends[2 * nodes + 1] == edges,
         "order: not the edge_order of these nodes and edges");
}

}  // namespace fastmlip
