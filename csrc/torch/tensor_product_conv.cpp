// fastmlip::tensor_product_conv_cpu and its derivatives.
#include "operators/tensor_product_conv.h"

#include <optional>
#include <tuple>

#include "torch/common.h"
#include "torch/tables.h"

namespace fastmlip {

FASTMLIP_KERNELS(TensorProductConv, tensor_product_conv)

namespace {

int64_t parts_of(const EdgeOrder& edges, int64_t weight_numel) {
  return parts(edges.num_edges * (weight_numel + 64) / (1 << 15), edges.num_nodes);
}

// Checks what could read out of bounds; returns the columns of the result.
int64_t check(const Tensor& x, const Tensor& a, const Tensor& w, const Tensor& order,
              const Tensor& tables, EdgeOrder::Sides sides) {
  const TableSizes sizes = check_tables(tables);
  const int64_t nodes = x.dim() ? x.size(0) : 0, edges = a.dim() ? a.size(0) : 0;
  expect_shape("x", x, nodes, sizes.dim1);
  expect_shape("edge_attr", a, edges, sizes.dim2);
  expect_shape("edge_weight", w, edges, sizes.weight_numel);
  check_order(order, nodes, edges, sides);
  return sizes.dim3;
}

// Contiguous operands of one call; directions are all given or all absent.
struct Operands {
  Tensor x, a, w;
  std::optional<Tensor> g, hx, ha, hw;

  template <class T>
  Tensors<T> pointers() const {
    auto data = [](const std::optional<Tensor>& t) { return t ? t->const_data_ptr<T>() : nullptr; };
    return {x.const_data_ptr<T>(),
            a.const_data_ptr<T>(),
            w.const_data_ptr<T>(),
            data(g),
            data(hx),
            data(ha),
            data(hw),
            nullptr,
            nullptr,
            nullptr,
            nullptr};
  }
};

EdgeOrder edges_of(const Tensor& order, const Operands& in) {
  return EdgeOrder(order.const_data_ptr<int64_t>(), in.x.size(0), in.a.size(0));
}

void receive(const Operands& in, const Tensor& order, const Tensor& tables, Tensor& out) {
  const EdgeOrder edges = edges_of(order, in);
  const int64_t threads = parts_of(edges, in.w.size(1));
  const int64_t* table = tables.const_data_ptr<int64_t>();
  if (in.x.scalar_type() == ScalarType::Double) {
    Tensors<double> t = in.pointers<double>();
    t.out = out.mutable_data_ptr<double>();
    tensor_product_conv().receive_f64(t, edges, table, parallel_for, threads);
  } else {
    Tensors<float> t = in.pointers<float>();
    t.out = out.mutable_data_ptr<float>();
    tensor_product_conv().receive_f32(t, edges, table, parallel_for, threads);
  }
}

void send(const Operands& in, const Tensor& order, const Tensor& tables, Tensor& dx, Tensor& da,
          Tensor& dw) {
  const EdgeOrder edges = edges_of(order, in);
  const int64_t threads = parts_of(edges, in.w.size(1));
  const int64_t* table = tables.const_data_ptr<int64_t>();
  if (in.x.scalar_type() == ScalarType::Double) {
    Tensors<double> t = in.pointers<double>();
    t.dx = dx.mutable_data_ptr<double>(), t.da = da.mutable_data_ptr<double>(),
    t.dw = dw.mutable_data_ptr<double>();
    tensor_product_conv().send_f64(t, edges, table, parallel_for, threads);
  } else {
    Tensors<float> t = in.pointers<float>();
    t.dx = dx.mutable_data_ptr<float>(), t.da = da.mutable_data_ptr<float>(),
    t.dw = dw.mutable_data_ptr<float>();
    tensor_product_conv().send_f32(t, edges, table, parallel_for, threads);
  }
}

Tensor forward_cpu(const Tensor& x, const Tensor& a, const Tensor& w, const Tensor& order,
                   const Tensor& tables, int64_t dim_out) {
  expect(check(x, a, w, order, tables, EdgeOrder::kReceivers) == dim_out,
         "dim_out: not the columns of this problem");
  Tensor out = empty({x.size(0), dim_out}, x.scalar_type());
  receive({packed(x), packed(a), packed(w), {}, {}, {}, {}}, order, tables, out);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward_cpu(const Tensor& g, const Tensor& x, const Tensor& a,
                                                const Tensor& w, const Tensor& order,
                                                const Tensor& tables, int64_t dim_out) {
  expect(check(x, a, w, order, tables, EdgeOrder::kSenders) == dim_out,
         "dim_out: not the columns of this problem");
  expect_shape("grad", g, x.size(0), dim_out);
  const Operands in{packed(x), packed(a), packed(w), packed(g), {}, {}, {}};
  Tensor dx = empty_as(in.x), da = empty_as(in.a), dw = empty_as(in.w);
  send(in, order, tables, dx, da, dw);
  return {dx, da, dw};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> double_backward_cpu(
    const Tensor& hx, const Tensor& ha, const Tensor& hw, const Tensor& g, const Tensor& x,
    const Tensor& a, const Tensor& w, const Tensor& order, const Tensor& tables, int64_t dim_out) {
  expect(check(x, a, w, order, tables, EdgeOrder::kBoth) == dim_out,
         "dim_out: not the columns of this problem");
  expect_shape("grad", g, x.size(0), dim_out);
  expect_shape("hx", hx, x.size(0), x.size(1));
  expect_shape("ha", ha, a.size(0), a.size(1));
  expect_shape("hw", hw, w.size(0), w.size(1));
  const Operands in{packed(x), packed(a), packed(w), packed(g), packed(hx), packed(ha), packed(hw)};
  Tensor gg = empty_as(*in.g), gx = empty_as(in.x), ga = empty_as(in.a), gw = empty_as(in.w);
  receive(in, order, tables, gg);
  send(in, order, tables, gx, ga, gw);
  return {gg, gx, ga, gw};
}

}  // namespace
}  // namespace fastmlip

STABLE_TORCH_LIBRARY_FRAGMENT(fastmlip, m) {
  m.def(
      "tensor_product_conv_cpu(Tensor x, Tensor edge_attr, Tensor edge_weight, Tensor order, "
      "Tensor tables, SymInt dim_out) -> Tensor");
  m.def(
      "tensor_product_conv_backward_cpu(Tensor grad, Tensor x, Tensor edge_attr, Tensor "
      "edge_weight, Tensor order, Tensor tables, SymInt dim_out) -> (Tensor, Tensor, Tensor)");
  m.def(
      "tensor_product_conv_double_backward_cpu(Tensor hx, Tensor ha, Tensor hw, Tensor grad, "
      "Tensor x, Tensor edge_attr, Tensor edge_weight, Tensor order, Tensor tables, SymInt "
      "dim_out) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CPU, m) {
  m.impl("tensor_product_conv_cpu", TORCH_BOX(&fastmlip::forward_cpu));
  m.impl("tensor_product_conv_backward_cpu", TORCH_BOX(&fastmlip::backward_cpu));
  m.impl("tensor_product_conv_double_backward_cpu", TORCH_BOX(&fastmlip::double_backward_cpu));
}
