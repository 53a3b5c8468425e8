// fastmlip::env_sum_cpu and its derivatives.
#include "operators/env_sum.h"

#include <tuple>

#include "base/limits.h"
#include "torch/common.h"
#include "torch/tables.h"

namespace fastmlip {

FASTMLIP_KERNELS(EnvSum, env_sum)

namespace {

int64_t size(const Tensor& t, int dim) { return t.dim() > dim ? t.size(dim) : 0; }

// Checks what could read out of bounds, and gathers the operands of a call.
struct EnvSumCall {
  int64_t edges, nodes, channels, dim = 0;
  Tensor weight, attr, order, dims;

  EnvSumCall(const Tensor& w, const Tensor& a, const Tensor& order, const Tensor& dims,
             int64_t num_nodes)
      : edges(size(w, 0)),
        nodes(num_nodes),
        channels(size(w, 2)),
        weight(packed(w)),
        attr(packed(a)),
        order(packed(order)),
        dims(packed(dims)) {
    expect(dims.dim() == 1 && dims.scalar_type() == ScalarType::Long, "dims: expected int64");
    for (int64_t b = 0; b < dims.size(0); ++b) {
      const int64_t one = dims.const_data_ptr<int64_t>()[b];
      expect(one > 0 && one <= kMaxDim, "dims: expected 1 to ", kMaxDim, ", got ", one);
      dim += one;
    }
    expect(w.dim() == 3 && (w.size(1) == 1 || w.size(1) == dims.size(0)),
           "edge_weight: expected shape [E, 1 or blocks of dims, U]");
    expect_shape("edge_attr", a, edges, dim);
    check_order(order, nodes, edges, EdgeOrder::kReceivers);
    expect(w.scalar_type() == ScalarType::Float || w.scalar_type() == ScalarType::Double,
           "edge_weight: expected float32 or float64");
    expect(a.scalar_type() == w.scalar_type(), "edge_attr: expected the dtype of edge_weight");
  }

  Tensor like(const char* name, const Tensor& t, const Tensor& other) const {
    bool same = t.dim() == other.dim() && t.scalar_type() == other.scalar_type();
    for (int i = 0; same && i < t.dim(); ++i) same = t.size(i) == other.size(i);
    expect(same, name, ": expected the shape and dtype of its operand");
    return packed(t);
  }
  Tensor grad(const Tensor& g) const {
    expect(g.dim() == 3 && g.size(0) == nodes && g.size(1) == dim && g.size(2) == channels &&
               g.scalar_type() == weight.scalar_type(),
           "grad: expected the shape and dtype of the result");
    return packed(g);
  }
  Tensor empty_out() const { return empty({nodes, dim, channels}, weight.scalar_type()); }

  void receive(const Tensor* hw, const Tensor* ha, Tensor& out) const {
    with_type([&](auto t, const auto& receive, const auto&) {
      using T = std::remove_pointer_t<decltype(t.out)>;
      t.hw = hw ? hw->const_data_ptr<T>() : nullptr;
      t.ha = ha ? ha->const_data_ptr<T>() : nullptr;
      t.out = out.template mutable_data_ptr<T>();
      run(t, receive);
    });
  }
  void send(const Tensor& w, const Tensor& a, const Tensor& g, Tensor& dw, Tensor& da) const {
    with_type([&](auto t, const auto&, const auto& send) {
      using T = std::remove_pointer_t<decltype(t.out)>;
      t.edge_weight = w.const_data_ptr<T>(), t.edge_attr = a.const_data_ptr<T>();
      t.grad = g.const_data_ptr<T>();
      t.dw = dw.template mutable_data_ptr<T>(), t.da = da.template mutable_data_ptr<T>();
      run(t, send);
    });
  }

 private:
  template <class T>
  EnvSumTensors<T> operands() const {
    EnvSumTensors<T> t{};
    t.channels = channels, t.weight_rows = weight.size(1), t.num_blocks = dims.size(0);
    t.dims = dims.const_data_ptr<int64_t>();
    t.edge_weight = weight.const_data_ptr<T>(), t.edge_attr = attr.const_data_ptr<T>();
    return t;
  }
  template <class F>
  void with_type(const F& f) const {
    if (weight.scalar_type() == ScalarType::Double)
      f(operands<double>(), env_sum().receive_f64, env_sum().send_f64);
    else
      f(operands<float>(), env_sum().receive_f32, env_sum().send_f32);
  }
  template <class T>
  void run(const EnvSumTensors<T>& t, EnvSumKernel<T> kernel) const {
    const EdgeOrder edge_order(order.const_data_ptr<int64_t>(), nodes, edges);
    kernel(t, edge_order, parallel_for, parts(edges * dim * channels / (1 << 15), nodes));
  }
};

Tensor env_sum_cpu(const Tensor& w, const Tensor& a, const Tensor& order, const Tensor& dims,
                   int64_t num_nodes) {
  const EnvSumCall call(w, a, order, dims, num_nodes);
  Tensor out = call.empty_out();
  call.receive(nullptr, nullptr, out);
  return out;
}

std::tuple<Tensor, Tensor> env_sum_backward_cpu(const Tensor& grad, const Tensor& w,
                                                const Tensor& a, const Tensor& order,
                                                const Tensor& dims, int64_t num_nodes) {
  const EnvSumCall call(w, a, order, dims, num_nodes);
  Tensor dw = empty_as(w), da = empty_as(a);
  call.send(call.weight, call.attr, call.grad(grad), dw, da);
  return {dw, da};
}

std::tuple<Tensor, Tensor, Tensor> env_sum_double_backward_cpu(const Tensor& hw, const Tensor& ha,
                                                               const Tensor& grad, const Tensor& w,
                                                               const Tensor& a, const Tensor& order,
                                                               const Tensor& dims,
                                                               int64_t num_nodes) {
  const EnvSumCall call(w, a, order, dims, num_nodes);
  const Tensor h1 = call.like("hw", hw, w), h2 = call.like("ha", ha, a);
  Tensor gg = call.empty_out(), gw = empty_as(w), ga = empty_as(a);
  call.receive(&h1, &h2, gg);
  call.send(h1, h2, call.grad(grad), gw, ga);
  return {gg, gw, ga};
}

}  // namespace
}  // namespace fastmlip

STABLE_TORCH_LIBRARY_FRAGMENT(fastmlip, m) {
  m.def(
      "env_sum_cpu(Tensor edge_weight, Tensor edge_attr, Tensor order, Tensor dims, SymInt "
      "num_nodes) -> Tensor");
  m.def(
      "env_sum_backward_cpu(Tensor grad, Tensor edge_weight, Tensor edge_attr, Tensor order, "
      "Tensor "
      "dims, SymInt num_nodes) -> (Tensor, Tensor)");
  m.def(
      "env_sum_double_backward_cpu(Tensor hw, Tensor ha, Tensor grad, Tensor edge_weight, Tensor "
      "edge_attr, Tensor order, Tensor dims, SymInt num_nodes) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CPU, m) {
  m.impl("env_sum_cpu", TORCH_BOX(&fastmlip::env_sum_cpu));
  m.impl("env_sum_backward_cpu", TORCH_BOX(&fastmlip::env_sum_backward_cpu));
  m.impl("env_sum_double_backward_cpu", TORCH_BOX(&fastmlip::env_sum_double_backward_cpu));
}
