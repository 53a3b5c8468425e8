// Every C++ kernel on several threads, called from two threads at once: what `make tsan` runs under
// the thread sanitizer, which cannot see into torch's threads. Fails where bits depend on threads.
#include "threads.h"

#include <cstdio>
#include <functional>

#include "base/isa.h"
#include "graph/edge_pair.h"
#include "graph/edge_vectors.h"
#include "operators/contraction.h"
#include "operators/edge_embedding.h"
#include "operators/env_sum.h"
#include "operators/gate.h"
#include "operators/irreps_linear.h"
#include "operators/pair_linear.h"
#include "operators/radial_conv.h"
#include "operators/scalar_mlp.h"
#include "operators/scale_shift.h"
#include "operators/spline.h"
#include "operators/symmetric_contraction.h"
#include "operators/tensor_product_conv.h"
#include "operators/zbl.h"

namespace fastmlip {

FASTMLIP_KERNELS(Contraction, contraction)
FASTMLIP_KERNELS(EdgeEmbedding, edge_embedding)
FASTMLIP_KERNELS(EnvSum, env_sum)
FASTMLIP_KERNELS(Gate, gate)
FASTMLIP_KERNELS(IrrepsLinear, irreps_linear)
FASTMLIP_KERNELS(PairLinear, pair_linear)
FASTMLIP_KERNELS(RadialConv, radial_conv)
FASTMLIP_KERNELS(ScalarMlp, scalar_mlp)
FASTMLIP_KERNELS(ScaleShift, scale_shift)
FASTMLIP_KERNELS(Spline, spline)
FASTMLIP_KERNELS(SymmetricContraction, symmetric_contraction)
FASTMLIP_KERNELS(TensorProductConv, tensor_product_conv)
FASTMLIP_KERNELS(Zbl, zbl)

namespace {

Results edges(int64_t threads) {
  Graph g(threads);
  Results results;
  results.add(g.order);
  if (g.edges().find_fault(EdgeOrder::kBoth, parallel_for, threads)) return results;
  const Floats at(g.positions.begin(), g.positions.end()), embedding(2 * kEdges, 0.5f);
  edge_vectors(at.data(), g.edges(), g.vectors.data(), parallel_for, threads);
  results.add(g.vectors);
  Floats dpositions(3 * kNodes);
  edge_vectors_backward(g.grad.data(), g.edges(), dpositions.data(), parallel_for, threads);
  results.add(dpositions);
  edge_pair(g.vectors.data(), embedding.data(), 2, g.edges(), g.pair.data(), parallel_for, threads);
  results.add(g.pair);
  return results;
}

// 5x0e + 7x1o times 0e + 1o, all paths, or other multiplicities; the symbols are any numbers.
struct Product {
  struct Path {
    int64_t in, out, in2, d2;
  };
  std::vector<Block> in, out;
  const std::vector<Path> paths{{0, 0, 0, 1}, {1, 1, 0, 1}, {0, 2, 1, 3},
                                {1, 3, 1, 3}, {1, 4, 1, 3}, {1, 5, 1, 3}};
  static constexpr int64_t dim1 = 26, dim2 = 4, dim3 = 5 + 21 + 15 + 7 + 21 + 35, weights = 38;
  Integers table;

  explicit Product(int64_t a = 5, int64_t b = 7)
      : in{{a, 1}, {b, 3}}, out{{a, 1}, {b, 3}, {a, 3}, {b, 1}, {b, 3}, {b, 5}} {
    Integers rows, symbols;
    int64_t weight = 0, begin = 0;
    for (const Path& p : paths) {
      const int64_t mul = in[p.in].mul, d1 = in[p.in].dim, d3 = out[p.out].dim;
      for (int64_t m1 = 0; m1 < d1; ++m1)
        for (int64_t m2 = 0; m2 < p.d2; ++m2)
          for (int64_t m3 = 0; m3 < d3; ++m3)
            if (p.d2 > 1 || m1 == m3)
              for (int64_t word : {m1, m2, m3, bits_of(0.1 * double(1 + m1 + 2 * m2 - m3))})
                symbols.push_back(word);
      const int64_t end = int64_t(symbols.size()) / 4;
      for (int64_t word : {mul, d1, p.d2, d3, p.in, p.in2, p.out, weight, begin, end})
        rows.push_back(word);
      weight += mul, begin = end;
    }
    table = {
        int64_t(in.size()), dim2, int64_t(out.size()), int64_t(paths.size()), begin, weight, 0};
    for (const auto& blocks : {in, out})
      for (const Block& b : blocks) table.insert(table.end(), {b.mul, b.dim});
    table.insert(table.end(), rows.begin(), rows.end());
    table.insert(table.end(), symbols.begin(), symbols.end());
  }
};

Results tensor_product_convs(int64_t threads) {
  const Graph g(1);
  const Product product;
  const Floats x = numbers<float>(kNodes * product.dim1, 4), hx = numbers<float>(x.size(), 5),
               a = numbers<float>(kEdges * product.dim2, 6), ha = numbers<float>(a.size(), 7),
               w = numbers<float>(kEdges * product.weights, 8), hw = numbers<float>(w.size(), 9),
               grad = numbers<float>(kNodes * product.dim3, 10);
  Results results;
  for (bool second : {false, true}) {
    Floats out(grad.size()), dx(x.size()), da(a.size()), dw(w.size());
    Tensors<float> t{x.data(), a.data(),   w.data(),  grad.data(), nullptr,  nullptr,
                     nullptr,  out.data(), dx.data(), da.data(),   dw.data()};
    if (second) t.hx = hx.data(), t.ha = ha.data(), t.hw = hw.data();
    const auto& kernels = tensor_product_conv();
    kernels.receive_f32(t, g.edges(), product.table.data(), parallel_for, threads);
    kernels.send_f32(t, g.edges(), product.table.data(), parallel_for, threads);
    for (const Floats* result : {&out, &dx, &da, &dw}) results.add(*result);
  }
  return results;
}

enum Radial { kNetwork, kPairs, kKept, kSpline };

Results radial_convs(int64_t threads) {
  Graph g(1);
  const Product product;
  constexpr int64_t width = 8, depth = 2, rows = 12;
  const Floats x = numbers<float>(kNodes * product.dim1, 4),
               a = numbers<float>(kEdges * product.dim2, 6),
               radial = numbers<float>(kEdges * width, 11, 0, 1),
               weight = numbers<float>(rows * kSplineBlock * width, 12),
               hidden = numbers<float>(depth * width * width, 13),
               grad = numbers<float>(kNodes * product.dim3, 10);
  Integers first(kEdges);
  for (int64_t e = 0; e < kEdges; ++e) g.pair[e] = e / 2 * 2, first[e] = e % (rows - 5);
  Results results;
  for (Radial kind : {kNetwork, kPairs, kKept, kSpline}) {
    const bool spline = kind == kSpline;
    Floats out(grad.size()), dx(x.size()), da(a.size()), kept(kEdges * product.weights),
        dradial(spline ? kEdges : radial.size());
    RadialTensors<float> t{};
    t.x = x.data(), t.edge_attr = a.data(), t.radial = radial.data(), t.weight = weight.data();
    t.inputs = spline ? 1 : width, t.width = t.inputs;
    if (spline) {
      t.first_row = first.data(), t.weight_rows = rows;
    } else {
      t.hidden = hidden.data(), t.width = width, t.depth = depth;
      if (kind == kKept) t.kept = kept.data();
    }
    const SharedRows shared(kind == kNetwork ? nullptr : g.pair.data(), kEdges, true, parallel_for,
                            threads);
    if (!spline) t.shared = &shared, t.room = kEdges / 4;
    t.out = out.data();
    radial_conv().forward_f32(t, g.edges(), product.table.data(), parallel_for, threads);
    t.grad = grad.data(), t.dx = dx.data(), t.da = da.data(), t.dradial = dradial.data();
    radial_conv().backward_f32(t, g.edges(), product.table.data(), parallel_for, threads);
    for (const Floats* result : {&out, &dx, &da, &dradial}) results.add(*result);
  }
  return results;
}

Results env_sums(int64_t threads) {
  const Graph g(1);
  constexpr int64_t channels = 5, dims[] = {1, 3}, dim = 4;
  const Floats w = numbers<float>(kEdges * 2 * channels, 31), hw = numbers<float>(w.size(), 32),
               a = numbers<float>(kEdges * dim, 33), ha = numbers<float>(a.size(), 34),
               grad = numbers<float>(kNodes * dim * channels, 35);
  Results results;
  for (bool second : {false, true}) {
    Floats out(grad.size()), dw(w.size()), da(a.size());
    EnvSumTensors<float> t{};
    t.channels = channels, t.weight_rows = t.num_blocks = 2, t.dims = dims;
    t.edge_weight = w.data(), t.edge_attr = a.data(), t.grad = grad.data();
    t.out = out.data(), t.dw = dw.data(), t.da = da.data();
    if (second) t.hw = hw.data(), t.ha = ha.data();
    env_sum().receive_f32(t, g.edges(), parallel_for, threads);
    env_sum().send_f32(t, g.edges(), parallel_for, threads);
    for (const Floats* result : {&out, &dw, &da}) results.add(*result);
  }
  return results;
}

Results contractions(int64_t threads) {
  const Graph g(1);
  const Product product(1, 1);
  constexpr int64_t channels = 9, dim = 4, dim_out = 16, paths = 6;
  const Floats x = numbers<float>(kEdges * dim * channels, 36), hx = numbers<float>(x.size(), 37),
               weights = numbers<float>(kEdges * 2 * channels, 38),
               hweights = numbers<float>(weights.size(), 39), a = numbers<float>(kEdges * dim, 40),
               ha = numbers<float>(a.size(), 41), env = numbers<float>(kNodes * dim * channels, 42),
               henv = numbers<float>(env.size(), 43), w = numbers<float>(paths * channels, 44),
               hw = numbers<float>(w.size(), 45),
               grad = numbers<float>(kEdges * dim_out * channels, 46);
  Results results;
  for (bool factors : {false, true}) {
    Floats out(grad.size()), dx(factors ? weights.size() : x.size()), da(a.size()),
        denv(env.size()), dw(w.size());
    ContractionTensors<float> t{};
    t.channels = channels, t.x_rows = factors ? 2 : dim;
    t.x = factors ? weights.data() : x.data(), t.hx = factors ? hweights.data() : hx.data();
    if (factors) t.edge_attr = a.data(), t.ha = ha.data(), t.da = da.data();
    t.env = env.data(), t.weight = w.data(), t.grad = grad.data();
    t.henv = henv.data(), t.hweight = hw.data();
    t.out = out.data(), t.dx = dx.data(), t.denv = denv.data(), t.dweight = dw.data();
    const auto& kernels = contraction();
    for (auto kernel : {kernels.forward_f32, kernels.backward_f32, kernels.double_backward_f32}) {
      kernel(t, g.edges(), product.table.data(), parallel_for, threads);
      for (const Floats* result : {&out, &dx, &da, &denv, &dw}) results.add(*result);
    }
  }
  return results;
}

Results scalar_mlps(int64_t threads) {
  constexpr int64_t inputs = 20, hidden = 33, outputs = 17;
  constexpr int64_t numel = inputs * hidden + hidden * outputs;
  const Floats x = numbers<float>(kEdges * inputs, 47), h = numbers<float>(x.size(), 48),
               grad = numbers<float>(kEdges * outputs, 49), weights = numbers<float>(numel, 50),
               hweights = numbers<float>(numel, 51);
  Floats kept(kEdges * hidden), out(grad.size()), dgrad(grad.size()), dx(x.size()), dweights(numel);
  MlpTensors<float> t{};
  t.rows = kEdges, t.widths = {inputs, hidden, outputs};
  t.weights = weights.data(), t.hweights = hweights.data();
  t.x[0] = {x.data(), inputs, inputs}, t.grad[0] = {grad.data(), outputs, outputs};
  t.h = {h.data(), inputs, inputs};
  t.kept = kept.data(), t.out[0] = out.data(), t.split[0] = outputs;
  t.dgrad = dgrad.data(), t.dx = dx.data(), t.dweights = dweights.data();
  const auto& kernels = scalar_mlp();
  Results results;
  for (auto kernel : {kernels.forward_f32, kernels.backward_f32, kernels.double_backward_f32}) {
    kernel(t, parallel_for, threads);
    for (const Floats* result : {&kept, &out, &dgrad, &dx, &dweights}) results.add(*result);
  }
  return results;
}

Results edge_embeddings(int64_t threads) {
  // up to l = 1: R_1m = sqrt(3) u_m
  constexpr int64_t l_max = 1, roots_count = 3, harmonics = 4;
  Integers tables{bits_of(1), bits_of(1)};
  for (int64_t k = 0; k < 3; ++k) tables.insert(tables.end(), {k + 1, 0, k, bits_of(1.7)});
  const EdgeEmbeddingShape shape{kEdges, roots_count, l_max, 6, 0, 3, 1.0, tables.data()};
  const Doubles vec = numbers<double>(3 * kEdges, 14), h_vec = numbers<double>(vec.size(), 15),
                roots{1, 2, 3}, h_roots{0.1, 0.2, 0.3}, recip{0.4};
  const Floats g_attrs = numbers<float>(harmonics * kEdges, 16),
               g_embedding = numbers<float>(roots_count * kEdges, 17);
  Results results;
  for (int order = 0; order < 3; ++order) {
    Doubles length(kEdges), norm(kEdges), d_vec(vec.size()), d_roots(roots.size());
    Floats attrs(g_attrs.size()), embedding(g_embedding.size()), cutoff(kEdges);
    EdgeEmbeddingTensors<float> t{};
    t.vec = vec.data(), t.roots = roots.data(), t.rmax_recip = recip.data();
    t.h_vec = h_vec.data(), t.h_roots = h_roots.data();
    t.g_attrs = g_attrs.data(), t.g_embedding = g_embedding.data();
    t.length = length.data(), t.norm = norm.data(), t.attrs = attrs.data();
    t.embedding = embedding.data(), t.cutoff = cutoff.data();
    t.d_vec = d_vec.data(), t.d_roots = d_roots.data();
    const auto& kernels = edge_embedding().f32;
    (order == 0   ? kernels.forward
     : order == 1 ? kernels.backward
                  : kernels.double_backward)(shape, t, parallel_for, threads);
    for (const Doubles* result : {&length, &norm, &d_vec, &d_roots}) results.add(*result);
    for (const Floats* result : {&attrs, &embedding, &cutoff}) results.add(*result);
  }
  return results;
}

Results gates(int64_t threads) {
  // 6 scalars, and 4 gates of 4x1o
  const Integers tables{22,           18, 2,  0, 0, 0, 6,     0,           kTanh,
                        bits_of(1.5), 6,  10, 6, 4, 3, kSilu, bits_of(1.7)};
  const Floats x = numbers<float>(kNodes * 22, 18), hx = numbers<float>(x.size(), 19),
               grad = numbers<float>(kNodes * 18, 20);
  Floats out(grad.size()), dx(x.size());
  GateTensors t{x.data(), grad.data(), hx.data(), out.data(), dx.data(), kNodes};
  Results results;
  for (Gate::Kernel kernel :
       {gate().forward_f32, gate().backward_f32, gate().double_backward_f32}) {
    kernel(t, tables.data(), parallel_for, threads);
    results.add(out), results.add(dx);
  }
  return results;
}

Results linears(int64_t threads) {
  // 40x0e + 20x1o to 30x0e + 50x1o, four sets of weights
  constexpr int64_t types = 4, dim_in = 100, dim_out = 180, weights = 40 * 30 + 20 * 50;
  const Integers tables{dim_in, dim_out, weights, 2,  0,  0,  0,  40, 0,
                        30,     1,       0,       40, 20, 30, 50, 3,  40 * 30};
  const Floats x = numbers<float>(kNodes * dim_in, 21), grad = numbers<float>(kNodes * dim_out, 22),
               weight = numbers<float>(types * weights, 23);
  Integers node(kNodes), ends(types);
  for (int64_t n = 0; n < kNodes; ++n) node[n] = n;
  for (int64_t t = 0; t < types; ++t) ends[t] = kNodes * (t + 1) / types;
  const Typed typed{node.data(), ends.data(), types, kNodes};
  Floats out(grad.size()), dx(x.size()), dweight(weight.size());
  const auto& kernels = irreps_linear();
  kernels.apply_f32(x.data(), weight.data(), typed, tables.data(), false, out.data(), parallel_for,
                    threads);
  kernels.apply_f32(grad.data(), weight.data(), typed, tables.data(), true, dx.data(), parallel_for,
                    threads);
  kernels.dweight_f32(x.data(), grad.data(), typed, tables.data(), dweight.data(), parallel_for,
                      threads);
  Results results;
  for (const Floats* result : {&out, &dx, &dweight}) results.add(*result);
  return results;
}

Results pair_linears(int64_t threads) {
  constexpr int64_t inputs = 10, outputs = 70;
  const Floats x = numbers<float>(kEdges * inputs, 24),
               weight = numbers<float>(inputs * outputs, 25),
               grad = numbers<float>(kEdges * outputs, 26);
  Integers pair(kEdges);
  for (int64_t e = 0; e < kEdges; ++e) pair[e] = e / 2 * 2;
  Floats out(grad.size()), dx(x.size()), dweight(weight.size());
  const auto call = [&](PairLinear::Kernel kernel, const Floats& a, const Floats& b, Floats& to) {
    kernel({a.data(), b.data(), to.data(), pair.data(), kEdges, inputs, outputs}, parallel_for,
           threads);
  };
  call(pair_linear().forward_f32, x, weight, out);
  call(pair_linear().dx_f32, weight, grad, dx);
  call(pair_linear().dweight_f32, x, grad, dweight);
  Results results;
  for (const Floats* result : {&out, &dx, &dweight}) results.add(*result);
  return results;
}

Results scale_shifts(int64_t threads) {
  constexpr int64_t atoms = 40000, num_types = 3;
  const Floats x = numbers<float>(atoms, 27), grad = numbers<float>(atoms, 28);
  const Doubles scales{1, 2, 3}, shifts{4, 5, 6};
  Integers types(atoms);
  for (int64_t i = 0; i < atoms; ++i) types[i] = i % num_types;
  Doubles out(atoms), more(atoms), dscales(num_types), dshifts(num_types);
  const Types index{types.data(), false};
  const Values s{scales.data(), num_types}, b{shifts.data(), num_types};
  const auto& kernels = scale_shift();
  kernels.apply({x.data(), true}, index, s, b, {out.data(), false}, atoms, parallel_for, threads);
  kernels.by_type(index, s, true, more.data(), atoms, parallel_for, threads);
  kernels.sum({grad.data(), true}, {x.data(), true}, index, dscales.data(), dshifts.data(),
              num_types, atoms, parallel_for, threads);
  Results results;
  for (const Doubles* result : {&out, &more, &dscales, &dshifts}) results.add(*result);
  return results;
}

Results splines(int64_t threads) {
  constexpr int64_t columns = 70, rows = 40;
  const Floats place = numbers<float>(kEdges, 41, 0, 1),
               grad = numbers<float>(kEdges * columns, 42),
               table = numbers<float>(spline_blocks(columns) * rows * kSplineBlock, 43);
  Integers first(kEdges);
  for (int64_t e = 0; e < kEdges; ++e) first[e] = e * 7 % (rows - kSplinePieces);
  Floats out(grad.size()), dplace(kEdges);
  SplineTensors<float> t{};
  t.edges = kEdges, t.columns = columns, t.table_rows = rows;
  t.place = place.data(), t.table = table.data(), t.first_row = first.data();
  t.grad = grad.data(), t.out = out.data(), t.dplace = dplace.data();
  spline().forward_f32(t, parallel_for, threads);
  spline().backward_f32(t, parallel_for, threads);
  Results results;
  results.add(out), results.add(dplace);
  return results;
}

Results zbls(int64_t threads) {
  Graph g(1);
  Results results;
  for (bool sorted : {false, true}) {
    if (sorted) std::sort(g.dst.begin(), g.dst.end());
    const Doubles length = numbers<double>(kEdges, 29, 0.5, 6), charge(kNodes, 8),
                  power(kNodes, 1.6), grad = numbers<double>(kNodes, 30), cutoff{5};
    const Integers type(kNodes, 0);
    ZblEdges<double> t{};
    t.num_edges = kEdges, t.num_nodes = t.num_atoms = kNodes, t.num_types = 1;
    t.length = length.data(), t.cutoff = cutoff.data();
    t.dst = g.dst.data(), t.src = g.src.data();
    t.atoms = {charge.data(), power.data(), type.data()};
    t.prefactor = 7.2, t.p = 6;
    Doubles out(kNodes), next(kEdges), slope(kEdges);
    zbl().nodes_f64(t, out.data(), next.data(), parallel_for, threads);
    t.order = 1;
    zbl().edges_f64(t, grad.data(), slope.data(), parallel_for, threads);
    for (const Doubles* result : {&out, &next, &slope}) results.add(*result);
  }
  return results;
}

Results polynomials(int64_t threads) {
  // x1^2 x3, x1 x2 and x3^3; x1 x2 x3 and x3
  constexpr int64_t types = 3, inputs = 3, outputs = 2, terms = 5, channels = 11;
  const Integers tables{inputs, outputs, terms, 25, 0, 0, 1, 1, 3, 0, 1, 2, 0,
                        0,      3,       3,     3,  1, 1, 2, 3, 1, 3, 0, 0};
  const Floats x = numbers<float>(kNodes * inputs * channels, 51),
               along = numbers<float>(x.size(), 52),
               coefficients = numbers<float>(types * terms * channels, 53),
               grad = numbers<float>(kNodes * outputs * channels, 54);
  Integers node(kNodes), ends(types);
  for (int64_t n = 0; n < kNodes; ++n) node[n] = kNodes - 1 - n;
  for (int64_t t = 0; t < types; ++t) ends[t] = kNodes * (t + 1) / types;
  const Typed typed{node.data(), ends.data(), types, kNodes};
  Results results;
  for (bool second : {false, true}) {
    Floats out(grad.size()), dx(x.size()), dcoefficients(coefficients.size());
    const PolynomialTensors<float> t{channels, x.data(), second ? along.data() : nullptr,
                                     coefficients.data(), grad.data()};
    const auto& kernels = symmetric_contraction();
    kernels.value_f32(t, typed, tables.data(), out.data(), parallel_for, threads);
    kernels.dx_f32(t, typed, tables.data(), dx.data(), parallel_for, threads);
    kernels.dcoefficients_f32(t, typed, tables.data(), dcoefficients.data(), parallel_for, threads);
    for (const Floats* result : {&out, &dx, &dcoefficients}) results.add(*result);
  }
  return results;
}

const std::vector<std::pair<const char*, Results (*)(int64_t)>> kKernels = {
    {"edges", edges},
    {"tensor_product_conv", tensor_product_convs},
    {"radial_conv", radial_convs},
    {"env_sum", env_sums},
    {"contraction", contractions},
    {"scalar_mlp", scalar_mlps},
    {"edge_embedding", edge_embeddings},
    {"gate", gates},
    {"irreps_linear", linears},
    {"pair_linear", pair_linears},
    {"scale_shift", scale_shifts},
    {"spline", splines},
    {"symmetric_contraction", polynomials},
    {"zbl", zbls},
};

}  // namespace
}  // namespace fastmlip

int main() {
  using namespace fastmlip;
  bool same = true;
  for (const auto& [name, kernels] : kKernels) {
    const Results alone = kernels(1);
    Results both[2];
    std::thread other([&, run = kernels] { both[1] = run(kThreads); });
    both[0] = kernels(kThreads);
    other.join();
    const bool equal = both[0] == alone && both[1] == alone;
    std::printf("%s: %s\n", name, equal ? "the same bits" : "bits depend on threads");
    same &= equal;
  }
  return same ? 0 : 1;
}
