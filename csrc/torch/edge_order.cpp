// fastmlip::edge_order_cpu
#include "torch/common.h"

namespace fastmlip {
namespace {

Tensor edge_order_cpu(const Tensor& edge_dst, const Tensor& edge_src, int64_t num_nodes,
                      const std::optional<Tensor>& positions) {
  const bool narrow = edge_dst.scalar_type() == ScalarType::Int;
  expect(edge_dst.dim() == 1, "edge_dst: expected shape [E]");
  const int64_t num_edges = edge_dst.size(0);
  expect(edge_src.dim() == 1 && edge_src.size(0) == num_edges,
         "edge_src: expected shape [E = ", num_edges, "] as edge_dst has");
  expect((narrow || edge_dst.scalar_type() == ScalarType::Long) &&
             edge_src.scalar_type() == edge_dst.scalar_type(),
         "edge_dst and edge_src: expected int32 or int64, both the same");
  expect(num_nodes >= 0 && num_nodes <= EdgeOrder::kMost,
         "num_nodes: expected 0 or more, and not more than fit into memory, got ", num_nodes);
  if (positions) {
    expect_shape("positions", *positions, num_nodes, 3);
    expect(positions->scalar_type() == ScalarType::Double, "positions: expected float64");
  }
  const std::optional<Tensor> place = packed(positions);
  const Tensor dst = packed(edge_dst), src = packed(edge_src);
  Tensor order = empty({EdgeOrder::size(num_nodes, num_edges)}, ScalarType::Long);
  int64_t* table = order.mutable_data_ptr<int64_t>();
  int64_t position = 0;
  auto fill = [&](auto index) {
    using Index = decltype(index);
    return edge_order(dst.const_data_ptr<Index>(), src.const_data_ptr<Index>(),
                      place ? place->const_data_ptr<double>() : nullptr, num_nodes, num_edges,
                      table, &position, parallel_for, parts(num_edges / 1000, 2));
  };
  const char* bad = narrow ? fill(int32_t()) : fill(int64_t());
  if (bad) {
    const Tensor& index = std::string(bad) == "edge_dst" ? dst : src;
    const int64_t value = narrow ? index.const_data_ptr<int32_t>()[position]
                                 : index.const_data_ptr<int64_t>()[position];
    fail_range(bad, position, value, num_nodes, ", the rows of x");
  }
  return order;
}

}  // namespace
}  // namespace fastmlip

STABLE_TORCH_LIBRARY_FRAGMENT(fastmlip, m) {
  m.def(
      "edge_order_cpu(Tensor edge_dst, Tensor edge_src, SymInt num_nodes, Tensor? positions=None) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CPU, m) {
  m.impl("edge_order_cpu", TORCH_BOX(&fastmlip::edge_order_cpu));
}
