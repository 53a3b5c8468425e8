// fastmlip::edge_pair_cpu
#include "graph/edge_pair.h"

#include "torch/common.h"
#include "torch/tables.h"

namespace fastmlip {
namespace {

template <class T, class U>
void fill(const Tensor& vec, const Tensor& embedding, const EdgeOrder& order, Tensor& pair) {
  edge_pair(vec.const_data_ptr<T>(), embedding.const_data_ptr<U>(), embedding.size(1), order,
            pair.mutable_data_ptr<int64_t>(), parallel_for, parts(order.num_edges / 1000));
}

Tensor edge_pair_cpu(const Tensor& edge_vec, const Tensor& edge_embedding, const Tensor& order,
                     int64_t num_nodes) {
  const int64_t edges = edge_vec.size(0);
  expect_shape("edge_vec", edge_vec, edges, 3);
  expect(edge_embedding.dim() == 2 && edge_embedding.size(0) == edges,
         "edge_embedding: expected a row for each edge");
  check_order(order, num_nodes, edges, EdgeOrder::kReceivers);
  const Tensor vec = packed(edge_vec), embedding = packed(edge_embedding);
  Tensor pair = empty({edges}, order.scalar_type());
  const EdgeOrder table(order.const_data_ptr<int64_t>(), num_nodes, edges);
  const bool wide = vec.scalar_type() == ScalarType::Double;
  if (embedding.scalar_type() == ScalarType::Double)
    (wide ? fill<double, double> : fill<float, double>)(vec, embedding, table, pair);
  else
    (wide ? fill<double, float> : fill<float, float>)(vec, embedding, table, pair);
  return pair;
}

}  // namespace
}  // namespace fastmlip

STABLE_TORCH_LIBRARY_FRAGMENT(fastmlip, m) {
  m.def(
      "edge_pair_cpu(Tensor edge_vec, Tensor edge_embedding, Tensor order, SymInt num_nodes) -> "
      "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CPU, m) {
  m.impl("edge_pair_cpu", TORCH_BOX(&fastmlip::edge_pair_cpu));
}
