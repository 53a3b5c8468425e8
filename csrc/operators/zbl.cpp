// CPU kernels of zbl; fastmlip/ops/zbl.py states the formula and the sources of its constants.
//
// Edges go through in blocks that stay in the first cache: their lengths, screening lengths,
// charges and cutoffs are gathered into arrays of doubles, phi or a derivative of it is computed a
// vector at a time, then summed per receiver or multiplied by the receiver's gradient. A node's
// edges are added one after the other in the order they come in, so the sum is the same bits for
// any number of threads.
#include "operators/zbl.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "base/in_range.h"
#include "simd/simd.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

using V = Vec<double>;
typedef int64_t Bits __attribute__((vector_size(FASTMLIP_VECTOR_BYTES)));
constexpr int kBlock = 256;  // edges; a multiple of every vector length
constexpr double kRMin = 1e-4, kLength = 0.46850;
constexpr double kC[4] = {0.18175, 0.50986, 0.28022, 0.02817};
constexpr double kD[4] = {3.19980, 0.94229, 0.40290, 0.20162};

inline V all(double x) { return V{} + x; }

// e^y for y <= 0: y = n ln 2 + f with |f| <= ln 2 / 2, a Taylor polynomial of e^f to f^13 (its rest
// is below 1e-17), times 2^n. Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits.
inline V exp_of_negative(V y) {
  constexpr double magic = 6755399441055744.0, bias = 1023.0;
  y = y < all(-708.0) ? all(-708.0) : y;  // so NaN stays NaN
  const V shifted = y * 1.4426950408889634 + (magic + bias);
  const V n = shifted - (magic + bias);
  V f = y - n * 0.693147180369123816490;  // ln 2 in two parts, the first with trailing zeros
  f = f - n * 1.90821492927058770002e-10;
  constexpr double inverse_factorial[] = {1.0 / 6227020800,
                                          1.0 / 479001600,
                                          1.0 / 39916800,
                                          1.0 / 3628800,
                                          1.0 / 362880,
                                          1.0 / 40320,
                                          1.0 / 5040,
                                          1.0 / 720,
                                          1.0 / 120,
                                          1.0 / 24,
                                          1.0 / 6,
                                          0.5,
                                          1.0,
                                          1.0};
  V e = all(inverse_factorial[0]);
  for (int i = 1; i < 14; ++i) e = e * f + inverse_factorial[i];
  Bits power;
  std::memcpy(&power, &shifted, sizeof(power));
  power = power << 52;
  V scale;
  std::memcpy(&scale, &power, sizeof(scale));
  return e * scale;
}

inline V power(V t, double exponent) {
  const double size = std::fabs(exponent);
  if (size <= 64 && size == std::floor(size)) {
    V result = all(1.0);
    for (int n = int(size); n > 0; n /= 2, t *= t)
      if (n % 2) result *= t;
    return exponent < 0 ? 1.0 / result : result;
  }
  for (int i = 0; i < kLanes<double>; ++i) t[i] = std::pow(t[i], exponent);
  return t;
}

struct Block {
  alignas(64) double r[kBlock],
      inverse_length[kBlock], charges[kBlock], cutoff[kBlock], phi[kBlock], next[kBlock];
};

// phi^(N) of a vector of edges, and phi^(N + 1) where kNext; the names are those of
// fastmlip/ops/zbl.py. phi is the same bits with and without phi' made next to it: powers of t
// begin where those of phi' do, and values that both need are pinned, so as not to be fused with a
// sum in one of the two.
template <int N, bool kNormed, bool kNext>
inline void derivative(V r, V a, V charges, V cutoff, double p, V (&phi)[1 + kNext]) {
  constexpr int M = N + kNext, kLowest = M > 0 ? M : 1;
  const Bits close = r < all(kRMin);
  r = close ? all(kRMin) : r;
  const V inverse = 1.0 / r;
  const V s = kNormed ? cutoff * inverse : 1.0 / cutoff;
  const V t = kNormed ? cutoff : r * s;

  V psi[M + 1] = {}, v[M + 1], u[M + 1], power_of_t[kLowest + 1];
  unroll<4>(4, [&](int k) FASTMLIP_INLINE {
    const V e = pin(exp_of_negative(r * a * -kD[k]));
    double factor = kC[k];
    for (int n = 0; n <= M; ++n, factor *= -kD[k]) psi[n] += factor * e;
  });
  v[0] = pin(psi[0] * inverse);
  V power_of_a = a;
  for (int n = 1; n <= M; ++n, power_of_a *= a)
    v[n] = pin((psi[n] * power_of_a - double(n) * v[n - 1]) * inverse);

  power_of_t[kLowest] = power(t, p - kLowest);  // [n] = t^(p - n)
  for (int n = kLowest - 1; n >= 0; --n) power_of_t[n] = power_of_t[n + 1] * t;
  const double half = p * (p + 1) / 2, slope = -half * (p + 2);
  u[0] = 1.0 - power_of_t[0] * ((p + 1) * (p + 2) / 2 - t * (p * (p + 2) - t * half));
  if constexpr (M > 0) u[1] = slope * power_of_t[1] * (1.0 - t) * (1.0 - t) * s;
  if constexpr (M > 1) u[2] = slope * power_of_t[2] * (1.0 - t) * ((p - 1) - (p + 1) * t) * (s * s);
  if constexpr (M > 2)
    u[3] = slope * power_of_t[3] * ((p - 1) * (p - 2) - t * (2 * p * (p - 1) - t * (p * (p + 1)))) *
           (s * s * s);

  for (int n = N; n <= M; ++n) {
    V sum = pin(v[n] * u[0]);
    double binomial = 1;
    for (int k = 1; k <= n; ++k) {
      binomial = binomial * (n - k + 1) / k;
      sum += binomial * v[n - k] * u[k];
    }
    sum *= charges;
    sum = t >= all(1.0) ? V{} : sum;
    phi[n - N] = n > 0 ? (close ? V{} : sum) : sum;
  }
}

template <int N, bool kNormed, bool kNext>
void derivatives(Block& b, int count, double p) {
  for (int i = 0; i < count; i += kLanes<double>) {
    V phi[1 + kNext];
    derivative<N, kNormed, kNext>(load(b.r + i), load(b.inverse_length + i), load(b.charges + i),
                                  load(b.cutoff + i), p, phi);
    store(b.phi + i, phi[0]);
    if constexpr (kNext) store(b.next + i, phi[1]);
  }
}

using Derivatives = void (*)(Block&, int, double);
template <bool kNormed>
constexpr Derivatives kOne[4] = {derivatives<0, kNormed, false>, derivatives<1, kNormed, false>,
                                 derivatives<2, kNormed, false>, derivatives<3, kNormed, false>};
template <bool kNormed>
constexpr Derivatives kTwo[3] = {derivatives<0, kNormed, true>, derivatives<1, kNormed, true>,
                                 derivatives<2, kNormed, true>};

// The first of the edges begin .. begin + count - 1 with an index out of range.
template <class T>
ZblBad find_bad(const ZblEdges<T>& t, int64_t begin, int count) {
  const int64_t dst = first_bad(t.dst, begin, begin + count, t.num_nodes);
  const int64_t src = first_bad(t.src, begin, begin + count, t.num_atoms);
  if (dst >= 0 && (src < 0 || dst <= src)) return {dst, true};
  return {src, false};
}

template <class T>
void make_phi(const ZblEdges<T>& t, int64_t begin, int count, bool next, Block& b) {
  const int64_t *dst = t.dst + begin, *src = t.src + begin;
  const double *charge = t.atoms.charge, *power = t.atoms.power;
  for (int i = 0; i < count; ++i) {
    b.r[i] = t.length[begin + i];
    b.inverse_length[i] = (power[dst[i]] + power[src[i]]) * (1 / kLength);
    b.charges[i] = t.prefactor * (charge[dst[i]] * charge[src[i]]);
  }
  if (t.normed) {
    for (int i = 0; i < count; ++i) b.cutoff[i] = t.normed[begin + i];
  } else {
    const int64_t* type = t.atoms.type;
    for (int i = 0; i < count; ++i)
      b.cutoff[i] = t.cutoff[type[dst[i]] * t.num_types + type[src[i]]];
  }
  for (int i = count; i % kLanes<double>; ++i)
    b.r[i] = b.inverse_length[i] = b.charges[i] = b.cutoff[i] = 1;
  const auto& one = t.normed ? kOne<true> : kOne<false>;
  const auto& two = t.normed ? kTwo<true> : kTwo<false>;
  (next ? two[t.order] : one[t.order])(b, count, t.p);
}

// phi^(order) of the edges begin .. begin + count - 1, count <= kBlock, times their weights; and
// phi^(order + 1) where `next` asks for it.
template <class T>
ZblBad compute(const ZblEdges<T>& t, int64_t begin, int count, bool next, Block& b) {
  const ZblBad bad = find_bad(t, begin, count);
  if (bad.edge >= 0) return bad;
  if (t.phi)
    std::copy_n(t.phi + begin, count, b.phi);
  else
    make_phi(t, begin, count, next, b);
  if (t.weight)
    for (int i = 0; i < count; ++i) b.phi[i] *= t.weight[begin + i];
  return {};
}

bool is_sorted(const int64_t* index, int64_t count) {
  for (int64_t begin = 1; begin < count; begin += 4096) {
    bool sorted = true;
    const int64_t end = std::min(count, begin + 4096);
    for (int64_t e = begin; e < end; ++e) sorted &= index[e - 1] <= index[e];
    if (!sorted) return false;
  }
  return true;
}

// The first bad edge of all parts, which run over edges in ascending order.
ZblBad first(const std::vector<ZblBad>& parts) {
  for (const ZblBad& bad : parts)
    if (bad.edge >= 0) return bad;
  return {};
}

// f(block, begin, count) for the edges of each part; begin(i) .. begin(i + 1) are those of part i.
template <class T, class Begin, class F>
ZblBad for_blocks(const ZblEdges<T>& t, double* next, ParallelFor parallel_for, int64_t threads,
                  Begin part_begin, const F& f) {
  std::vector<ZblBad> found(threads);
  auto part = [&](int64_t i) {
    Block block;
    const int64_t end = part_begin(i + 1);
    auto work = f();
    for (int64_t begin = part_begin(i); begin < end; begin += kBlock) {
      const int count = int(std::min<int64_t>(kBlock, end - begin));
      found[i] = compute(t, begin, count, next != nullptr, block);
      if (found[i].edge >= 0) return;
      if (next) std::copy_n(block.next, count, next + begin);
      work(block, begin, count);
    }
  };
  run(parallel_for, threads, part);
  return first(found);
}

template <class T>
ZblBad nodes(const ZblEdges<T>& t, double* out, double* next, ParallelFor parallel_for,
             int64_t threads) {
  const int64_t edges = t.num_edges;
  auto cut = [&](int64_t i) { return edges * i / threads; };
  if (is_sorted(t.dst, edges)) {
    // a part owns whole nodes; a bad index cannot come between good ones of the same node
    auto begin = [&](int64_t i) {
      int64_t e = cut(i);
      while (e > 0 && e < edges && t.dst[e] == t.dst[e - 1]) ++e;
      return e;
    };
    return for_blocks(t, next, parallel_for, threads, begin, [&] {
      return [&](const Block& b, int64_t first, int count) {
        const int64_t* dst = t.dst + first;
        for (int i = 0; i < count;) {
          const int64_t node = dst[i];
          double sum = out[node];
          for (; i < count && dst[i] == node; ++i) sum += b.phi[i];
          out[node] = sum;
        }
      };
    });
  }
  const std::unique_ptr<double[]> phi(new double[edges]);
  const ZblBad bad = for_blocks(t, next, parallel_for, threads, cut, [&] {
    return [&](const Block& b, int64_t first, int count) {
      std::copy_n(b.phi, count, phi.get() + first);
    };
  });
  if (bad.edge < 0)
    for (int64_t e = 0; e < edges; ++e) out[t.dst[e]] += phi[e];
  return bad;
}

template <class T>
ZblBad edges(const ZblEdges<T>& t, const double* grad, T* out, ParallelFor parallel_for,
             int64_t threads) {
  auto cut = [&](int64_t i) { return t.num_edges * i / threads; };
  return for_blocks(t, nullptr, parallel_for, threads, cut, [&] {
    return [&](const Block& b, int64_t first, int count) {
      for (int i = 0; i < count; ++i) out[first + i] = T(grad[t.dst[first + i]] * b.phi[i]);
    };
  });
}

}  // namespace

extern const Zbl zbl;
const Zbl zbl = {nodes<float>, nodes<double>, edges<float>, edges<double>};

}  // namespace fastmlip::FASTMLIP_ISA
