// fastmlip::zbl_cpu and fastmlip::zbl_backward_cpu.
#include "operators/zbl.h"

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "torch/common.h"

namespace fastmlip {

FASTMLIP_KERNELS(Zbl, zbl)

namespace {

double value(const Tensor& t, int64_t i) {
  return t.scalar_type() == ScalarType::Double ? t.const_data_ptr<double>()[i]
                                               : double(t.const_data_ptr<float>()[i]);
}

void expect_dtype(const char* name, const Tensor& t, ScalarType a, ScalarType b) {
  expect(t.scalar_type() == a || t.scalar_type() == b, name, ": unexpected dtype");
}

// Rows of [n] or [n, 1].
int64_t rows(const char* name, const Tensor& t) {
  expect(t.dim() == 1 || (t.dim() == 2 && t.size(1) == 1), name,
         ": expected one dimension, or one column");
  return t.size(0);
}

void expect_length(const char* name, const Tensor& t, int64_t length) {
  expect(t.dim() == 1 && t.size(0) == length, name, ": expected shape [", length, "]");
}

// Contiguous operands of one call and a row for each atom.
struct ZblCall {
  Tensor length, index, types, numbers;
  std::optional<Tensor> weight, phi, normed, cutoff;
  double prefactor, p;
  int64_t atoms, num_nodes, order;
  std::vector<double> charge, power;  // of each atom, where phi is not known

  ZblCall(const Tensor& length_, const std::optional<Tensor>& weight_,
          const std::optional<Tensor>& phi_, const std::optional<Tensor>& normed_,
          const std::optional<Tensor>& cutoff_, const Tensor& index_, const Tensor& types_,
          const Tensor& numbers_, const Tensor& prefactor_, double p, int64_t order,
          int64_t num_nodes)
      : length(packed(length_)),
        index(packed(index_)),
        types(packed(types_)),
        numbers(packed(numbers_)),
        p(p),
        num_nodes(num_nodes),
        order(order) {
    constexpr auto f32 = ScalarType::Float, f64 = ScalarType::Double, i64 = ScalarType::Long;
    expect_dtype("edge_length", length, f32, f64);
    expect_dtype("edge_index", index, i64, i64);
    expect_dtype("atom_types", types, i64, i64);
    expect_dtype("atomic_numbers", numbers, f32, f64);
    expect_dtype("prefactor", prefactor_, f32, f64);
    atoms = rows("atom_types", types);
    const int64_t edges = rows("edge_length", length), num_types = numbers.numel();
    expect_length("atomic_numbers", numbers, num_types);
    expect_shape("edge_index", index, 2, edges);
    expect(p >= 2, "p: expected a number of at least 2, got ", p);
    expect(prefactor_.numel() == 1, "prefactor: expected one number");
    expect(order >= 0 && order <= 3, "order: expected 0 to 3");
    expect(num_nodes >= 0 && num_nodes <= atoms, "num_nodes: more than atom_types has");
    expect(bool(normed_) != bool(cutoff_), "cutoff: expected it or normed_length, one of the two");
    if (cutoff_) {
      cutoff = packed(*cutoff_);
      expect_dtype("cutoff", *cutoff, f64, f64);
      expect_shape("cutoff", *cutoff, num_types, num_types);
    }
    normed = like_length("normed_length", normed_);
    weight = like_length("weight", weight_);
    if (phi_) {
      phi = packed(*phi_);
      expect_dtype("phi", *phi, f64, f64);
      expect_length("phi", *phi, edges);
    }
    prefactor = value(prefactor_, 0);
    if (!phi) find_charges(num_types);
  }

  std::optional<Tensor> like_length(const char* name, const std::optional<Tensor>& t) const {
    if (!t) return t;
    expect_dtype(name, *t, length.scalar_type(), length.scalar_type());
    expect(t->sizes().equals(length.sizes()), name, ": expected the shape of edge_length");
    return packed(*t);
  }

  void find_charges(int64_t num_types) {
    std::vector<double> charges(num_types), powers(num_types);  // of each type
    for (int64_t i = 0; i < num_types; ++i) {
      charges[i] = value(numbers, i);
      powers[i] = std::pow(charges[i], 0.23);
    }
    charge.resize(atoms);
    power.resize(atoms);
    const int64_t* type = types.const_data_ptr<int64_t>();
    expect_range("atom_types", type, atoms, num_types, ", the length of atomic_numbers");
    for (int64_t n = 0; n < atoms; ++n) {
      charge[n] = charges[type[n]];
      power[n] = powers[type[n]];
    }
  }

  int64_t threads() const { return parts(length.size(0) / 4096); }

  template <class T>
  ZblEdges<T> edges() const {
    const int64_t* ends = index.const_data_ptr<int64_t>();
    return {length.size(0),
            num_nodes,
            atoms,
            numbers.numel(),
            length.const_data_ptr<T>(),
            weight ? weight->const_data_ptr<T>() : nullptr,
            phi ? phi->const_data_ptr<double>() : nullptr,
            normed ? normed->const_data_ptr<T>() : nullptr,
            cutoff ? cutoff->const_data_ptr<double>() : nullptr,
            ends,
            ends + length.size(0),
            {charge.data(), power.data(), types.const_data_ptr<int64_t>()},
            prefactor,
            p,
            int(order)};
  }

  void expect_none(const ZblBad& bad) const {
    if (bad.edge < 0) return;
    const int64_t *dst = index.const_data_ptr<int64_t>(), *src = dst + length.size(0);
    if (bad.is_dst) fail_range("edge_index[0]", bad.edge, dst[bad.edge], num_nodes, ", num_nodes");
    fail_range("edge_index[1]", bad.edge, src[bad.edge], atoms, ", the length of atom_types");
  }
};

std::tuple<Tensor, Tensor> zbl_cpu(const Tensor& length, const std::optional<Tensor>& weight,
                                   const std::optional<Tensor>& base,
                                   const std::optional<Tensor>& normed,
                                   const std::optional<Tensor>& cutoff, const Tensor& index,
                                   const Tensor& types, const Tensor& numbers,
                                   const Tensor& prefactor, double p, int64_t order,
                                   int64_t num_nodes, bool keep) {
  const ZblCall call(length, weight, std::nullopt, normed, cutoff, index, types, numbers, prefactor,
                     p, order, num_nodes);
  expect(!keep || order < 3, "keep: there is no order beyond 3");
  const int64_t shape[2] = {num_nodes, 1};
  Tensor out = empty({shape, size_t(call.length.dim())}, ScalarType::Double);
  Tensor next = empty({keep ? call.length.size(0) : 0}, ScalarType::Double);
  double* to = out.mutable_data_ptr<double>();
  if (base) {
    expect(base->sizes().equals(out.sizes()), "base: expected the shape of the result");
    expect_dtype("base", *base, ScalarType::Double, ScalarType::Double);
    const Tensor from = packed(*base);
    std::copy_n(from.const_data_ptr<double>(), num_nodes, to);
  } else {
    std::fill_n(to, num_nodes, 0.0);
  }
  double* kept = keep ? next.mutable_data_ptr<double>() : nullptr;
  const int64_t threads = call.threads();
  call.expect_none(call.length.scalar_type() == ScalarType::Double
                       ? zbl().nodes_f64(call.edges<double>(), to, kept, parallel_for, threads)
                       : zbl().nodes_f32(call.edges<float>(), to, kept, parallel_for, threads));
  return {out, next};
}

Tensor zbl_backward_cpu(const Tensor& grad, const Tensor& length,
                        const std::optional<Tensor>& weight, const std::optional<Tensor>& phi,
                        const std::optional<Tensor>& normed, const std::optional<Tensor>& cutoff,
                        const Tensor& index, const Tensor& types, const Tensor& numbers,
                        const Tensor& prefactor, double p, int64_t order) {
  const Tensor g = packed(grad);
  expect_dtype("grad", g, ScalarType::Double, ScalarType::Double);
  const int64_t num_nodes = rows("grad", g);
  const ZblCall call(length, weight, phi, normed, cutoff, index, types, numbers, prefactor, p,
                     order, num_nodes);
  Tensor out = empty_as(call.length);
  const int64_t threads = call.threads();
  const double* from = g.const_data_ptr<double>();
  call.expect_none(call.length.scalar_type() == ScalarType::Double
                       ? zbl().edges_f64(call.edges<double>(), from, out.mutable_data_ptr<double>(),
                                         parallel_for, threads)
                       : zbl().edges_f32(call.edges<float>(), from, out.mutable_data_ptr<float>(),
                                         parallel_for, threads));
  return out;
}

}  // namespace
}  // namespace fastmlip

STABLE_TORCH_LIBRARY_FRAGMENT(fastmlip, m) {
  m.def(
      "zbl_cpu(Tensor edge_length, Tensor? weight, Tensor? base, Tensor? normed_length, Tensor? "
      "cutoff, Tensor edge_index, Tensor atom_types, Tensor atomic_numbers, Tensor prefactor, "
      "float p, int order, SymInt num_nodes, bool keep) -> (Tensor, Tensor)");
  m.def(
      "zbl_backward_cpu(Tensor grad, Tensor edge_length, Tensor? weight, Tensor? phi, Tensor? "
      "normed_length, Tensor? cutoff, Tensor edge_index, Tensor atom_types, Tensor "
      "atomic_numbers, Tensor prefactor, float p, int order) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CPU, m) {
  m.impl("zbl_cpu", TORCH_BOX(&fastmlip::zbl_cpu));
  m.impl("zbl_backward_cpu", TORCH_BOX(&fastmlip::zbl_backward_cpu));
}
