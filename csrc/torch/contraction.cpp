// fastmlip::contraction_cpu and its derivatives.
#include "operators/contraction.h"

#include <tuple>

#include "torch/common.h"
#include "torch/tables.h"

namespace fastmlip {

FASTMLIP_KERNELS(Contraction, contraction)

namespace {

int64_t size(const Tensor& t, int dim) { return t.dim() > dim ? t.size(dim) : 0; }

// Checks what could read out of bounds, and gathers the operands of a call.
struct ContractionCall {
  TableSizes sizes;
  int64_t edges, nodes, channels, paths;
  Tensor x, edge_attr, env, weight, order, tables;
  bool factors;

  ContractionCall(const Tensor& x, const Tensor& edge_attr, const Tensor& env, const Tensor& weight,
                  const Tensor& order, const Tensor& tables)
      : sizes(check_tables(tables)),
        edges(size(x, 0)),
        nodes(size(env, 0)),
        channels(size(x, 2)),
        paths(sizes.weight_numel),
        x(packed(x)),
        edge_attr(packed(edge_attr)),
        env(packed(env)),
        weight(packed(weight)),
        order(packed(order)),
        tables(tables),
        factors(size(edge_attr, 1) > 0) {
    const auto& header = *reinterpret_cast<const Header*>(tables.const_data_ptr<int64_t>());
    const int64_t rows = size(x, 1);
    expect(x.dim() == 3 && (factors ? rows == 1 || rows == header.num_blocks1 : rows == sizes.dim1),
           "x: expected shape [E, irreps_in1.dim, U], or with edge_attr [E, 1 or irreps, U]");
    expect_shape("edge_attr", edge_attr, edges, factors ? sizes.dim1 : 0);
    expect_rows("env", env, nodes, sizes.dim2);
    expect_shape("weight", weight, paths, channels);
    check_order(order, nodes, edges, EdgeOrder::kReceivers);
    const ProductTable table(tables.const_data_ptr<int64_t>());
    for (int64_t i = 0; i < header.num_blocks1 + header.num_blocks3; ++i)
      expect(table.in[i].mul == 1, "tables: expected irreps of multiplicity one");
    expect(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
           "x: expected float32 or float64");
    for (const Tensor* t : {&edge_attr, &env, &weight})
      expect(t->scalar_type() == x.scalar_type(), "contraction: expected operands of one dtype");
  }

  void expect_rows(const char* name, const Tensor& t, int64_t rows, int64_t dim) const {
    expect(t.dim() == 3 && t.size(0) == rows && t.size(1) == dim && t.size(2) == channels, name,
           ": expected shape [", rows, ", ", dim, ", ", channels, "]");
  }
  Tensor like(const char* name, const Tensor& t, const Tensor& other) const {
    bool same = t.dim() == other.dim() && t.scalar_type() == other.scalar_type();
    for (int i = 0; same && i < t.dim(); ++i) same = t.size(i) == other.size(i);
    expect(same, name, ": expected the shape and dtype of its operand");
    return packed(t);
  }
  Tensor grad(const Tensor& g) const {
    expect_rows("grad", g, edges, sizes.dim3);
    expect(g.scalar_type() == x.scalar_type(), "grad: expected the dtype of x");
    return packed(g);
  }
  Tensor empty_out() const { return empty({edges, sizes.dim3, channels}, x.scalar_type()); }

  template <class T>
  ContractionTensors<T> operands() const {
    ContractionTensors<T> t{};
    t.channels = channels, t.x_rows = x.size(1);
    t.x = x.const_data_ptr<T>(), t.env = env.const_data_ptr<T>();
    t.edge_attr = factors ? edge_attr.const_data_ptr<T>() : nullptr;
    t.weight = weight.const_data_ptr<T>();
    return t;
  }

  template <class T>
  void run(ContractionTensors<T>& t, ContractionKernel<T> kernel) const {
    if (channels == 0) {  // all that is not empty is a sum of nothing
      if (t.da) std::fill_n(t.da, edges * sizes.dim1, T(0));
      return;
    }
    const EdgeOrder edge_order(order.const_data_ptr<int64_t>(), nodes, edges);
    kernel(t, edge_order, tables.const_data_ptr<int64_t>(), parallel_for,
           parts(edges * sizes.dim1 * channels / (1 << 13), nodes));
  }

  // f(pointers, kernels of their type)
  template <class F>
  void with_type(const F& f) const {
    const Contraction& kernels = contraction();
    if (x.scalar_type() == ScalarType::Double)
      f(operands<double>(), kernels.forward_f64, kernels.backward_f64, kernels.double_backward_f64);
    else
      f(operands<float>(), kernels.forward_f32, kernels.backward_f32, kernels.double_backward_f32);
  }
};

template <class T, class S>
const T* in(const ContractionTensors<T>&, const S& t) {
  return t.template const_data_ptr<T>();
}
template <class T, class S>
T* out(const ContractionTensors<T>&, S& t) {
  return t.template mutable_data_ptr<T>();
}

Tensor contraction_cpu(const Tensor& x, const Tensor& edge_attr, const Tensor& env,
                       const Tensor& weight, const Tensor& order, const Tensor& tables,
                       int64_t dim_out) {
  const ContractionCall call(x, edge_attr, env, weight, order, tables);
  expect(dim_out == call.sizes.dim3, "dim_out: not the columns of this problem");
  Tensor result = call.empty_out();
  call.with_type([&](auto t, auto forward, auto, auto) {
    t.out = out(t, result);
    call.run(t, forward);
  });
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> contraction_backward_cpu(
    const Tensor& grad, const Tensor& x, const Tensor& edge_attr, const Tensor& env,
    const Tensor& weight, const Tensor& order, const Tensor& tables, int64_t) {
  const ContractionCall call(x, edge_attr, env, weight, order, tables);
  const Tensor g = call.grad(grad);
  Tensor dx = empty_as(x), da = empty_as(edge_attr), denv = empty_as(env), dw = empty_as(weight);
  call.with_type([&](auto t, auto, auto backward, auto) {
    t.grad = in(t, g), t.dx = out(t, dx), t.da = call.factors ? out(t, da) : nullptr;
    t.denv = out(t, denv), t.dweight = out(t, dw);
    call.run(t, backward);
  });
  return {dx, da, denv, dw};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> contraction_double_backward_cpu(
    const Tensor& hx, const Tensor& ha, const Tensor& henv, const Tensor& hweight,
    const Tensor& grad, const Tensor& x, const Tensor& edge_attr, const Tensor& env,
    const Tensor& weight, const Tensor& order, const Tensor& tables, int64_t) {
  const ContractionCall call(x, edge_attr, env, weight, order, tables);
  const Tensor g = call.grad(grad), h1 = call.like("hx", hx, x),
               h2 = call.like("ha", ha, edge_attr), h3 = call.like("henv", henv, env),
               h4 = call.like("hweight", hweight, weight);
  Tensor gg = call.empty_out(), gx = empty_as(x), ga = empty_as(edge_attr), genv = empty_as(env),
         gw = empty_as(weight);
  call.with_type([&](auto t, auto, auto, auto double_backward) {
    t.grad = in(t, g), t.hx = in(t, h1), t.henv = in(t, h3), t.hweight = in(t, h4);
    t.out = out(t, gg), t.dx = out(t, gx), t.denv = out(t, genv), t.dweight = out(t, gw);
    t.ha = call.factors ? in(t, h2) : nullptr, t.da = call.factors ? out(t, ga) : nullptr;
    call.run(t, double_backward);
  });
  return {gg, gx, ga, genv, gw};
}

}  // namespace
}  // namespace fastmlip

STABLE_TORCH_LIBRARY_FRAGMENT(fastmlip, m) {
  m.def(
      "contraction_cpu(Tensor x, Tensor edge_attr, Tensor env, Tensor weight, Tensor order, Tensor "
      "tables, SymInt dim_out) -> Tensor");
  m.def(
      "contraction_backward_cpu(Tensor grad, Tensor x, Tensor edge_attr, Tensor env, Tensor "
      "weight, "
      "Tensor order, Tensor tables, SymInt dim_out) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "contraction_double_backward_cpu(Tensor hx, Tensor ha, Tensor henv, Tensor hweight, Tensor "
      "grad, Tensor x, Tensor edge_attr, Tensor env, Tensor weight, Tensor order, Tensor tables, "
      "SymInt dim_out) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CPU, m) {
  m.impl("contraction_cpu", TORCH_BOX(&fastmlip::contraction_cpu));
  m.impl("contraction_backward_cpu", TORCH_BOX(&fastmlip::contraction_backward_cpu));
  m.impl("contraction_double_backward_cpu", TORCH_BOX(&fastmlip::contraction_double_backward_cpu));
}
