// fastmlip::radial_conv_cpu and its derivative.
#include "operators/radial_conv.h"

#include <optional>
#include <tuple>

#include "torch/common.h"
#include "torch/tables.h"

namespace fastmlip {

FASTMLIP_KERNELS(RadialConv, radial_conv)

namespace {

using Maybe = std::optional<Tensor>;

struct RadialConvCall {
  Tensor x, a, radial, weight;
  Maybe hidden, pair, first;
  Tensor order;
  const int64_t* tables;
  int64_t nodes, edges, dim_out, weight_numel;
  std::optional<SharedRows> shared;

  RadialConvCall(const Tensor& x_any, const Tensor& a_any, const Tensor& radial_any,
                 const Tensor& weight_any, const Maybe& hidden_any, const Maybe& edge_pair,
                 const Maybe& first_row, const Tensor& order_any, const Tensor& tables_any,
                 int64_t dim_out, int64_t weight_numel, EdgeOrder::Sides sides)
      : x(packed(x_any)),
        a(packed(a_any)),
        radial(packed(radial_any)),
        weight(packed(weight_any)),
        hidden(hidden_any ? Maybe(packed(*hidden_any)) : std::nullopt),
        pair(edge_pair ? Maybe(packed(*edge_pair)) : std::nullopt),
        first(first_row ? Maybe(packed(*first_row)) : std::nullopt),
        order(order_any),
        tables(tables_any.const_data_ptr<int64_t>()),
        nodes(x.dim() ? x.size(0) : 0),
        edges(a.dim() ? a.size(0) : 0),
        dim_out(dim_out),
        weight_numel(weight_numel) {
    const TableSizes sizes = check_tables(tables_any);
    expect(sizes.dim3 == dim_out, "dim_out: not the columns of this problem");
    expect(sizes.weight_numel == weight_numel, "weight_numel: not that of this problem");
    expect_shape("x", x, nodes, sizes.dim1);
    expect_shape("edge_attr", a, edges, sizes.dim2);
    expect(radial.dim() == 2 && radial.size(0) == edges, "radial: expected a row for each edge");
    expect(!pair || !first, "edge_pair and first_row: give one of them at most");
    expect(!hidden || !first, "hidden and first_row: give one of them at most");
    first ? check_spline() : check_network();
    if (pair) expect_pairs(*pair, edges);
    check_order(order, nodes, edges, sides);
    if (!first)
      shared.emplace(index(pair), edges, sides == EdgeOrder::kBoth, parallel_for, threads());
  }

  static const int64_t* index(const Maybe& t) { return t ? t->const_data_ptr<int64_t>() : nullptr; }

  void check_spline() const {
    expect(weight.dim() == 3 && weight.size(0) == spline_blocks(weight_numel) &&
               weight.size(2) == kSplineBlock,
           "weight: expected the table of weight_numel columns");
    expect(radial.size(1) == 1, "radial: expected one column");
    expect(first->dim() == 1 && first->size(0) == edges,
           "first_row: expected an entry for each edge");
    const int64_t rows = weight.size(1) - kSplinePieces + 1;
    expect_range("first_row", first->const_data_ptr<int64_t>(), edges, rows, ", of the table");
  }

  void check_network() const {
    expect(weight.dim() == 2 && weight.size(1) == weight_numel,
           "weight: expected weight_numel columns");
    const int64_t width = radial.size(1), rows = weight.size(0);
    if (hidden)
      expect(rows > 0 && depth() > 0 && hidden->numel() == (width + (depth() - 1) * rows) * rows,
             "hidden: its layers do not fit radial and weight");
    else
      expect(rows == width, "weight: rows do not fit the columns of radial");
  }

  // of the hidden layers
  int64_t depth() const {
    const int64_t width = weight.size(0);
    return hidden ? 1 + (hidden->numel() - radial.size(1) * width) / (width * width) : 0;
  }

  int64_t threads() const { return parts(edges * (weight_numel + 64) / (1 << 15), nodes); }

  template <class T>
  RadialTensors<T> pointers() const {
    RadialTensors<T> t{};
    t.x = x.const_data_ptr<T>(), t.edge_attr = a.const_data_ptr<T>();
    t.radial = radial.const_data_ptr<T>(), t.weight = weight.const_data_ptr<T>();
    t.hidden = hidden ? hidden->const_data_ptr<T>() : nullptr;
    t.shared = shared ? &*shared : nullptr, t.first_row = index(first);
    t.inputs = radial.size(1), t.weight_rows = first ? weight.size(1) : 0,
    t.width = hidden ? weight.size(0) : t.inputs, t.depth = depth();
    return t;
  }

  EdgeOrder edge_order() const { return {order.const_data_ptr<int64_t>(), nodes, edges}; }
};

// Rows of edge_weight that the forward pass leaves to the backward pass lie in the memory of a
// tensor that shows none of them: how many they are follows from edge_pair, and compiled graphs
// need shapes that do not. Whoever hands on a copy, which has no such memory, has the rows made
// again.
Tensor no_rows(const Tensor& rows, int64_t columns) {
  const int64_t sizes[] = {0, columns}, strides[] = {std::max<int64_t>(1, columns), 1};
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(rows.get(), 2, sizes, strides, 0, &handle));
  return Tensor(handle);
}

std::optional<Tensor> rows_behind(const Tensor& kept, int64_t rows, int64_t columns) {
  int64_t bytes;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(kept.get(), &bytes));
  const int64_t item = kept.scalar_type() == ScalarType::Double ? 8 : 4;
  if (rows * columns == 0 || bytes != rows * columns * item) return std::nullopt;
  const int64_t sizes[] = {rows, columns}, strides[] = {columns, 1};
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(kept.get(), 2, sizes, strides, 0, &handle));
  return Tensor(handle);
}

std::tuple<Tensor, Tensor> radial_conv_cpu(const Tensor& x, const Tensor& a, const Tensor& radial,
                                           const Tensor& weight, const Maybe& hidden,
                                           const Maybe& edge_pair, const Maybe& first_row,
                                           const Tensor& order, const Tensor& tables,
                                           int64_t dim_out, int64_t weight_numel, int64_t room) {
  const RadialConvCall call(x, a, radial, weight, hidden, edge_pair, first_row, order, tables,
                            dim_out, weight_numel, EdgeOrder::kReceivers);
  expect(room >= 0, "room: expected a number of rows, got ", room);
  Tensor out = empty({call.nodes, dim_out}, call.x.scalar_type());
  const int64_t rows = call.shared && call.shared->size() <= room ? call.shared->size() : 0;
  Tensor kept = empty({rows, weight_numel}, call.x.scalar_type());
  auto run = [&](auto kernel, auto t) {
    using T = std::remove_pointer_t<decltype(t.out)>;
    t.out = out.mutable_data_ptr<T>();
    t.kept = rows ? kept.mutable_data_ptr<T>() : nullptr;
    kernel(t, call.edge_order(), call.tables, parallel_for, call.threads());
  };
  if (call.x.scalar_type() == ScalarType::Double)
    run(radial_conv().forward_f64, call.pointers<double>());
  else
    run(radial_conv().forward_f32, call.pointers<float>());
  return {out, rows ? no_rows(kept, weight_numel) : kept};
}

std::tuple<Tensor, Tensor, Tensor> radial_conv_backward_cpu(
    const Tensor& grad, const Tensor& x, const Tensor& a, const Tensor& radial,
    const Tensor& weight, const Maybe& hidden, const Maybe& edge_pair, const Maybe& first_row,
    const Tensor& order, const Tensor& tables, const Tensor& kept, int64_t dim_out,
    int64_t weight_numel, int64_t room) {
  const RadialConvCall call(x, a, radial, weight, hidden, edge_pair, first_row, order, tables,
                            dim_out, weight_numel, EdgeOrder::kBoth);
  expect(room >= 0, "room: expected a number of rows, got ", room);
  expect_shape("grad", grad, call.nodes, dim_out);
  expect(kept.dim() == 2 && kept.size(0) == 0 && kept.size(1) == weight_numel &&
             kept.scalar_type() == call.x.scalar_type(),
         "kept: not what the forward operator returned");
  const Maybe rows =
      call.shared ? rows_behind(kept, call.shared->size(), weight_numel) : std::nullopt;
  const Tensor g = packed(grad);
  Tensor dx = empty_as(call.x), da = empty_as(call.a), dradial = empty_as(call.radial);
  auto run = [&](auto kernel, auto t) {
    using T = std::remove_pointer_t<decltype(t.out)>;
    t.grad = g.const_data_ptr<T>(), t.dx = dx.mutable_data_ptr<T>();
    t.da = da.mutable_data_ptr<T>(), t.dradial = dradial.mutable_data_ptr<T>();
    t.kept = rows ? const_cast<T*>(rows->const_data_ptr<T>()) : nullptr, t.room = room;
    kernel(t, call.edge_order(), call.tables, parallel_for, call.threads());
  };
  if (call.x.scalar_type() == ScalarType::Double)
    run(radial_conv().backward_f64, call.pointers<double>());
  else
    run(radial_conv().backward_f32, call.pointers<float>());
  return {dx, da, dradial};
}

}  // namespace
}  // namespace fastmlip

STABLE_TORCH_LIBRARY_FRAGMENT(fastmlip, m) {
  m.def(
      "radial_conv_cpu(Tensor x, Tensor edge_attr, Tensor radial, Tensor weight, Tensor? "
      "hidden, Tensor? edge_pair, Tensor? first_row, Tensor order, Tensor tables, SymInt dim_out, "
      "SymInt weight_numel, SymInt room) -> (Tensor, Tensor)");
  m.def(
      "radial_conv_backward_cpu(Tensor grad, Tensor x, Tensor edge_attr, Tensor radial, Tensor "
      "weight, Tensor? hidden, Tensor? edge_pair, Tensor? first_row, Tensor order, Tensor tables, "
      "Tensor kept, SymInt dim_out, SymInt weight_numel, SymInt room) "
      "-> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CPU, m) {
  m.impl("radial_conv_cpu", TORCH_BOX(&fastmlip::radial_conv_cpu));
  m.impl("radial_conv_backward_cpu", TORCH_BOX(&fastmlip::radial_conv_backward_cpu));
}
