// fastmlip::gate_cpu and its derivatives.
#include "../gate.h"

#include <tuple>

#include "common.h"

namespace fastmlip {

FASTMLIP_KERNELS(Gate, gate)

namespace {

// Every column of x and of the result belongs to exactly one segment, so that all are written.
const GateHeader& check_gate(const Tensor& tables) {
  constexpr int64_t header = sizeof(GateHeader) / 8, segment = sizeof(GateSegment) / 8;
  const std::string wrong = "tables: not a table of gate";
  expect(tables.scalar_type() == ScalarType::Long && tables.is_contiguous() &&
             tables.numel() >= header,
         wrong);
  const auto& h = *reinterpret_cast<const GateHeader*>(tables.const_data_ptr<int64_t>());
  expect(h.num_segments >= 0 && tables.numel() == header + segment * h.num_segments, wrong);
  const auto* segments = reinterpret_cast<const GateSegment*>(&h + 1);
  int64_t read = 0, written = 0;
  for (int64_t i = 0; i < h.num_segments; ++i) {
    const GateSegment& s = segments[i];
    const int64_t size = s.mul * std::max<int64_t>(1, s.dim);
    expect(s.gate >= 0 && s.in >= 0 && s.out >= 0 && s.mul >= 0 && s.dim >= 0 &&
               s.gate + s.mul <= h.dim_in && s.in + s.mul * s.dim <= h.dim_in &&
               s.out + size <= h.dim_out && s.activation >= 0 && s.activation < kActivations,
           wrong);
    read += s.mul * (1 + s.dim);
    written += size;
  }
  expect(read == h.dim_in && written == h.dim_out, wrong);
  return h;
}

int64_t gate_parts(int64_t nodes, int64_t columns) {
  return parts(nodes * columns / (1 << 15), nodes);
}

Tensor gate_cpu(const Tensor& x_any, const Tensor& tables, int64_t dim_out) {
  const GateHeader& h = check_gate(tables);
  const Tensor x = packed(x_any);
  const int64_t nodes = x.dim() ? x.size(0) : 0;
  expect_shape("x", x, nodes, h.dim_in);
  expect(dim_out == h.dim_out, "dim_out: not the columns of this table");
  Tensor out = torch::stable::new_empty(x, {nodes, dim_out});
  const bool wide = x.scalar_type() == ScalarType::Double;
  expect(wide || x.scalar_type() == ScalarType::Float, "x: expected float32 or float64");
  GateTensors t{};
  t.x = x.const_data_ptr(), t.out = out.mutable_data_ptr(), t.num_nodes = nodes;
  (wide ? gate().forward_f64 : gate().forward_f32)(t, tables.const_data_ptr<int64_t>(),
                                                   parallel_for, gate_parts(nodes, h.dim_in));
  return out;
}

Tensor gate_backward_cpu(const Tensor& grad_any, const Tensor& x_any, const Tensor& tables) {
  const GateHeader& h = check_gate(tables);
  const Tensor x = packed(x_any), grad = packed(grad_any);
  const int64_t nodes = x.dim() ? x.size(0) : 0;
  expect_shape("x", x, nodes, h.dim_in);
  expect_shape("grad", grad, nodes, h.dim_out);
  Tensor dx = torch::stable::new_empty(x, {nodes, h.dim_in});
  const bool wide = x.scalar_type() == ScalarType::Double;
  expect((wide || x.scalar_type() == ScalarType::Float) && grad.scalar_type() == x.scalar_type(),
         "grad: expected the dtype of x, float32 or float64");
  GateTensors t{};
  t.x = x.const_data_ptr(), t.grad = grad.const_data_ptr(), t.dx = dx.mutable_data_ptr();
  t.num_nodes = nodes;
  (wide ? gate().backward_f64 : gate().backward_f32)(t, tables.const_data_ptr<int64_t>(),
                                                     parallel_for, gate_parts(nodes, h.dim_in));
  return dx;
}

std::tuple<Tensor, Tensor> gate_double_backward_cpu(const Tensor& hx_any, const Tensor& grad_any,
                                                    const Tensor& x_any, const Tensor& tables) {
  const GateHeader& h = check_gate(tables);
  const Tensor x = packed(x_any), grad = packed(grad_any), hx = packed(hx_any);
  const int64_t nodes = x.dim() ? x.size(0) : 0;
  expect_shape("x", x, nodes, h.dim_in);
  expect_shape("grad", grad, nodes, h.dim_out);
  expect_shape("hx", hx, nodes, h.dim_in);
  Tensor dgrad = torch::stable::new_empty(x, {nodes, h.dim_out});
  Tensor dx = torch::stable::new_empty(x, {nodes, h.dim_in});
  const bool wide = x.scalar_type() == ScalarType::Double;
  expect((wide || x.scalar_type() == ScalarType::Float) && grad.scalar_type() == x.scalar_type() &&
             hx.scalar_type() == x.scalar_type(),
         "grad, hx: expected the dtype of x, float32 or float64");
  GateTensors t{};
  t.x = x.const_data_ptr(), t.grad = grad.const_data_ptr(), t.hx = hx.const_data_ptr();
  t.out = dgrad.mutable_data_ptr(), t.dx = dx.mutable_data_ptr(), t.num_nodes = nodes;
  (wide ? gate().double_backward_f64 : gate().double_backward_f32)(
      t, tables.const_data_ptr<int64_t>(), parallel_for, gate_parts(nodes, h.dim_in));
  return {dgrad, dx};
}

}  // namespace
}  // namespace fastmlip

STABLE_TORCH_LIBRARY_FRAGMENT(fastmlip, m) {
  m.def("gate_cpu(Tensor x, Tensor tables, SymInt dim_out) -> Tensor");
  m.def("gate_backward_cpu(Tensor grad, Tensor x, Tensor tables) -> Tensor");
  m.def(
      "gate_double_backward_cpu(Tensor hx, Tensor grad, Tensor x, Tensor tables) -> (Tensor, "
      "Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CPU, m) {
  m.impl("gate_cpu", TORCH_BOX(&fastmlip::gate_cpu));
  m.impl("gate_backward_cpu", TORCH_BOX(&fastmlip::gate_backward_cpu));
  m.impl("gate_double_backward_cpu", TORCH_BOX(&fastmlip::gate_double_backward_cpu));
}
