// CPU kernels of edge_embedding; fastmlip/ops/edge_embedding.py states the formula.
//
// One lane is one edge. `Embedding<T>` below is written once: over vectors of doubles it gives
// values and gradients, over dual numbers their derivatives along (h_vec, h_roots), which are the
// double backward. Sums over edges (d_roots) are made per block of kBlock edges, then in the order
// of the blocks: the same bits for any number of threads.
#include "operators/edge_embedding.h"

#include <algorithm>
#include <vector>

#include "simd/dual.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

constexpr int L = kLanes<double>;
constexpr int64_t kBlock = 256;
constexpr double kSmall = 0.5;  // below it sin(z)/z and its slope come from their series

template <class T>
T lift(Real value, Real derivative);
template <>
Real lift<Real>(Real value, Real) {
  return value;
}
template <>
Dual lift<Dual>(Real value, Real derivative) {
  return {value, derivative};
}
template <class T>
T constant(double value) {
  return lift<T>(splat(value), Real{});
}

struct Term {
  int i, j, k;
  double value;
};

struct Harmonics {
  std::vector<double> scale;  // of each degree
  std::vector<Term> terms;

  explicit Harmonics(const EdgeEmbeddingShape& shape) {
    for (int64_t l = 0; l <= shape.l_max; ++l) scale.push_back(as_double(shape.tables[l]));
    const auto* rows = reinterpret_cast<const HarmonicTerm*>(shape.tables + shape.l_max + 1);
    for (const HarmonicTerm* row = rows; row != rows + shape.num_terms; ++row)
      terms.push_back({int(row->i), int(row->j), int(row->k), as_double(row->value_bits)});
  }

  static double as_double(int64_t bits) {
    double value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
};

// Rows [count, columns] to and from one vector a column, an edge a lane; lanes behind `count` are
// 0.
template <class T>
void gather(const T* rows, int64_t columns, int count, Real* to) {
  double* lanes = reinterpret_cast<double*>(to);
  if (!rows || count < L) std::fill(to, to + columns, Real{});
  if (!rows) return;
  if (count == L) {
    for (int64_t column = 0; column < columns; ++column)
      for (int e = 0; e < L; ++e) lanes[column * L + e] = rows[e * columns + column];
  } else {
    for (int64_t column = 0; column < columns; ++column)
      for (int e = 0; e < count; ++e) lanes[column * L + e] = rows[e * columns + column];
  }
}
template <class T>
void scatter(const Real* from, int64_t columns, int count, T* rows) {
  const double* lanes = reinterpret_cast<const double*>(from);
  if (count == L) {
    for (int64_t column = 0; column < columns; ++column)
      for (int e = 0; e < L; ++e) rows[e * columns + column] = T(lanes[column * L + e]);
  } else {
    for (int64_t column = 0; column < columns; ++column)
      for (int e = 0; e < count; ++e) rows[e * columns + column] = T(lanes[column * L + e]);
  }
}

// b = sin(pi w x) / (pi x) = w sinc(w x), its derivative along x, and along w: cos(pi w x).
template <class T>
struct Bessel {
  T b, dx, dw;

  Bessel(T x, T per_x, T w) {
    T sine;
    const T t = w * x;
    sincospi(t, sine, dw);
    b = sine * per_x * (1 / M_PI);
    dx = (w * dw - b) * per_x;
    const Real size = value_of(t);
    const Mask small = (size < kSmall / M_PI) & (size > -kSmall / M_PI);
    if (any(small)) {
      const T z = t * M_PI, q = z * z;
      T value = constant<T>(1. / 6227020800.), slope = constant<T>(-14. / 1307674368000.);
      for (double c : {-1. / 39916800., 1. / 362880., -1. / 5040., 1. / 120., -1. / 6., 1.})
        value = value * q + c;
      for (double c :
           {12. / 6227020800., -10. / 39916800., 8. / 362880., -6. / 5040., 4. / 120., -2. / 6.})
        slope = slope * q + c;
      b = select(small, w * value, b);
      dx = select(small, w * w * z * slope * M_PI, dx);
    }
  }
};

// 1 - (p + 1)(p + 2)/2 x^p + p (p + 2) x^(p + 1) - p (p + 1)/2 x^(p + 2) and 0 where x >= 1.
template <class T>
struct Cutoff {
  T c, dx;

  Cutoff(T x, int64_t p) {
    const T zero = constant<T>(0), one = constant<T>(1), rest = 1.0 - x;
    const double p0 = double(p), p1 = p0 + 1, p2 = p0 + 2;
    const T below = power(x, p - 1, one), at = below * x;
    const Mask inside = ~(value_of(x) >= 1);  // so NaN stays NaN
    c = 1.0 - at * (x * (x * (p0 * p1 / 2) - p0 * p2) + p1 * p2 / 2);
    dx = below * rest * rest * (-p0 * p1 * p2 / 2);
    c = select(inside, c, zero);
    dx = select(inside, dx, zero);
  }
};

template <class T>
struct EdgeScratch {
  std::vector<T> harmonics;
  std::vector<Real> rows, rows2, d_roots;

  explicit EdgeScratch(const EdgeEmbeddingShape& shape)
      : harmonics(shape.harmonics()),
        rows(std::max<int64_t>({shape.harmonics(), shape.num_bessels, 3})),
        rows2(rows.size()),
        d_roots(shape.num_bessels) {}
};

// Up to L edges from `edge` on.
template <class T, class O, bool kValues, bool kGrad>
void embed(const EdgeEmbeddingShape& shape, const EdgeEmbeddingTensors<O>& t,
           const Harmonics& table, int64_t edge, int count, EdgeScratch<T>& s) {
  constexpr bool kDual = std::is_same_v<T, Dual>;
  Real v[3], h[3] = {}, recip;
  gather(t.vec + edge * 3, 3, count, v);
  if (kDual) gather(t.h_vec + edge * 3, 3, count, h);
  recip = splat(t.rmax_recip[0]);
  if (t.edge_type)
    for (int e = 0; e < count; ++e)
      recip[e] = t.rmax_recip[t.edge_type[edge + e] * shape.num_types +
                              t.edge_type[shape.edges + edge + e]];

  T u[3] = {lift<T>(v[0], h[0]), lift<T>(v[1], h[1]), lift<T>(v[2], h[2])};
  const T length = square_root(u[0] * u[0] + u[1] * u[1] + u[2] * u[2]);
  const T per_length = reciprocal(length), x = length * recip, per_x = reciprocal(x);
  for (T& component : u) component = component * per_length;
  if (kValues) {
    const Real both[] = {highest_of(length), highest_of(x)};
    scatter(both, 1, count, t.length + edge);
    scatter(both + 1, 1, count, t.norm + edge);
  }

  // harmonics, and gradients a of <g, harmonics> along u
  T a[3] = {constant<T>(0), constant<T>(0), constant<T>(0)};
  const int dim = int(shape.harmonics());
  if (dim) {
    T* r = s.harmonics.data();
    Real* g = s.rows.data();
    if (kGrad) gather(t.g_attrs ? t.g_attrs + edge * dim : nullptr, dim, count, g);
    std::fill(r, r + dim, constant<T>(0));
    r[0] = constant<T>(1);
    const Term *term = table.terms.data(), *end = term + table.terms.size();
    for (int l = 1; l <= shape.l_max; ++l) {
      const Real scale = splat(table.scale[l]);
      for (; term != end && term->i < (l + 1) * (l + 1); ++term) {
        const T from = r[term->j] * term->value;
        r[term->i] = r[term->i] + u[term->k] * from;
        if (kGrad) a[term->k] = a[term->k] + from * (g[term->i] * scale);
      }
      for (int i = l * l; i < (l + 1) * (l + 1); ++i) r[i] = r[i] * (1.0 / l);
    }
    if (kValues) {
      Real* out = s.rows2.data();
      for (int l = 0; l <= shape.l_max; ++l)
        for (int i = l * l; i < (l + 1) * (l + 1); ++i) out[i] = highest_of(r[i]) * table.scale[l];
      scatter(out, dim, count, t.attrs + edge * dim);
    }
  }

  // radial part, and the gradient d along the length
  const Cutoff<T> cut(x, shape.p);
  Real g_length{}, g_norm{}, g_cutoff{};
  if (kGrad && t.g_length) gather(t.g_length + edge, 1, count, &g_length);
  if (kGrad && t.g_norm) gather(t.g_norm + edge, 1, count, &g_norm);
  if (kGrad && t.g_cutoff) gather(t.g_cutoff + edge, 1, count, &g_cutoff);
  T d_x = cut.dx * g_cutoff + g_norm;
  const int64_t roots = shape.num_bessels;
  Real *g = s.rows.data(), *out = s.rows2.data();
  if (kGrad) gather(t.g_embedding ? t.g_embedding + edge * roots : nullptr, roots, count, g);
  for (int64_t n = 0; n < roots; ++n) {
    const T w = lift<T>(splat(t.roots[n]), splat(kDual ? t.h_roots[n] : 0));
    const Bessel<T> bessel(x, per_x, w);
    if (kValues) out[n] = highest_of(bessel.b * cut.c) * shape.factor;
    if (kGrad) {
      const Real scaled = g[n] * shape.factor;
      d_x = d_x + (bessel.dx * cut.c + bessel.b * cut.dx) * scaled;
      s.d_roots[n] += highest_of(bessel.dw * cut.c) * scaled;
    }
  }
  if (kValues) {
    scatter(out, roots, count, t.embedding + edge * roots);
    const Real cutoff = highest_of(cut.c);
    scatter(&cutoff, 1, count, t.cutoff + edge);
  }

  if (kGrad) {
    const T along = u[0] * a[0] + u[1] * a[1] + u[2] * a[2];
    const T d_length = d_x * recip + g_length;
    Real d[3];
    for (int k = 0; k < 3; ++k)
      d[k] = highest_of((a[k] - along * u[k]) * per_length + d_length * u[k]);
    scatter(d, 3, count, t.d_vec + edge * 3);
  }
}

template <class T, class O, bool kValues, bool kGrad>
void embed_all(const EdgeEmbeddingShape& shape, const EdgeEmbeddingTensors<O>& t,
               ParallelFor parallel_for, int64_t threads) {
  const Harmonics table(shape);
  const int64_t blocks = (shape.edges + kBlock - 1) / kBlock, roots = shape.num_bessels;
  std::vector<double> partial(kGrad ? blocks * roots : 0);
  run(parallel_for, threads, [&](int64_t part) {
    EdgeScratch<T> scratch(shape);
    for (int64_t block = blocks * part / threads; block < blocks * (part + 1) / threads; ++block) {
      std::fill(scratch.d_roots.begin(), scratch.d_roots.end(), Real{});
      const int64_t end = std::min(shape.edges, (block + 1) * kBlock);
      for (int64_t edge = block * kBlock; edge < end; edge += L)
        embed<T, O, kValues, kGrad>(shape, t, table, edge, int(std::min<int64_t>(L, end - edge)),
                                    scratch);
      if (kGrad)
        for (int64_t n = 0; n < roots; ++n)
          for (int lane = 0; lane < L; ++lane)
            partial[block * roots + n] += scratch.d_roots[n][lane];
    }
  });
  if (kGrad)
    for (int64_t n = 0; n < roots; ++n) {
      t.d_roots[n] = 0;
      for (int64_t block = 0; block < blocks; ++block) t.d_roots[n] += partial[block * roots + n];
    }
}

template <class O>
constexpr EdgeEmbeddingKernels<O> kernels = {&embed_all<Real, O, true, false>,
                                             &embed_all<Real, O, false, true>,
                                             &embed_all<Dual, O, true, true>};

}  // namespace

extern const EdgeEmbedding edge_embedding;
const EdgeEmbedding edge_embedding = {kernels<float>, kernels<double>};

}  // namespace fastmlip::FASTMLIP_ISA
