// fastmlip::edge_embedding_cpu and its derivatives.
#include "operators/edge_embedding.h"

#include <cmath>
#include <cstring>
#include <optional>
#include <tuple>

#include "base/limits.h"
#include "torch/common.h"

namespace fastmlip {

FASTMLIP_KERNELS(EdgeEmbedding, edge_embedding)

namespace {

using Maybe = std::optional<Tensor>;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using Seven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr char kWrongTables[] = "tables: not a table of this l_max";

struct EdgeEmbeddingCall {
  Tensor vec, roots, rmax_recip, tables;
  Maybe edge_type;
  EdgeEmbeddingShape shape;
  int64_t threads;
  bool single;

  EdgeEmbeddingCall(const Tensor& vec_, const Tensor& roots_, const Tensor& rmax_recip_,
                    const Maybe& edge_type_, const Tensor& tables_, int64_t l_max, int64_t p,
                    double factor, bool single)
      : vec(packed(vec_)),
        roots(packed(roots_)),
        rmax_recip(packed(rmax_recip_)),
        tables(packed(tables_)),
        single(single) {
    const int64_t edges = vec.dim() ? vec.size(0) : 0;
    expect_shape("edge_vec", vec, edges, 3);
    for (const auto& [name, t] : {std::pair("edge_vec", &vec), std::pair("roots", &roots),
                                  std::pair("rmax_recip", &rmax_recip)})
      expect(t->scalar_type() == ScalarType::Double, name, ": expected float64");
    expect(l_max >= -1 && 2 * l_max + 1 <= kMaxDim, "l_max: expected -1 to ", kMaxDim / 2, ", got ",
           l_max);
    expect(p >= 2 && p <= 1000, "p: expected 2 to 1000, got ", p);
    const int64_t terms = tables.numel() - (l_max + 1);
    expect(tables.scalar_type() == ScalarType::Long && terms >= 0 && terms % 4 == 0, kWrongTables);
    shape = {edges, roots.numel(), l_max,  p,
             0,     terms / 4,     factor, tables.const_data_ptr<int64_t>()};
    check_tables();
    if (edge_type_)
      check_types(*edge_type_);
    else
      expect(rmax_recip.numel() == 1, "rmax_recip: expected one number without edge_type, got ",
             rmax_recip.numel());
    threads = parts(edges / 512);
  }

  // In full, at each call, because anybody can pass a table: terms stand in the order of their
  // harmonics, each made of one a degree below.
  void check_tables() const {
    bool good = true;
    for (int64_t l = 0; l <= shape.l_max; ++l) good &= is_finite(shape.tables[l]);
    const auto* term = reinterpret_cast<const HarmonicTerm*>(shape.tables + shape.l_max + 1);
    const HarmonicTerm* end = term + shape.num_terms;
    for (int64_t l = 1; l <= shape.l_max; ++l)
      for (int64_t i = l * l; i < (l + 1) * (l + 1); ++i) {
        good &= term != end && term->i == i;
        for (; term != end && term->i == i; ++term)
          good &= term->j >= (l - 1) * (l - 1) && term->j < l * l && term->k >= 0 && term->k < 3 &&
                  is_finite(term->value_bits);
      }
    expect(good && term == end, kWrongTables);
  }

  static bool is_finite(int64_t bits) {
    double value;
    std::memcpy(&value, &bits, sizeof(value));
    return std::isfinite(value);
  }

  void check_types(const Tensor& types) {
    edge_type = packed(types);
    expect_shape("edge_type", *edge_type, 2, shape.edges);
    expect(edge_type->scalar_type() == ScalarType::Long, "edge_type: expected int64");
    while (shape.num_types * shape.num_types < rmax_recip.numel()) ++shape.num_types;
    expect(shape.num_types * shape.num_types == rmax_recip.numel(),
           "rmax_recip: expected one number for each pair of types");
    const int64_t* type = edge_type->const_data_ptr<int64_t>();
    for (const char* name : {"edge_type[0]", "edge_type[1]"}) {
      expect_range(name, type, shape.edges, shape.num_types, ", the number of types");
      type += shape.edges;
    }
  }

  ScalarType dtype() const { return single ? ScalarType::Float : ScalarType::Double; }

  Tensor gradient(const char* name, const Tensor& g, int64_t columns, ScalarType type) const {
    expect_shape(name, g, shape.edges, columns);
    expect(g.scalar_type() == type, name, ": expected the dtype of its output");
    return packed(g);
  }

  Five values() const {
    auto rows = [&](int64_t columns, ScalarType type) {
      return empty({shape.edges, columns}, type);
    };
    return {rows(1, ScalarType::Double), rows(1, ScalarType::Double),
            rows(shape.harmonics(), dtype()), rows(shape.num_bessels, dtype()), rows(1, dtype())};
  }
};

// The gradients of one call, contiguous; those not given count as zero.
struct Gradients {
  Maybe length, norm, attrs, embedding, cutoff;

  Gradients(const EdgeEmbeddingCall& call, const Maybe& length_, const Maybe& norm_,
            const Maybe& attrs_, const Maybe& embedding_, const Maybe& cutoff_) {
    constexpr ScalarType wide = ScalarType::Double;
    if (length_) length = call.gradient("g_length", *length_, 1, wide);
    if (norm_) norm = call.gradient("g_norm", *norm_, 1, wide);
    const ScalarType type = call.dtype();
    if (attrs_) attrs = call.gradient("g_attrs", *attrs_, call.shape.harmonics(), type);
    if (embedding_)
      embedding = call.gradient("g_embedding", *embedding_, call.shape.num_bessels, type);
    if (cutoff_) cutoff = call.gradient("g_cutoff", *cutoff_, 1, type);
  }
};

template <class T>
const T* data(const Maybe& t) {
  return t ? t->const_data_ptr<T>() : nullptr;
}

template <class T>
EdgeEmbeddingTensors<T> operands(const EdgeEmbeddingCall& call) {
  EdgeEmbeddingTensors<T> t{};
  t.vec = call.vec.const_data_ptr<double>();
  t.roots = call.roots.const_data_ptr<double>();
  t.rmax_recip = call.rmax_recip.const_data_ptr<double>();
  t.edge_type = data<int64_t>(call.edge_type);
  return t;
}

template <class T>
void set(EdgeEmbeddingTensors<T>& t, const Gradients& g) {
  t.g_length = data<double>(g.length), t.g_norm = data<double>(g.norm);
  t.g_attrs = data<T>(g.attrs), t.g_embedding = data<T>(g.embedding);
  t.g_cutoff = data<T>(g.cutoff);
}

template <class T>
void set(EdgeEmbeddingTensors<T>& t, Five& out) {
  t.length = std::get<0>(out).mutable_data_ptr<double>();
  t.norm = std::get<1>(out).mutable_data_ptr<double>();
  t.attrs = std::get<2>(out).mutable_data_ptr<T>();
  t.embedding = std::get<3>(out).mutable_data_ptr<T>();
  t.cutoff = std::get<4>(out).mutable_data_ptr<T>();
}

const EdgeEmbeddingKernels<float>& kernels(float) { return edge_embedding().f32; }
const EdgeEmbeddingKernels<double>& kernels(double) { return edge_embedding().f64; }

// f(0.0f) or f(0.0), by the dtype of the outputs
template <class F>
void with_dtype(const EdgeEmbeddingCall& call, const F& f) {
  call.single ? f(0.0f) : f(0.0);
}

Five forward_cpu(const Tensor& vec, const Tensor& roots, const Tensor& rmax_recip,
                 const Maybe& edge_type, const Tensor& tables, int64_t l_max, int64_t p,
                 double factor, bool single) {
  const EdgeEmbeddingCall call(vec, roots, rmax_recip, edge_type, tables, l_max, p, factor, single);
  Five out = call.values();
  with_dtype(call, [&](auto zero) {
    auto t = operands<decltype(zero)>(call);
    set(t, out);
    kernels(zero).forward(call.shape, t, parallel_for, call.threads);
  });
  return out;
}

std::tuple<Tensor, Tensor> backward_cpu(const Maybe& g_length, const Maybe& g_norm,
                                        const Maybe& g_attrs, const Maybe& g_embedding,
                                        const Maybe& g_cutoff, const Tensor& vec,
                                        const Tensor& roots, const Tensor& rmax_recip,
                                        const Maybe& edge_type, const Tensor& tables, int64_t l_max,
                                        int64_t p, double factor, bool single) {
  const EdgeEmbeddingCall call(vec, roots, rmax_recip, edge_type, tables, l_max, p, factor, single);
  const Gradients g(call, g_length, g_norm, g_attrs, g_embedding, g_cutoff);
  Tensor d_vec = empty_as(call.vec), d_roots = empty_as(call.roots);
  with_dtype(call, [&](auto zero) {
    auto t = operands<decltype(zero)>(call);
    set(t, g);
    t.d_vec = d_vec.mutable_data_ptr<double>(), t.d_roots = d_roots.mutable_data_ptr<double>();
    kernels(zero).backward(call.shape, t, parallel_for, call.threads);
  });
  return {d_vec, d_roots};
}

Seven double_backward_cpu(const Tensor& h_vec, const Tensor& h_roots, const Maybe& g_length,
                          const Maybe& g_norm, const Maybe& g_attrs, const Maybe& g_embedding,
                          const Maybe& g_cutoff, const Tensor& vec, const Tensor& roots,
                          const Tensor& rmax_recip, const Maybe& edge_type, const Tensor& tables,
                          int64_t l_max, int64_t p, double factor, bool single) {
  const EdgeEmbeddingCall call(vec, roots, rmax_recip, edge_type, tables, l_max, p, factor, single);
  const Gradients g(call, g_length, g_norm, g_attrs, g_embedding, g_cutoff);
  const Tensor hv = call.gradient("h_vec", h_vec, 3, ScalarType::Double), hr = packed(h_roots);
  expect(hr.numel() == call.shape.num_bessels && hr.scalar_type() == ScalarType::Double,
         "h_roots: expected the size and dtype of roots");
  Five out = call.values();
  Tensor d_vec = empty_as(call.vec), d_roots = empty_as(call.roots);
  with_dtype(call, [&](auto zero) {
    auto t = operands<decltype(zero)>(call);
    set(t, g);
    set(t, out);
    t.h_vec = hv.const_data_ptr<double>(), t.h_roots = hr.const_data_ptr<double>();
    t.d_vec = d_vec.mutable_data_ptr<double>(), t.d_roots = d_roots.mutable_data_ptr<double>();
    kernels(zero).double_backward(call.shape, t, parallel_for, call.threads);
  });
  return std::tuple_cat(out, std::make_tuple(d_vec, d_roots));
}

}  // namespace
}  // namespace fastmlip

#define FASTMLIP_OPERANDS                                                                    \
  "Tensor edge_vec, Tensor roots, Tensor rmax_recip, Tensor? edge_type, Tensor tables, int " \
  "l_max, "                                                                                  \
  "int p, float factor, bool single)"
#define FASTMLIP_GRADIENTS \
  "Tensor? g_length, Tensor? g_norm, Tensor? g_attrs, Tensor? g_embedding, Tensor? g_cutoff, "

STABLE_TORCH_LIBRARY_FRAGMENT(fastmlip, m) {
  m.def("edge_embedding_cpu(" FASTMLIP_OPERANDS " -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("edge_embedding_backward_cpu(" FASTMLIP_GRADIENTS FASTMLIP_OPERANDS " -> (Tensor, Tensor)");
  m.def(
      "edge_embedding_double_backward_cpu(Tensor h_vec, Tensor "
      "h_roots, " FASTMLIP_GRADIENTS FASTMLIP_OPERANDS
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CPU, m) {
  m.impl("edge_embedding_cpu", TORCH_BOX(&fastmlip::forward_cpu));
  m.impl("edge_embedding_backward_cpu", TORCH_BOX(&fastmlip::backward_cpu));
  m.impl("edge_embedding_double_backward_cpu", TORCH_BOX(&fastmlip::double_backward_cpu));
}
