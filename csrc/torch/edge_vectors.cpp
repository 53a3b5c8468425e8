// fastmlip::edge_vectors_cpu and its transpose.
#include "graph/edge_vectors.h"

#include "torch/common.h"
#include "torch/tables.h"

namespace fastmlip {
namespace {

// kernel(rows of `from`, order, rows of `to`, ...) in the dtype of `from`.
template <class F32, class F64>
void call(F32 f32, F64 f64, const Tensor& from, const EdgeOrder& order, Tensor& to) {
  const int64_t threads = parts(order.num_edges / 2000);
  if (from.scalar_type() == ScalarType::Double)
    f64(from.const_data_ptr<double>(), order, to.mutable_data_ptr<double>(), parallel_for, threads);
  else
    f32(from.const_data_ptr<float>(), order, to.mutable_data_ptr<float>(), parallel_for, threads);
}

Tensor edge_vectors_cpu(const Tensor& positions, const Tensor& order, int64_t num_edges) {
  const int64_t nodes = positions.size(0);
  expect_shape("positions", positions, nodes, 3);
  check_order(order, nodes, num_edges, EdgeOrder::kReceivers);
  Tensor vectors = empty({num_edges, 3}, positions.scalar_type());
  call(edge_vectors<float>, edge_vectors<double>, packed(positions),
       {order.const_data_ptr<int64_t>(), nodes, num_edges}, vectors);
  return vectors;
}

Tensor edge_vectors_backward_cpu(const Tensor& grad, const Tensor& order, int64_t num_nodes) {
  const int64_t edges = grad.size(0);
  expect_shape("grad", grad, edges, 3);
  check_order(order, num_nodes, edges, EdgeOrder::kBoth);
  Tensor dpositions = empty({num_nodes, 3}, grad.scalar_type());
  call(edge_vectors_backward<float>, edge_vectors_backward<double>, packed(grad),
       {order.const_data_ptr<int64_t>(), num_nodes, edges}, dpositions);
  return dpositions;
}

}  // namespace
}  // namespace fastmlip

STABLE_TORCH_LIBRARY_FRAGMENT(fastmlip, m) {
  m.def("edge_vectors_cpu(Tensor positions, Tensor order, SymInt num_edges) -> Tensor");
  m.def("edge_vectors_backward_cpu(Tensor grad, Tensor order, SymInt num_nodes) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CPU, m) {
  m.impl("edge_vectors_cpu", TORCH_BOX(&fastmlip::edge_vectors_cpu));
  m.impl("edge_vectors_backward_cpu", TORCH_BOX(&fastmlip::edge_vectors_backward_cpu));
}
