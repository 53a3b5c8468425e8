// fastmlip::symmetric_contraction_cpu and its derivatives.
#include "operators/symmetric_contraction.h"

#include <optional>
#include <tuple>

#include "torch/common.h"
#include "torch/typed.h"

namespace fastmlip {

FASTMLIP_KERNELS(SymmetricContraction, symmetric_contraction)

namespace {

constexpr int64_t kMost = 1 << 16;       // inputs, outputs
constexpr int64_t kMostTerms = 1 << 24;  // and types

// In full, at each call, because anybody can pass a table.
const PolynomialHeader& check_polynomial(const Tensor& tables) {
  constexpr int64_t header = sizeof(PolynomialHeader) / 8, row = sizeof(PolynomialTerm) / 8;
  const char* wrong = "tables: not a table of Polynomial.tables()";
  expect(tables.scalar_type() == ScalarType::Long && tables.is_contiguous() &&
             tables.numel() >= header,
         wrong);
  const auto& h = *reinterpret_cast<const PolynomialHeader*>(tables.const_data_ptr<int64_t>());
  expect(h.inputs >= 0 && h.inputs < kMost && h.outputs >= 0 && h.outputs < kMost &&
             h.num_terms >= 0 && h.num_terms <= kMostTerms &&
             h.values == header + row * h.num_terms && h.values <= tables.numel(),
         wrong);
  const auto* terms = reinterpret_cast<const PolynomialTerm*>(&h + 1);
  const auto tied = [](const PolynomialTerm& t) { return std::tie(t.output, t.i, t.j, t.k); };
  for (int64_t n = 0; n < h.num_terms; ++n) {
    const auto& [output, i, j, k] = terms[n];
    expect(output >= 0 && output < h.outputs && i > 0 && i <= h.inputs &&
               (j == 0 ? k == 0 : j >= i && j <= h.inputs) && (k == 0 || (k >= j && k <= h.inputs)),
           "tables: term ", n, " is out of range");
    expect(n == 0 || tied(terms[n - 1]) < tied(terms[n]), "tables: term ", n,
           " does not come after the one before");
  }
  return h;
}

// Checks what could read out of bounds, and gathers the operands of a call.
struct Call {
  const PolynomialHeader& header;
  const Tensor x, types, tables;
  const int64_t nodes, channels, num_types;
  std::optional<Tensor> along, coefficients, grad;

  Call(const Tensor& x_any, const Tensor& types_any, const Tensor& tables, int64_t num_types)
      : header(check_polynomial(tables)),
        x(packed(x_any)),
        types(packed(types_any)),
        tables(tables),
        nodes(x.dim() == 3 ? x.size(0) : 0),
        channels(x.dim() == 3 ? x.size(2) : 0),
        num_types(num_types) {
    expect(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
           "x: expected float32 or float64");
    check("x", x, nodes, header.inputs);
    expect(channels <= INT32_MAX, "x: expected at most ", INT32_MAX, " channels");
    expect(types.scalar_type() == ScalarType::Long && types.dim() == 1 && types.size(0) >= nodes,
           "types: expected an int64 entry for each row of x");
    expect(num_types > 0 && num_types <= kMostTerms, "num_types: expected 1 to ", kMostTerms,
           ", got ", num_types);
  }

  Tensor check(const char* name, const Tensor& t, int64_t rows, int64_t columns) const {
    expect(t.dim() == 3 && t.size(0) == rows && t.size(1) == columns && t.size(2) == channels, name,
           ": expected shape [", rows, ", ", columns, ", ", channels, "]");
    expect(t.scalar_type() == x.scalar_type(), name, ": expected the dtype of x");
    return packed(t);
  }
  void take_along(const std::optional<Tensor>& t) {
    if (t) along = check("along", *t, nodes, header.inputs);
  }
  void take_coefficients(const Tensor& t) {
    coefficients = check("coefficients", t, num_types, header.num_terms);
  }
  void take_grad(const Tensor& t) { grad = check("grad", t, nodes, header.outputs); }

  template <class Kernel32, class Kernel64>
  Tensor run(Kernel32 kernel32, Kernel64 kernel64, int64_t rows, int64_t columns) const {
    Tensor result = empty({rows, columns, channels}, x.scalar_type());
    const Sorted sorted(types.const_data_ptr<int64_t>(), nodes, num_types);
    const auto launch = [&](auto kernel, auto zero) {
      using T = decltype(zero);
      const auto data = [](const std::optional<Tensor>& t) {
        return t ? t->const_data_ptr<T>() : nullptr;
      };
      const PolynomialTensors<T> t{channels, x.const_data_ptr<T>(), data(along), data(coefficients),
                                   data(grad)};
      kernel(t, sorted.typed(), tables.const_data_ptr<int64_t>(),
             result.template mutable_data_ptr<T>(), parallel_for,
             parts(nodes * header.num_terms * channels / (1 << 18)));
    };
    if (x.scalar_type() == ScalarType::Double)
      launch(kernel64, 0.0);
    else
      launch(kernel32, 0.0f);
    return result;
  }
};

int64_t rows(const Tensor& t) { return t.dim() ? t.size(0) : 0; }

Tensor symmetric_contraction_cpu(const Tensor& x, const std::optional<Tensor>& along,
                                 const Tensor& coefficients, const Tensor& types,
                                 const Tensor& tables, int64_t outputs) {
  Call call(x, types, tables, rows(coefficients));
  call.take_along(along);
  call.take_coefficients(coefficients);
  expect(outputs == call.header.outputs, "outputs: not those of this table");
  const auto& kernels = symmetric_contraction();
  return call.run(kernels.value_f32, kernels.value_f64, call.nodes, outputs);
}

Tensor symmetric_contraction_dx_cpu(const Tensor& grad, const Tensor& x,
                                    const std::optional<Tensor>& along, const Tensor& coefficients,
                                    const Tensor& types, const Tensor& tables) {
  Call call(x, types, tables, rows(coefficients));
  call.take_grad(grad);
  call.take_along(along);
  call.take_coefficients(coefficients);
  const auto& kernels = symmetric_contraction();
  return call.run(kernels.dx_f32, kernels.dx_f64, call.nodes, call.header.inputs);
}

Tensor symmetric_contraction_dcoefficients_cpu(const Tensor& grad, const Tensor& x,
                                               const std::optional<Tensor>& along,
                                               const Tensor& types, const Tensor& tables,
                                               int64_t num_types, int64_t terms) {
  Call call(x, types, tables, num_types);
  call.take_grad(grad);
  call.take_along(along);
  expect(terms == call.header.num_terms, "terms: not those of this table");
  const auto& kernels = symmetric_contraction();
  return call.run(kernels.dcoefficients_f32, kernels.dcoefficients_f64, num_types, terms);
}

}  // namespace
}  // namespace fastmlip

STABLE_TORCH_LIBRARY_FRAGMENT(fastmlip, m) {
  m.def(
      "symmetric_contraction_cpu(Tensor x, Tensor? along, Tensor coefficients, Tensor types, "
      "Tensor "
      "tables, SymInt outputs) -> Tensor");
  m.def(
      "symmetric_contraction_dx_cpu(Tensor grad, Tensor x, Tensor? along, Tensor coefficients, "
      "Tensor types, Tensor tables) -> Tensor");
  m.def(
      "symmetric_contraction_dcoefficients_cpu(Tensor grad, Tensor x, Tensor? along, Tensor types, "
      "Tensor tables, SymInt num_types, SymInt terms) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CPU, m) {
  m.impl("symmetric_contraction_cpu", TORCH_BOX(&fastmlip::symmetric_contraction_cpu));
  m.impl("symmetric_contraction_dx_cpu", TORCH_BOX(&fastmlip::symmetric_contraction_dx_cpu));
  m.impl("symmetric_contraction_dcoefficients_cpu",
         TORCH_BOX(&fastmlip::symmetric_contraction_dcoefficients_cpu));
}
