// One path (one instruction) over one group of edges, for both passes and both orders: the inner
// loops of tensor_product_conv.cpp, whose header states the formulas.
#pragma once

#include "plan.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

// A group of up to kLanes edges of one node, seen from that node.
template <class T>
struct Group {
  int count;
  bool stream;                            // whether rows of dw are written past the caches
  const T *w[kLanes<T>], *hw[kLanes<T>];  // rows of edge_weight
  const T *next_w[kLanes<T>], *next_hw[kLanes<T>];  // rows of the next group, to prefetch
  T* dw[kLanes<T>];                                 // rows of its gradient
  const T *far[kLanes<T>], *far2[kLanes<T>];        // packed rows of the other node: x, hx or grad
  const T *matrix, *matrix2;                        // M, M' of the path at hand: [d1 * d3][lane]
  int begin, end;                                   // of them those that send() is to take
  const T* soon;                                    // what it will read next of far
  Short<T>* q;                                      // Q of these, of all paths: [kStep][entries]
  int entries;
  Short<T>* da;  // [edge][dim2], not yet summed over lanes
};

// Fetches the path's share of the row that follows in the next group at the place of edge e.
template <class T, bool kSecond>
FASTMLIP_INLINE inline void fetch_next(const PlanPath<T>& p, const Group<T>& group, int e) {
  for (int column = p.fetch; column < p.fetch_end; column += 64 / int(sizeof(T))) {
    prefetch(group.next_w[e] + column);
    if (kSecond) prefetch(group.next_hw[e] + column);
  }
}

// M of all paths, a vector of edges for each entry; entries without a term are zero already.
template <class T>
[[gnu::noinline]] void make_matrices(const Plan<T>& plan, const Vec<T>* attr, Vec<T>* matrix) {
  for (const CgTerm<T>& term : plan.set) matrix[term.index] = term.value * attr[term.m2];
  for (const CgTerm<T>& term : plan.add) matrix[term.index] += term.value * attr[term.m2];
}

// In the kernels D1, D3 are the irreps' dimensions where known at compile time, 0 where not.
constexpr int kRegisters = FASTMLIP_VECTOR_BYTES == 64 ? 32 : 16;
constexpr int kMaxDim = 23;  // e3nn's Wigner matrices end at l = 11
template <int D>
inline constexpr int kSize = D ? D : kMaxDim;

// Vectors of channels that a broadcast factor serves: as many, up to 128 bytes of them, as
// registers are there for, `each` for a vector and `others` besides.
constexpr int wide(int each, int others = 1) {
  int vectors = 1;
  while (2 * vectors * each + others < kRegisters && 2 * vectors * FASTMLIP_VECTOR_BYTES <= 128)
    vectors *= 2;
  return vectors;
}

// Whether vector v of several begins a cache line, for prefetches.
constexpr bool begins_line(int v) { return v * FASTMLIP_VECTOR_BYTES % 64 == 0; }

template <class T, int D1, int D3, bool kSparse, bool kSecond>
[[gnu::noinline]] void receive_path(const PlanPath<T>& p, const Group<T>& group, T* out) {
  constexpr int L = kLanes<T>, S = kSize<D3>;
  const int d1 = D1 ? D1 : p.d1, d3 = D3 ? D3 : p.d3, padded = p.padded, count = group.count;
  const int in1 = p.in1, weight = p.weight;
  for_channels<T, wide(kSize<D3> + 1 + kSecond)>(
      p.mul, [&](auto W, int u, int left) FASTMLIP_INLINE {
        T* to = out + p.out + u;
        Vec<T> sum[W * S];
        unroll<W>(W, [&](int v) FASTMLIP_INLINE {
          unroll<D3>(d3, [&](int m3)
                             FASTMLIP_INLINE { sum[v * S + m3] = load(to + m3 * padded + v * L); });
        });
        for (int e = 0; e < count; ++e) {
          const T *matrix = group.matrix + e, *matrix2 = group.matrix2 + e;
          const T *x = group.far[e] + in1 + u, *hx = group.far2[e] + in1 + u;
          const T *w_row = group.w[e] + weight + u, *hw_row = group.hw[e] + weight + u;
          Vec<T> w[W], hw[W];
          unroll<W>(W, [&](int v) FASTMLIP_INLINE {
            w[v] = pin(load_some(w_row + v * L, left));
            if (begins_line(v)) prefetch(group.next_w[e] + weight + u + v * L);
            if (kSecond) hw[v] = load_some(hw_row + v * L, left);
            if (kSecond && begins_line(v)) prefetch(group.next_hw[e] + weight + u + v * L);
          });
          unroll<D1>(d1, [&](int m1) FASTMLIP_INLINE {
            Vec<T> a[W], b[W];
            unroll<W>(W, [&](int v) FASTMLIP_INLINE {
              const Vec<T> xm = pin(load(x + m1 * padded + v * L));
              a[v] = b[v] = w[v] * xm;
              if (kSecond) a[v] = w[v] * load(hx + m1 * padded + v * L) + hw[v] * xm;
            });
            unroll<D3>(d3, [&](int m3) FASTMLIP_INLINE {
              if (kSparse && !selected(D1, D3, m1, m3)) return;
              const Vec<T> m = broadcast<T>(matrix[(m1 * d3 + m3) * L]);
              unroll<W>(W, [&](int v) FASTMLIP_INLINE { sum[v * S + m3] += m * a[v]; });
              if (kSecond) {
                const Vec<T> m2 = broadcast<T>(matrix2[(m1 * d3 + m3) * L]);
                unroll<W>(W, [&](int v) FASTMLIP_INLINE { sum[v * S + m3] += m2 * b[v]; });
              }
            });
          });
        }
        unroll<W>(W, [&](int v) FASTMLIP_INLINE {
          unroll<D3>(d3, [&](int m3)
                             FASTMLIP_INLINE { store(to + m3 * padded + v * L, sum[v * S + m3]); });
        });
      });
}

// l2 = 0: M is one number times the unit matrix.
template <class T, int D, bool kSecond>
[[gnu::noinline]] void receive_scalar_path(const PlanPath<T>& p, const Group<T>& group, T* out) {
  constexpr int L = kLanes<T>, S = kSize<D>;
  const int d = D ? D : p.d1, padded = p.padded, count = group.count, in1 = p.in1,
            weight = p.weight;
  for_channels<T, wide(S + 1 + kSecond)>(p.mul, [&](auto W, int u, int left) FASTMLIP_INLINE {
    T* to = out + p.out + u;
    Vec<T> sum[W * S];
    unroll<W>(W, [&](int v) FASTMLIP_INLINE {
      unroll<D>(d, [&](int m) FASTMLIP_INLINE { sum[v * S + m] = load(to + m * padded + v * L); });
    });
    for (int e = 0; e < count; ++e) {
      const T *x = group.far[e] + in1 + u, *hx = group.far2[e] + in1 + u;
      const T *w_row = group.w[e] + weight + u, *hw_row = group.hw[e] + weight + u;
      const T scale = group.matrix[e], scale2 = group.matrix2[e];
      unroll<W>(W, [&](int v) FASTMLIP_INLINE {
        const Vec<T> w = pin(load_some(w_row + v * L, left));
        if (begins_line(v)) prefetch(group.next_w[e] + weight + u + v * L);
        const Vec<T> scaled = scale * w;
        Vec<T> with_x = scaled;
        if (kSecond) {
          const Vec<T> hw = load_some(hw_row + v * L, left);
          if (begins_line(v)) prefetch(group.next_hw[e] + weight + u + v * L);
          with_x = scale * hw + scale2 * w;
        }
        unroll<D>(d, [&](int m) FASTMLIP_INLINE {
          sum[v * S + m] += with_x * load(x + m * padded + v * L);
          if (kSecond) sum[v * S + m] += scaled * load(hx + m * padded + v * L);
        });
      });
    }
    unroll<W>(W, [&](int v) FASTMLIP_INLINE {
      unroll<D>(d, [&](int m) FASTMLIP_INLINE { store(to + m * padded + v * L, sum[v * S + m]); });
    });
  });
}

// Where the registers hold all of Q of an edge besides y, w x and grad, one loop makes everything.
template <int D1, int D3, bool kSecond>
constexpr bool kHoldsQ = D1 && D3 && D1 * D3 + (2 + kSecond) * D1 + 4 <= kRegisters;

// w x of one vector of channels, or the derivative of it in the directions hw, hx.
template <class T, int D1, bool kSecond>
FASTMLIP_INLINE inline void weighted(int d1, const T* x, const T* hx, int padded, const T* w_row,
                                     const T* hw_row, int left, Vec<T>* v) {
  const Vec<T> w = pin(load_some(w_row, left));
  unroll<D1>(d1,
             [&](int m1) FASTMLIP_INLINE { v[m1] = w * load((kSecond ? hx : x) + m1 * padded); });
  if (!kSecond) return;
  const Vec<T> hw = pin(load_some(hw_row, left));
  unroll<D1>(d1, [&](int m1) FASTMLIP_INLINE { v[m1] += hw * load(x + m1 * padded); });
}

// dx and dw of one edge from y[m1] = sum_m3 M[m1, m3] g[m3], and Q where registers hold it.
template <class T, int D1, int D3, bool kSparse, bool kSecond>
void send_rows(const PlanPath<T>& p, const Group<T>& group, int e, const T* x, const T* hx, T* dx,
               Short<T>* to) {
  constexpr bool holds_q = kHoldsQ<D1, D3, kSecond>;
  constexpr int L = kLanes<T>, S = kSize<D1>, kQ = holds_q ? D1 * D3 : 1;
  constexpr int vectors =
      holds_q ? wide((2 + kSecond) * D1 + 1, D1 * D3 + 2 + kSecond) : wide((1 + kSecond) * S + 1);
  const int d1 = D1 ? D1 : p.d1, d3 = D3 ? D3 : p.d3, padded = p.padded;
  const T *matrix = group.matrix + e, *matrix2 = group.matrix2 + e;
  const T* grad = group.far[e] + p.out;
  const T* soon = e + 1 < group.end ? group.far[e + 1] + p.out : group.soon;
  const T *w_row = group.w[e] + p.weight, *hw_row = group.hw[e] + p.weight;
  T* dw_row = group.dw[e] + p.weight;
  const bool stream = group.stream && can_stream(dw_row);
  Vec<T> q[kQ] = {};
  fetch_next<T, kSecond>(p, group, e);
  for_channels<T, vectors>(p.mul, [&](auto W, int u, int left) FASTMLIP_INLINE {
    Vec<T> y[W * S] = {}, y2[kSecond ? W * S : 1] = {}, wx[holds_q ? W * S : 1];
    if constexpr (holds_q)
      unroll<W>(W, [&](int v) FASTMLIP_INLINE {
        const int at = u + v * L;
        weighted<T, D1, kSecond>(d1, x + at, hx + at, padded, w_row + at, hw_row + at, left,
                                 wx + v * S);
      });
    unroll<D3>(d3, [&](int m3) FASTMLIP_INLINE {
      Vec<T> g[W];
      unroll<W>(W, [&](int v) FASTMLIP_INLINE {
        const int at = m3 * padded + u + v * L;
        g[v] = pin(load(grad + at));
        if (begins_line(v)) prefetch_soon(soon + at);
      });
      unroll<D1>(d1, [&](int m1) FASTMLIP_INLINE {
        if (kSparse && !selected(D1, D3, m1, m3)) return;
        const int at = (m1 * d3 + m3) * L;
        const Vec<T> m = broadcast<T>(matrix[at]);
        unroll<W>(W, [&](int v) FASTMLIP_INLINE { y[v * S + m1] += m * g[v]; });
        if (kSecond) {
          const Vec<T> m2 = broadcast<T>(matrix2[at]);
          unroll<W>(W, [&](int v) FASTMLIP_INLINE { y2[v * S + m1] += m2 * g[v]; });
        }
        if constexpr (holds_q)
          unroll<W>(W, [&](int v) FASTMLIP_INLINE { q[m1 * D3 + m3] += wx[v * S + m1] * g[v]; });
      });
    });
    unroll<W>(W, [&](int v) FASTMLIP_INLINE {
      const Vec<T> w = pin(load_some(w_row + u + v * L, left));
      Vec<T> hw{}, dw{};
      if (kSecond) hw = pin(load_some(hw_row + u + v * L, left));
      unroll<D1>(d1, [&](int m1) FASTMLIP_INLINE {
        const int at = m1 * padded + u + v * L;
        const Vec<T> xm = pin(load(x + at)), ym = y[v * S + m1];
        Vec<T> d = load(dx + at);
        if (kSecond) {
          const Vec<T> ym2 = y2[v * S + m1];
          dw += xm * ym2 + load(hx + at) * ym;
          d += w * ym2 + hw * ym;
        } else {
          dw += xm * ym;
          d += w * ym;
        }
        store(dx + at, d);
      });
      write_some(dw_row + u + v * L, dw, left, stream);
    });
  });
  if constexpr (holds_q) unroll<kQ>(kQ, [&](int i) FASTMLIP_INLINE { to[i] = shorten<T>(q[i]); });
}

// Columns [first, first + C) of m1 of Q of one edge, so that C * d3 sums fit the registers.
template <class T, int C, int D3, bool kSecond>
void send_columns(const PlanPath<T>& p, const Group<T>& group, int e, int first, const T* x,
                  const T* hx, Short<T>* to) {
  constexpr int S = kSize<D3>;
  const int d3 = D3 ? D3 : p.d3, padded = p.padded;
  const T *grad = group.far[e] + p.out, *w_row = group.w[e] + p.weight,
          *hw_row = group.hw[e] + p.weight;
  x += first * padded;
  hx += first * padded;
  Vec<T> q[C * S] = {};
  for_channels<T>(p.mul, [&](auto, int u, int left) FASTMLIP_INLINE {
    Vec<T> v[C];
    weighted<T, C, kSecond>(C, x + u, hx + u, padded, w_row + u, hw_row + u, left, v);
    unroll<D3>(d3, [&](int m3) FASTMLIP_INLINE {
      const Vec<T> g = pin(load(grad + m3 * padded + u));
      unroll<C>(C, [&](int c) FASTMLIP_INLINE { q[c * S + m3] += v[c] * g; });
    });
  });
  to += first * d3;
  unroll<C>(C, [&](int c) FASTMLIP_INLINE {
    unroll<D3>(d3, [&](int m3) FASTMLIP_INLINE { to[c * d3 + m3] = shorten<T>(q[c * S + m3]); });
  });
}

// da of kStep edges at a time from their Q, one coefficient for all of them.
constexpr int kStep = 4;

template <class T>
[[gnu::noinline]] void contract_q(const Plan<T>& plan, const Short<T>* q, Short<T>* da) {
  const int entries = plan.matrix_entries, dim2 = plan.dim2;
  const CgTerm<T>*term = plan.by_m2.data(), *end = term + plan.by_m2.size();
  for (int m2 = 0; m2 < dim2; ++m2) {
    Short<T> sum[kStep] = {};
    for (; term != end && term->m2 == m2; ++term) {
      const T value = term->value;
      const Short<T>* from = q + term->index;
      unroll<kStep>(kStep, [&](int e) FASTMLIP_INLINE { sum[e] += value * from[e * entries]; });
    }
    unroll<kStep>(kStep, [&](int e) FASTMLIP_INLINE { da[e * dim2 + m2] = sum[e]; });
  }
}

template <class T, int D1, int D3, bool kSparse, bool kSecond>
[[gnu::noinline]] void send_path(const PlanPath<T>& p, const Group<T>& group, const T* x,
                                 const T* hx, T* dx) {
  constexpr int columns = !D1 || !D3 ? 1 : std::clamp((kRegisters - 2) / (D3 + 1), 1, D1);
  constexpr int rest = D1 ? D1 % columns : 0;
  const int d1 = D1 ? D1 : p.d1;
  x += p.in1;
  hx += p.in1;
  dx += p.in1;
  Short<T>* q = group.q + p.matrix;
  for (int e = group.begin; e < group.end; ++e, q += group.entries) {
    send_rows<T, D1, D3, kSparse, kSecond>(p, group, e, x, hx, dx, q);
    if constexpr (kHoldsQ<D1, D3, kSecond>) continue;
    int first = 0;
    for (; first + columns <= d1; first += columns)
      send_columns<T, columns, D3, kSecond>(p, group, e, first, x, hx, q);
    if constexpr (rest > 0) send_columns<T, rest, D3, kSecond>(p, group, e, first, x, hx, q);
  }
}

template <class T, int D, bool kSecond>
[[gnu::noinline]] void send_scalar_path(const PlanPath<T>& p, const Group<T>& group, const T* x,
                                        const T* hx, T* dx) {
  constexpr int L = kLanes<T>;
  const int d = D ? D : p.d1, padded = p.padded;
  x += p.in1;
  hx += p.in1;
  dx += p.in1;
  Short<T>* to = group.q + p.matrix;
  for (int e = group.begin; e < group.end; ++e, to += group.entries) {
    const T *grad = group.far[e] + p.out, scale = group.matrix[e],
            scale2 = kSecond ? group.matrix2[e] : T(0);
    const T *w_row = group.w[e] + p.weight, *hw_row = group.hw[e] + p.weight;
    T* dw_row = group.dw[e] + p.weight;
    const bool stream = group.stream && can_stream(dw_row);
    const T* soon = e + 1 < group.end ? group.far[e + 1] + p.out : group.soon;
    fetch_next<T, kSecond>(p, group, e);
    Vec<T> q[wide(2)] = {};  // several, so that their additions need not wait for each other
    for_channels<T, wide(2)>(p.mul, [&](auto W, int u, int left) FASTMLIP_INLINE {
      unroll<W>(W, [&](int v) FASTMLIP_INLINE {
        const int column = u + v * L;
        const Vec<T> w = pin(load_some(w_row + column, left));
        Vec<T> hw{}, xg{}, hxg{}, with_g = scale * w;
        if (kSecond) {
          hw = pin(load_some(hw_row + column, left));
          with_g = scale2 * w + scale * hw;
        }
        unroll<D>(d, [&](int m) FASTMLIP_INLINE {
          const int at = m * padded + column;
          const Vec<T> g = pin(load(grad + at));
          if (begins_line(v)) prefetch_soon(soon + at);
          xg += load(x + at) * g;
          if (kSecond) hxg += load(hx + at) * g;
          store(dx + at, load(dx + at) + with_g * g);
        });
        Vec<T> dw = scale * xg;
        q[v] += w * (kSecond ? hxg : xg);
        if (kSecond) {
          q[v] += hw * xg;
          dw = scale2 * xg + scale * hxg;
        }
        write_some(dw_row + column, dw, left, stream);
      });
    });
    for (int v = 1; v < wide(2); ++v) q[0] += q[v];
    *to = shorten<T>(q[0]);
  }
}

// ------------------------------------------------------------------ dispatch on dimensions

// f(d1, d3, whether to skip entries of M that are not selected()), as constants; to skip is
// compiled for l = 1 to 3 only.
template <class T, class F>
void with_dims(const PlanPath<T>& p, const F& f) {
  with_dim(p.d1, [&](auto D1) {
    with_dim(p.d3, [&](auto D3) {
      constexpr int d1 = D1, d3 = D3;
      using Known1 = std::integral_constant<int, d3 ? d1 : 0>;
      using Known3 = std::integral_constant<int, d1 ? d3 : 0>;
      if constexpr (d1 > 1 && d3 > 1 && d1 != d3 && d1 + d3 <= 12)
        if (p.sparse) return f(Known1{}, Known3{}, std::true_type{});
      f(Known1{}, Known3{}, std::false_type{});
    });
  });
}

template <class T, bool kSecond>
void receive(const PlanPath<T>& p, const Group<T>& group, T* out) {
  if (p.d2 == 1)
    return with_dim(p.d1, [&](auto D) { receive_scalar_path<T, D, kSecond>(p, group, out); });
  with_dims(p, [&](auto D1, auto D3, auto Sparse) {
    receive_path<T, D1, D3, Sparse, kSecond>(p, group, out);
  });
}

template <class T, bool kSecond>
void send(const PlanPath<T>& p, const Group<T>& group, const T* x, const T* hx, T* dx) {
  if (p.d2 == 1)
    return with_dim(p.d1, [&](auto D) { send_scalar_path<T, D, kSecond>(p, group, x, hx, dx); });
  with_dims(p, [&](auto D1, auto D3, auto Sparse) {
    send_path<T, D1, D3, Sparse, kSecond>(p, group, x, hx, dx);
  });
}

}  // namespace
}  // namespace fastmlip::FASTMLIP_ISA
