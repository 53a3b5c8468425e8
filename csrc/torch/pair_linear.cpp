// fastmlip::pair_linear_cpu and its derivatives.
#include "operators/pair_linear.h"

#include "torch/common.h"

namespace fastmlip {

FASTMLIP_KERNELS(PairLinear, pair_linear)

namespace {

struct Operand {
  const char* name;
  const Tensor& tensor;
  int64_t rows, columns;
};

int64_t size(const Tensor& t, int dim) { return t.dim() > dim ? t.size(dim) : 0; }

Tensor call(const Operand& first, const Operand& second, const Tensor& edge_pair, int64_t inputs,
            int64_t outputs, int64_t rows, int64_t columns, PairLinear::Kernel f32,
            PairLinear::Kernel f64) {
  for (const Operand& one : {first, second})
    expect_shape(one.name, one.tensor, one.rows, one.columns);
  const Tensor a = packed(first.tensor), b = packed(second.tensor), pair = packed(edge_pair);
  const ScalarType dtype = a.scalar_type();
  expect(dtype == ScalarType::Double || dtype == ScalarType::Float, first.name,
         ": expected float32 or float64");
  expect(b.scalar_type() == dtype, second.name, ": expected the dtype of ", first.name);
  const int64_t edges = size(pair, 0);
  expect_pairs(pair, edges);
  Tensor result = empty({rows, columns}, dtype);
  const PairLinearTensors t{a.const_data_ptr(),
                            b.const_data_ptr(),
                            result.mutable_data_ptr(),
                            pair.const_data_ptr<int64_t>(),
                            edges,
                            inputs,
                            outputs};
  (dtype == ScalarType::Double ? f64 : f32)(t, parallel_for,
                                            parts(edges * inputs * outputs / (1 << 18)));
  return result;
}

Tensor pair_linear_cpu(const Tensor& x, const Tensor& weight, const Tensor& edge_pair) {
  const int64_t edges = size(edge_pair, 0), inputs = size(x, 1), outputs = size(weight, 1);
  return call({"x", x, edges, inputs}, {"weight", weight, inputs, outputs}, edge_pair, inputs,
              outputs, edges, outputs, pair_linear().forward_f32, pair_linear().forward_f64);
}

Tensor pair_linear_dx_cpu(const Tensor& weight, const Tensor& grad, const Tensor& edge_pair) {
  const int64_t edges = size(edge_pair, 0), inputs = size(weight, 0), outputs = size(grad, 1);
  return call({"weight", weight, inputs, outputs}, {"grad", grad, edges, outputs}, edge_pair,
              inputs, outputs, edges, inputs, pair_linear().dx_f32, pair_linear().dx_f64);
}

Tensor pair_linear_dweight_cpu(const Tensor& x, const Tensor& grad, const Tensor& edge_pair) {
  const int64_t edges = size(edge_pair, 0), inputs = size(x, 1), outputs = size(grad, 1);
  return call({"x", x, edges, inputs}, {"grad", grad, edges, outputs}, edge_pair, inputs, outputs,
              inputs, outputs, pair_linear().dweight_f32, pair_linear().dweight_f64);
}

}  // namespace
}  // namespace fastmlip

STABLE_TORCH_LIBRARY_FRAGMENT(fastmlip, m) {
  m.def("pair_linear_cpu(Tensor x, Tensor weight, Tensor edge_pair) -> Tensor");
  m.def("pair_linear_dx_cpu(Tensor weight, Tensor grad, Tensor edge_pair) -> Tensor");
  m.def("pair_linear_dweight_cpu(Tensor x, Tensor grad, Tensor edge_pair) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CPU, m) {
  m.impl("pair_linear_cpu", TORCH_BOX(&fastmlip::pair_linear_cpu));
  m.impl("pair_linear_dx_cpu", TORCH_BOX(&fastmlip::pair_linear_dx_cpu));
  m.impl("pair_linear_dweight_cpu", TORCH_BOX(&fastmlip::pair_linear_dweight_cpu));
}
