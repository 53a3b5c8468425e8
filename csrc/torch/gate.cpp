// fastmlip::gate_cpu and its derivatives.
#include "operators/gate.h"

#include <cmath>
#include <cstring>
#include <tuple>
#include <vector>

#include "torch/common.h"

namespace fastmlip {

FASTMLIP_KERNELS(Gate, gate)

namespace {

constexpr int64_t kMost = INT32_MAX;  // columns, which kernels count in ints

// Columns of a row, each of which belongs to exactly one segment, so that all are written.
class Columns {
 public:
  explicit Columns(int64_t count) : taken_(count), left_(count) {}

  // Whether they were there, and free.
  bool take(int64_t begin, int64_t count) {
    if (begin < 0 || count < 0 || count > left_ || begin > int64_t(taken_.size()) - count)
      return false;
    left_ -= count;
    bool taken = false;
    for (int64_t i = begin; i < begin + count; ++i) taken |= taken_[i], taken_[i] = true;
    return !taken;
  }
  bool all_taken() const { return left_ == 0; }

 private:
  std::vector<uint8_t> taken_;
  int64_t left_;
};

// In full, at each call, because anybody can pass a table.
const GateHeader& check_gate(const Tensor& tables) {
  constexpr int64_t header = sizeof(GateHeader) / 8, segment = sizeof(GateSegment) / 8;
  const char* wrong = "tables: not a table of gate";
  expect(tables.scalar_type() == ScalarType::Long && tables.is_contiguous() &&
             tables.numel() >= header,
         wrong);
  const auto& h = *reinterpret_cast<const GateHeader*>(tables.const_data_ptr<int64_t>());
  expect(h.num_segments >= 0 && h.num_segments <= tables.numel() &&
             tables.numel() == header + segment * h.num_segments && h.dim_in >= 0 &&
             h.dim_in <= kMost && h.dim_out >= 0 && h.dim_out <= kMost,
         wrong);
  const auto* segments = reinterpret_cast<const GateSegment*>(&h + 1);
  Columns read(h.dim_in), written(h.dim_out);
  for (int64_t i = 0; i < h.num_segments; ++i) {
    const GateSegment& s = segments[i];
    double factor;
    std::memcpy(&factor, &s.factor_bits, sizeof(factor));
    expect(s.mul >= 0 && s.mul <= kMost && s.dim >= 0 && s.dim <= kMost &&
               read.take(s.gate, s.mul) && read.take(s.in, s.mul * s.dim) &&
               written.take(s.out, s.mul * std::max<int64_t>(1, s.dim)) && s.activation >= 0 &&
               s.activation < kActivations && std::isfinite(factor),
           "tables: segment ", i, " is out of range");
  }
  expect(read.all_taken() && written.all_taken(), wrong);
  return h;
}

// x, checked, and what all kernels take.
struct GateCall {
  const GateHeader& header;
  const int64_t *tables, nodes;
  const Tensor x;
  GateTensors t{};

  GateCall(const Tensor& x_any, const Tensor& tables_any)
      : header(check_gate(tables_any)),
        tables(tables_any.const_data_ptr<int64_t>()),
        nodes(x_any.dim() ? x_any.size(0) : 0),
        x(packed(x_any)) {
    expect_shape("x", x, nodes, header.dim_in);
    expect(x.scalar_type() == ScalarType::Double || x.scalar_type() == ScalarType::Float,
           "x: expected float32 or float64");
    t.x = x.const_data_ptr(), t.num_nodes = nodes;
  }

  Tensor rows(const char* name, const Tensor& other, int64_t columns) const {
    expect_shape(name, other, nodes, columns);
    expect(other.scalar_type() == x.scalar_type(), name, ": expected the dtype of x");
    return packed(other);
  }

  Tensor rows(int64_t columns) const { return empty({nodes, columns}, x.scalar_type()); }

  void run(Gate::Kernel f32, Gate::Kernel f64) const {
    (x.scalar_type() == ScalarType::Double ? f64 : f32)(
        t, tables, parallel_for, parts(nodes * header.dim_in / (1 << 14), nodes));
  }
};

Tensor gate_cpu(const Tensor& x, const Tensor& tables, int64_t dim_out) {
  GateCall call(x, tables);
  expect(dim_out == call.header.dim_out, "dim_out: not the columns of this table");
  Tensor out = call.rows(dim_out);
  call.t.out = out.mutable_data_ptr();
  call.run(gate().forward_f32, gate().forward_f64);
  return out;
}

Tensor gate_backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& tables) {
  GateCall call(x, tables);
  const Tensor g = call.rows("grad", grad, call.header.dim_out);
  Tensor dx = call.rows(call.header.dim_in);
  call.t.grad = g.const_data_ptr(), call.t.dx = dx.mutable_data_ptr();
  call.run(gate().backward_f32, gate().backward_f64);
  return dx;
}

std::tuple<Tensor, Tensor> gate_double_backward_cpu(const Tensor& hx, const Tensor& grad,
                                                    const Tensor& x, const Tensor& tables) {
  GateCall call(x, tables);
  const Tensor h = call.rows("hx", hx, call.header.dim_in);
  const Tensor g = call.rows("grad", grad, call.header.dim_out);
  Tensor dgrad = call.rows(call.header.dim_out), dx = call.rows(call.header.dim_in);
  call.t.hx = h.const_data_ptr(), call.t.grad = g.const_data_ptr();
  call.t.out = dgrad.mutable_data_ptr(), call.t.dx = dx.mutable_data_ptr();
  call.run(gate().double_backward_f32, gate().double_backward_f64);
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
