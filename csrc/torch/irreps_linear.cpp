// fastmlip::irreps_linear_cpu and the gradient of its weights.
#include "operators/irreps_linear.h"

#include <optional>

#include "torch/common.h"
#include "torch/typed.h"

namespace fastmlip {

FASTMLIP_KERNELS(IrrepsLinear, irreps_linear)

namespace {

constexpr int64_t kMost = INT32_MAX;  // columns, which kernels count in ints

struct Block {
  int64_t begin, mul, dim;

  bool fits(int64_t columns) const {
    return begin >= 0 && mul >= 0 && mul <= kMost && begin <= columns - mul * dim;
  }
  // Whether both can be blocks of one row: the same one, or apart.
  bool agrees(const Block& other) const {
    if (mul == 0 || other.mul == 0) return true;
    if (begin == other.begin) return mul == other.mul && dim == other.dim;
    return begin < other.begin ? begin + mul * dim <= other.begin
                               : other.begin + other.mul * other.dim <= begin;
  }
};

Block input(const LinearPath& p) { return {p.in, p.mul_in, p.dim}; }
Block output(const LinearPath& p) { return {p.out, p.mul_out, p.dim}; }

// In full, at each call, because anybody can pass a table.
const LinearHeader& check_linear(const Tensor& tables) {
  constexpr int64_t header = sizeof(LinearHeader) / 8, path = sizeof(LinearPath) / 8;
  const char* wrong = "tables: not a table of irreps_linear";
  expect(tables.scalar_type() == ScalarType::Long && tables.is_contiguous() &&
             tables.numel() >= header,
         wrong);
  const auto& h = *reinterpret_cast<const LinearHeader*>(tables.const_data_ptr<int64_t>());
  expect(h.num_paths >= 0 && h.num_paths <= tables.numel() &&
             tables.numel() == header + path * h.num_paths,
         wrong);
  const auto is_flag = [](int64_t value) { return value == 0 || value == 1; };
  expect(h.dim_in >= 0 && h.dim_in <= kMost && h.dim_out >= 0 && h.dim_out <= kMost &&
             is_flag(h.ir_mul_in) && is_flag(h.ir_mul_out),
         wrong);
  const auto* paths = reinterpret_cast<const LinearPath*>(&h + 1);
  int64_t weights = 0;
  for (int64_t i = 0; i < h.num_paths; ++i) {
    const LinearPath& p = paths[i];
    expect(p.dim > 0 && p.dim <= kMost && input(p).fits(h.dim_in) && output(p).fits(h.dim_out),
           "tables: path ", i, " is out of range");
    expect(p.weight == weights, "tables: path ", i, " does not begin where the one before ends");
    weights += p.mul_in * p.mul_out;
    expect(weights <= kMost, "tables: too many weights");
    for (int64_t j = 0; j < i; ++j)
      expect(input(p).agrees(input(paths[j])) && output(p).agrees(output(paths[j])),
             "tables: blocks of paths ", j, " and ", i, " overlap");
  }
  expect(weights == h.weight_numel, wrong);
  return h;
}

// What the kernels take of the types: nothing, where there is one set of weights.
struct Types {
  std::optional<Sorted> sorted;
  int64_t num_types, num_nodes;

  Types(const std::optional<Tensor>& types_any, int64_t num_nodes, int64_t num_types)
      : num_types(num_types), num_nodes(num_nodes) {
    expect(types_any || num_types == 1, "types: expected where weight has a row for each type");
    if (!types_any || num_types == 1) return;
    const Tensor types = packed(*types_any);
    expect(types.scalar_type() == ScalarType::Long && types.numel() >= num_nodes,
           "types: expected an int64 entry for each row of x");
    sorted.emplace(types.const_data_ptr<int64_t>(), num_nodes, num_types);
  }

  Typed typed() const {
    return sorted ? sorted->typed() : Typed{nullptr, nullptr, num_types, num_nodes};
  }
};

int64_t threads(int64_t nodes, const LinearHeader& header) {
  return parts(nodes * header.weight_numel / (1 << 18));
}

Tensor irreps_linear_cpu(const Tensor& x_any, const Tensor& weight_any,
                         const std::optional<Tensor>& types_any, const Tensor& tables,
                         int64_t dim_out, bool transposed) {
  const LinearHeader& header = check_linear(tables);
  const int64_t nodes = x_any.dim() ? x_any.size(0) : 0;
  expect_shape("x", x_any, nodes, transposed ? header.dim_out : header.dim_in);
  expect(dim_out == (transposed ? header.dim_in : header.dim_out),
         "dim_out: not the columns of this table");
  const int64_t num_types = weight_any.dim() == 2 ? weight_any.size(0) : 0;
  expect(num_types > 0 && weight_any.size(1) == header.weight_numel,
         "weight: expected weight_numel = ", header.weight_numel, " columns");
  const Tensor x = packed(x_any), weight = packed(weight_any);
  expect(weight.scalar_type() == x.scalar_type(), "weight: expected the dtype of x");
  const Types types(types_any, nodes, num_types);
  Tensor out = empty({nodes, dim_out}, x.scalar_type());
  auto apply = [&](auto kernel, auto zero) {
    using T = decltype(zero);
    kernel(x.const_data_ptr<T>(), weight.const_data_ptr<T>(), types.typed(),
           tables.const_data_ptr<int64_t>(), transposed, out.mutable_data_ptr<T>(), parallel_for,
           threads(nodes, header));
  };
  if (x.scalar_type() == ScalarType::Double)
    apply(irreps_linear().apply_f64, 0.0);
  else
    apply(irreps_linear().apply_f32, 0.0f);
  return out;
}

Tensor irreps_linear_dweight_cpu(const Tensor& x_any, const Tensor& grad_any,
                                 const std::optional<Tensor>& types_any, const Tensor& tables,
                                 int64_t num_types, int64_t weight_numel) {
  const LinearHeader& header = check_linear(tables);
  const int64_t nodes = x_any.dim() ? x_any.size(0) : 0;
  expect_shape("x", x_any, nodes, header.dim_in);
  expect_shape("grad", grad_any, nodes, header.dim_out);
  expect(num_types > 0 && num_types <= kMost, "num_types: expected 1 to ", kMost, ", got ",
         num_types);
  expect(weight_numel == header.weight_numel, "weight_numel: not that of this table");
  const Tensor x = packed(x_any), grad = packed(grad_any);
  expect(grad.scalar_type() == x.scalar_type(), "grad: expected the dtype of x");
  Tensor dweight = empty({num_types, weight_numel}, x.scalar_type());
  const Types types(types_any, nodes, num_types);
  auto apply = [&](auto kernel, auto zero) {
    using T = decltype(zero);
    kernel(x.const_data_ptr<T>(), grad.const_data_ptr<T>(), types.typed(),
           tables.const_data_ptr<int64_t>(), dweight.mutable_data_ptr<T>(), parallel_for,
           threads(nodes, header));
  };
  if (x.scalar_type() == ScalarType::Double)
    apply(irreps_linear().dweight_f64, 0.0);
  else
    apply(irreps_linear().dweight_f32, 0.0f);
  return dweight;
}

}  // namespace
}  // namespace fastmlip

STABLE_TORCH_LIBRARY_FRAGMENT(fastmlip, m) {
  m.def(
      "irreps_linear_cpu(Tensor x, Tensor weight, Tensor? types, Tensor tables, SymInt dim_out, "
      "bool transposed) -> Tensor");
  m.def(
      "irreps_linear_dweight_cpu(Tensor x, Tensor grad, Tensor? types, Tensor tables, SymInt "
      "num_types, SymInt weight_numel) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CPU, m) {
  m.impl("irreps_linear_cpu", TORCH_BOX(&fastmlip::irreps_linear_cpu));
  m.impl("irreps_linear_dweight_cpu", TORCH_BOX(&fastmlip::irreps_linear_dweight_cpu));
}
