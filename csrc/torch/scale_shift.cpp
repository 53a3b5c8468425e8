// fastmlip::scale_shift_cpu and fastmlip::scale_shift_sums_cpu.
#include "operators/scale_shift.h"

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>

#include "torch/common.h"

namespace fastmlip {

FASTMLIP_KERNELS(ScaleShift, scale_shift)

namespace {

Rows rows(const char* name, const Tensor& t, int64_t num_atoms) {
  expect((t.dim() == 1 || (t.dim() == 2 && t.size(1) == 1)) && t.size(0) == num_atoms, name,
         ": expected shape [N] or [N, 1]");
  const ScalarType dtype = t.scalar_type();
  expect(dtype == ScalarType::Double || dtype == ScalarType::Float, name,
         ": expected float32 or float64");
  return {t.const_data_ptr(), dtype == ScalarType::Float};
}

Values values(const char* name, const std::optional<Tensor>& t) {
  if (!t) return {nullptr, 1};
  expect(t->scalar_type() == ScalarType::Double && t->dim() == 2 && t->size(1) == 1 &&
             t->numel() > 0 && t->is_cpu(),
         name, ": expected float64 of shape [num_types, 1] or [1, 1] on a CPU");
  return {static_cast<const double*>(t->const_data_ptr()), t->numel()};
}

Types atom_types(const Tensor& t, int64_t num_atoms) {
  const ScalarType dtype = t.scalar_type();
  expect((dtype == ScalarType::Long || dtype == ScalarType::Int) && t.is_cpu(),
         "types: expected int32 or int64 on a CPU");
  expect(t.numel() >= num_atoms, "types: expected at least N = ", num_atoms, " entries, got ",
         t.numel());
  return {t.const_data_ptr(), dtype == ScalarType::Int};
}

void expect_types(int64_t bad, const Types& types, int64_t num_types) {
  if (__builtin_expect(bad < 0, 1)) return;
  const int64_t value = types.narrow ? static_cast<const int32_t*>(types.data)[bad]
                                     : static_cast<const int64_t*>(types.data)[bad];
  fail_range("types", bad, value, num_types, ", the number of types");
}

void expect_counts(const Values& scales, const Values& shifts, int64_t num_types) {
  expect((scales.count == 1 || scales.count == num_types) &&
             (shifts.count == 1 || shifts.count == num_types),
         "shifts: expected as many values as scales");
}

Tensor scale_shift_cpu(const Tensor& x_any, const Tensor& types_any,
                       const std::optional<Tensor>& scales_any,
                       const std::optional<Tensor>& shifts_any, bool single) {
  const Tensor x = packed(x_any), types = packed(types_any);
  const int64_t num_atoms = x.dim() ? x.size(0) : 0;
  const std::optional<Tensor> scales = packed(scales_any), shifts = packed(shifts_any);
  const Values s = values("scales", scales), b = values("shifts", shifts);
  const int64_t num_types = std::max(s.count, b.count);
  expect_counts(s, b, num_types);
  const Rows in = rows("x", x, num_atoms);
  const Types index = num_types > 1 ? atom_types(types, num_atoms) : Types{nullptr, false};
  Tensor out = empty(x.sizes(), single ? ScalarType::Float : ScalarType::Double);
  expect_types(scale_shift().apply(in, index, s, b, {out.data_ptr(), single}, num_atoms,
                                   parallel_for, parts(num_atoms >> 14)),
               index, num_types);
  return out;
}

// With constant scales and shifts, on tensors with memory: torch's own product, whose node of its
// graph costs less than one made in Python, and the shifts, of which no derivative knows, added to
// its result. x is read by torch alone.
Tensor scale_shift_constant_cpu(const Tensor& x, const Tensor& types_any,
                                const std::optional<Tensor>& scales_any,
                                const std::optional<Tensor>& shifts_any) {
  static const double one = 1.0;
  expect(x.dim() == 1 || (x.dim() == 2 && x.size(1) == 1), "x: expected shape [N] or [N, 1]");
  const Tensor types = packed(types_any);
  const std::optional<Tensor> scales = packed(scales_any), shifts = packed(shifts_any);
  Values s = values("scales", scales);
  const Values b = values("shifts", shifts);
  if (!scales) s = {&one, 1};
  const int64_t num_types = std::max(s.count, b.count), num_atoms = x.size(0);
  expect_counts(s, b, num_types);
  const Types index = atom_types(types, num_types > 1 ? num_atoms : 0);  // else none is read
  const auto by_type = [&](Values of, bool add, const Tensor& out) {
    expect_types(scale_shift().by_type(index, of, add, out.mutable_data_ptr<double>(), out.numel(),
                                       parallel_for, parts(out.numel() >> 14)),
                 index, num_types);
  };
  const int64_t single[] = {1};
  const Tensor factor =
      s.count > 1 ? empty(x.sizes(), ScalarType::Double) : empty({single, 1}, ScalarType::Double);
  by_type(s, false, factor);
  std::array<StableIValue, 2> stack{torch::stable::detail::from(x),
                                    torch::stable::detail::from(factor)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::mul", "Tensor", stack.data(), TORCH_ABI_VERSION));
  const Tensor out = torch::stable::detail::to<Tensor>(stack[0]);
  expect(out.is_cpu() && out.is_contiguous() && out.scalar_type() == ScalarType::Double,
         "x: expected real numbers on a CPU");
  if (shifts) by_type(b, true, out);
  return out;
}

std::tuple<Tensor, Tensor> scale_shift_sums_cpu(const Tensor& grad_any, const Tensor& x_any,
                                                const Tensor& types_any, int64_t num_types) {
  const Tensor grad = packed(grad_any), x = packed(x_any), types = packed(types_any);
  const int64_t num_atoms = x.dim() ? x.size(0) : 0;
  expect(num_types > 0, "num_types: expected at least 1");
  const Rows g = rows("grad", grad, num_atoms), in = rows("x", x, num_atoms);
  const Types index = num_types > 1 ? atom_types(types, num_atoms) : Types{nullptr, false};
  Tensor dscales = empty({num_types, 1}, ScalarType::Double);
  Tensor dshifts = empty({num_types, 1}, ScalarType::Double);
  expect_types(scale_shift().sum(g, in, index, dscales.mutable_data_ptr<double>(),
                                 dshifts.mutable_data_ptr<double>(), num_types, num_atoms,
                                 parallel_for, parts(num_atoms >> 14)),
               index, num_types);
  return {dscales, dshifts};
}

}  // namespace
}  // namespace fastmlip

STABLE_TORCH_LIBRARY_FRAGMENT(fastmlip, m) {
  m.def(
      "scale_shift_cpu(Tensor x, Tensor types, Tensor? scales, Tensor? shifts, bool single) -> "
      "Tensor");
  m.def(
      "scale_shift_constant_cpu(Tensor x, Tensor types, Tensor? scales, Tensor? shifts) -> Tensor");
  m.def(
      "scale_shift_sums_cpu(Tensor grad, Tensor x, Tensor types, SymInt num_types) -> (Tensor, "
      "Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CPU, m) {
  m.impl("scale_shift_cpu", TORCH_BOX(&fastmlip::scale_shift_cpu));
  m.impl("scale_shift_sums_cpu", TORCH_BOX(&fastmlip::scale_shift_sums_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CompositeImplicitAutograd, m) {
  m.impl("scale_shift_constant_cpu", TORCH_BOX(&fastmlip::scale_shift_constant_cpu));
}
