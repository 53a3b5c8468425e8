// fastmlip::irreps_linear_cpu.
#include "../irreps_linear.h"

#include <optional>
#include <vector>

#include "common.h"

namespace fastmlip {

FASTMLIP_KERNELS(IrrepsLinear, irreps_linear)

namespace {

const LinearHeader& check_linear(const Tensor& tables) {
  constexpr int64_t header = sizeof(LinearHeader) / 8, path = sizeof(LinearPath) / 8;
  expect(tables.scalar_type() == ScalarType::Long && tables.is_contiguous() &&
             tables.numel() >= header,
         "tables: not a table of irreps_linear");
  const auto& h = *reinterpret_cast<const LinearHeader*>(tables.const_data_ptr<int64_t>());
  expect(h.num_paths >= 0 && tables.numel() == header + path * h.num_paths,
         "tables: not a table of irreps_linear");
  const auto* paths = reinterpret_cast<const LinearPath*>(&h + 1);
  for (int64_t i = 0; i < h.num_paths; ++i) {
    const LinearPath& p = paths[i];
    expect(p.in >= 0 && p.out >= 0 && p.weight >= 0 && p.mul_in >= 0 && p.mul_out >= 0 &&
               p.dim > 0 && p.in + p.mul_in * p.dim <= h.dim_in &&
               p.out + p.mul_out * p.dim <= h.dim_out &&
               p.weight + p.mul_in * p.mul_out <= h.weight_numel,
           "tables: a path is out of range");
  }
  return h;
}

// Nodes in the order of their types.
struct Sorted {
  std::vector<int64_t> node, type_end;

  Sorted(const int64_t* types, int64_t num_nodes, int64_t num_types)
      : node(num_nodes), type_end(num_types) {
    for (int64_t n = 0; n < num_nodes; ++n) {
      expect(types[n] >= 0 && types[n] < num_types, "types[", n, "] = ", types[n],
             " is out of range: expected 0 <= type < ", num_types);
      ++type_end[types[n]];
    }
    std::vector<int64_t> next(num_types);
    for (int64_t t = 1; t < num_types; ++t) next[t] = type_end[t - 1], type_end[t] += next[t];
    for (int64_t n = 0; n < num_nodes; ++n) node[next[types[n]]++] = n;
  }
};

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
  expect(types_any || num_types == 1, "types: expected where weight has a row for each type");
  const Tensor x = packed(x_any), weight = packed(weight_any);
  expect(weight.scalar_type() == x.scalar_type(), "weight: expected the dtype of x");
  std::optional<Sorted> sorted;
  if (types_any && num_types > 1) {
    const Tensor types = packed(*types_any);
    expect(types.scalar_type() == ScalarType::Long && types.numel() >= nodes,
           "types: expected an int64 entry for each row of x");
    sorted.emplace(types.const_data_ptr<int64_t>(), nodes, num_types);
  }
  const Typed typed{sorted ? sorted->node.data() : nullptr,
                    sorted ? sorted->type_end.data() : nullptr, num_types, nodes};
  Tensor out = empty({nodes, dim_out}, x.scalar_type());
  const int64_t threads = parts(nodes * header.weight_numel / (1 << 18));
  auto apply = [&](auto kernel, auto zero) {
    using T = decltype(zero);
    kernel(x.const_data_ptr<T>(), weight.const_data_ptr<T>(), typed,
           tables.const_data_ptr<int64_t>(), transposed, out.mutable_data_ptr<T>(), parallel_for,
           threads);
  };
  if (x.scalar_type() == ScalarType::Double)
    apply(irreps_linear().apply_f64, 0.0);
  else
    apply(irreps_linear().apply_f32, 0.0f);
  return out;
}

}  // namespace
}  // namespace fastmlip

STABLE_TORCH_LIBRARY_FRAGMENT(fastmlip, m) {
  m.def(
      "irreps_linear_cpu(Tensor x, Tensor weight, Tensor? types, Tensor tables, SymInt dim_out, "
      "bool transposed) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CPU, m) {
  m.impl("irreps_linear_cpu", TORCH_BOX(&fastmlip::irreps_linear_cpu));
}
