// fastmlip::scalar_mlp_cpu and its derivatives.
#include "operators/scalar_mlp.h"

#include <numeric>
#include <tuple>
#include <vector>

#include "torch/common.h"

namespace fastmlip {

FASTMLIP_KERNELS(ScalarMlp, scalar_mlp)

namespace {

using Maybe = std::optional<Tensor>;

// Rows may lie anywhere, their numbers one behind the other.
Maybe with_packed_rows(const Maybe& t) {
  return !t || (t->dim() == 2 && (t->stride(1) == 1 || t->size(1) < 2)) ? t : packed(t);
}

struct ScalarMlpCall {
  Tensor x, weights;
  Maybe x2;
  std::vector<int64_t> widths;
  ScalarType dtype;
  int64_t rows, hidden = 0, num_weights = 0;

  ScalarMlpCall(const Tensor& x_any, const Maybe& x2_any, const Tensor& weights_any,
                const std::vector<int64_t>& widths)
      : x(*with_packed_rows(x_any)),
        weights(packed(weights_any)),
        x2(with_packed_rows(x2_any)),
        widths(widths),
        dtype(x.scalar_type()),
        rows(x.dim() ? x.size(0) : 0) {
    expect(dtype == ScalarType::Double || dtype == ScalarType::Float,
           "x: expected float32 or float64");
    expect(widths.size() >= 2, "widths: expected those of the input and of the result at least");
    for (size_t i = 0; i < widths.size(); ++i) {
      expect(widths[i] >= 0, "widths: expected numbers of columns");
      if (i > 0) num_weights += widths[i - 1] * widths[i];
      if (i > 0 && i + 1 < widths.size()) hidden += widths[i];
    }
    expect_shape("x", x, rows, widths.front() - columns(x2));
    expect_rows("x2", x2, columns(x2));
    expect(weights.dim() == 1 && weights.numel() == num_weights && weights.scalar_type() == dtype,
           "weights: expected ", num_weights, " in one dimension, of the dtype of x");
  }

  static int64_t columns(const Maybe& t) { return t && t->dim() == 2 ? t->size(1) : 0; }

  void expect_rows(const char* name, const Maybe& t, int64_t columns) const {
    if (!t) return;
    expect_shape(name, *t, rows, columns);
    expect(t->scalar_type() == dtype, name, ": expected the dtype of x");
  }

  template <class T>
  Columns<T> read(const Maybe& t, int64_t count) const {
    return {t ? t->const_data_ptr<T>() : nullptr, t ? t->stride(0) : 0, count};
  }

  // kernel(tensors) for the dtype, where fill(tensors) adds what the kernel reads and writes.
  template <class F>
  void run(ScalarMlp::Kernel<float> f32, ScalarMlp::Kernel<double> f64, const F& fill) const {
    auto call = [&](auto kernel, auto zero) {
      using T = decltype(zero);
      MlpTensors<T> t{};
      t.rows = rows, t.widths = widths, t.weights = weights.const_data_ptr<T>();
      t.x[0] = read<T>(x, x.size(1)), t.x[1] = read<T>(x2, columns(x2));
      fill(t);
      kernel(t, parallel_for, parts(rows * (num_weights + 64) >> 18));
    };
    dtype == ScalarType::Double ? call(f64, double()) : call(f32, float());
  }
};

std::tuple<Tensor, Tensor, Tensor> scalar_mlp_cpu(const Tensor& x, const Maybe& x2,
                                                  const Tensor& weights,
                                                  const std::vector<int64_t>& widths, int64_t split,
                                                  int64_t kept_rows) {
  const ScalarMlpCall call(x, x2, weights, widths);
  expect(split >= 0 && split <= widths.back(), "split: expected a number of columns");
  expect(kept_rows == 0 || kept_rows == call.rows, "kept_rows: expected none or all");
  const int64_t rest = widths.back() - split;
  Tensor out = empty({call.rows, split}, call.dtype), out2 = empty({call.rows, rest}, call.dtype);
  Tensor kept = empty({kept_rows, call.hidden}, call.dtype);
  call.run(scalar_mlp().forward_f32, scalar_mlp().forward_f64, [&](auto& t) {
    using T = std::remove_pointer_t<decltype(t.dx)>;
    t.out[0] = out.mutable_data_ptr<T>(), t.out[1] = out2.mutable_data_ptr<T>();
    t.split[0] = split, t.split[1] = rest;
    t.kept = kept_rows ? kept.mutable_data_ptr<T>() : nullptr;
  });
  return {out, out2, kept};
}

struct BackCall : ScalarMlpCall {
  Maybe grad, grad2;
  Tensor kept;

  BackCall(const Maybe& grad_any, const Maybe& grad2_any, const Tensor& x, const Maybe& x2,
           const Tensor& weights, const Tensor& kept, const std::vector<int64_t>& widths,
           int64_t split)
      : ScalarMlpCall(x, x2, weights, widths),
        grad(with_packed_rows(grad_any)),
        grad2(with_packed_rows(grad2_any)),
        kept(kept) {
    expect(split >= 0 && split <= widths.back(), "split: expected a number of columns");
    expect_rows("grad", grad, split);
    expect_rows("grad2", grad2, widths.back() - split);
    expect_shape("kept", kept, rows, hidden);
    expect(kept.is_contiguous() && kept.scalar_type() == dtype,
           "kept: not what the forward operator returned");
  }

  template <class F>
  void run(ScalarMlp::Kernel<float> f32, ScalarMlp::Kernel<double> f64, int64_t split, Tensor& dx,
           Tensor& dweights, const F& fill) const {
    ScalarMlpCall::run(f32, f64, [&](auto& t) {
      using T = std::remove_pointer_t<decltype(t.dx)>;
      t.grad[0] = read<T>(grad, split), t.grad[1] = read<T>(grad2, widths.back() - split);
      t.kept = const_cast<T*>(kept.const_data_ptr<T>());
      t.dx = dx.mutable_data_ptr<T>();
      t.dweights = dweights.numel() ? dweights.mutable_data_ptr<T>() : nullptr;
      fill(t);
    });
  }
};

std::tuple<Tensor, Tensor> scalar_mlp_backward_cpu(const Maybe& grad, const Maybe& grad2,
                                                   const Tensor& x, const Maybe& x2,
                                                   const Tensor& weights, const Tensor& kept,
                                                   const std::vector<int64_t>& widths,
                                                   int64_t split, bool wants_dweights) {
  const BackCall call(grad, grad2, x, x2, weights, kept, widths, split);
  Tensor dx = empty({call.rows, widths.front()}, call.dtype);
  Tensor dweights = empty({wants_dweights ? call.num_weights : 0}, call.dtype);
  call.run(scalar_mlp().backward_f32, scalar_mlp().backward_f64, split, dx, dweights, [](auto&) {});
  return {dx, dweights};
}

std::tuple<Tensor, Tensor, Tensor> scalar_mlp_double_backward_cpu(
    const Maybe& h, const Maybe& hweights, const Maybe& grad, const Maybe& grad2, const Tensor& x,
    const Maybe& x2, const Tensor& weights, const Tensor& kept, const std::vector<int64_t>& widths,
    int64_t split, bool wants_dweights) {
  const BackCall call(grad, grad2, x, x2, weights, kept, widths, split);
  const Maybe hx = with_packed_rows(h), hw = packed(hweights);
  call.expect_rows("h", hx, widths.front());
  expect(
      !hw || (hw->dim() == 1 && hw->numel() == call.num_weights && hw->scalar_type() == call.dtype),
      "hweights: expected the shape and dtype of weights");
  Tensor dgrad = empty({call.rows, widths.back()}, call.dtype);
  Tensor dx = empty({call.rows, widths.front()}, call.dtype);
  Tensor dweights = empty({wants_dweights ? call.num_weights : 0}, call.dtype);
  call.run(scalar_mlp().double_backward_f32, scalar_mlp().double_backward_f64, split, dx, dweights,
           [&](auto& t) {
             using T = std::remove_pointer_t<decltype(t.dx)>;
             t.h = call.read<T>(hx, widths.front());
             t.hweights = hw ? hw->const_data_ptr<T>() : nullptr;
             t.dgrad = dgrad.mutable_data_ptr<T>();
           });
  return {dgrad, dx, dweights};
}

}  // namespace
}  // namespace fastmlip

STABLE_TORCH_LIBRARY_FRAGMENT(fastmlip, m) {
  m.def(
      "scalar_mlp_cpu(Tensor x, Tensor? x2, Tensor weights, int[] widths, int split, "
      "SymInt kept_rows) -> (Tensor, Tensor, Tensor)");
  m.def(
      "scalar_mlp_backward_cpu(Tensor? grad, Tensor? grad2, Tensor x, Tensor? x2, Tensor weights, "
      "Tensor kept, int[] widths, int split, bool wants_dweights) -> (Tensor, Tensor)");
  m.def(
      "scalar_mlp_double_backward_cpu(Tensor? h, Tensor? hweights, Tensor? grad, Tensor? grad2, "
      "Tensor x, Tensor? x2, "
      "Tensor weights, Tensor kept, int[] widths, int split, bool wants_dweights) "
      "-> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CPU, m) {
  m.impl("scalar_mlp_cpu", TORCH_BOX(&fastmlip::scalar_mlp_cpu));
  m.impl("scalar_mlp_backward_cpu", TORCH_BOX(&fastmlip::scalar_mlp_backward_cpu));
  m.impl("scalar_mlp_double_backward_cpu", TORCH_BOX(&fastmlip::scalar_mlp_double_backward_cpu));
}
