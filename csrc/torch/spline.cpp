// fastmlip::spline_cpu and its derivative.
#include "operators/spline.h"

#include "torch/common.h"

namespace fastmlip {

FASTMLIP_KERNELS(Spline, spline)

namespace {

// Checks what could read out of bounds, and gathers the operands of a call.
struct SplineCall {
  int64_t edges, columns;
  Tensor place, first_row, table;

  SplineCall(const Tensor& place_any, const Tensor& first, const Tensor& table_any, int64_t columns)
      : edges(first.dim() ? first.size(0) : 0),
        columns(columns),
        place(packed(place_any)),
        first_row(packed(first)),
        table(packed(table_any)) {
    const ScalarType dtype = table.scalar_type();
    expect(dtype == ScalarType::Double || dtype == ScalarType::Float,
           "table: expected float32 or float64");
    expect(columns >= 0 && table.dim() == 3 && table.size(0) == spline_blocks(columns) &&
               table.size(2) == kSplineBlock,
           "table: expected that of ", columns, " columns");
    expect(first.dim() == 1 && first.scalar_type() == ScalarType::Long,
           "first_row: expected int64 of shape [E]");
    expect_shape("place", place, edges, 1);
    expect(place.scalar_type() == dtype, "place: expected the dtype of table");
    expect_range("first_row", first_row.const_data_ptr<int64_t>(), edges,
                 table.size(1) - kSplinePieces + 1, ", of the table");
  }

  Tensor grad(const Tensor& g) const {
    expect_shape("grad", g, edges, columns);
    expect(g.scalar_type() == table.scalar_type(), "grad: expected the dtype of table");
    return packed(g);
  }

  template <class F>
  void with_type(const F& f) const {
    if (table.scalar_type() == ScalarType::Double)
      f(operands<double>(), spline().forward_f64, spline().backward_f64);
    else
      f(operands<float>(), spline().forward_f32, spline().backward_f32);
  }

  int64_t threads() const { return parts(edges * (columns + kSplineBlock) / (1 << 14)); }

 private:
  template <class T>
  SplineTensors<T> operands() const {
    SplineTensors<T> t{};
    t.edges = edges, t.columns = columns, t.table_rows = table.size(1);
    t.place = place.const_data_ptr<T>(), t.table = table.const_data_ptr<T>();
    t.first_row = first_row.const_data_ptr<int64_t>();
    return t;
  }
};

Tensor spline_cpu(const Tensor& place, const Tensor& first_row, const Tensor& table,
                  int64_t columns) {
  const SplineCall call(place, first_row, table, columns);
  Tensor out = empty({call.edges, columns}, table.scalar_type());
  call.with_type([&](auto t, const auto& forward, const auto&) {
    t.out = out.mutable_data_ptr<std::remove_pointer_t<decltype(t.out)>>();
    forward(t, parallel_for, call.threads());
  });
  return out;
}

Tensor spline_backward_cpu(const Tensor& grad_any, const Tensor& place, const Tensor& first_row,
                           const Tensor& table, int64_t columns) {
  const SplineCall call(place, first_row, table, columns);
  const Tensor grad = call.grad(grad_any);
  Tensor dplace = empty({call.edges, 1}, table.scalar_type());
  call.with_type([&](auto t, const auto&, const auto& backward) {
    using T = std::remove_pointer_t<decltype(t.out)>;
    t.grad = grad.const_data_ptr<T>(), t.dplace = dplace.mutable_data_ptr<T>();
    backward(t, parallel_for, call.threads());
  });
  return dplace;
}

}  // namespace
}  // namespace fastmlip

STABLE_TORCH_LIBRARY_FRAGMENT(fastmlip, m) {
  m.def("spline_cpu(Tensor place, Tensor first_row, Tensor table, SymInt columns) -> Tensor");
  m.def(
      "spline_backward_cpu(Tensor grad, Tensor place, Tensor first_row, Tensor table, SymInt "
      "columns) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CPU, m) {
  m.impl("spline_cpu", TORCH_BOX(&fastmlip::spline_cpu));
  m.impl("spline_backward_cpu", TORCH_BOX(&fastmlip::spline_backward_cpu));
}
