// The way back of one path over one group of edges: gradients of the node at hand and of its edges.
#pragma once

#include "tensor_product/send_scalars.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

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
  const PathEdge<T> edge(p, group, e);
  Vec<T> q[kQ] = {};
  fetch_later<T, kSecond>(p, group, e);
  for_channels<T, vectors>(p.mul, [&](auto W, int u, int left) FASTMLIP_INLINE {
    Vec<T> y[W * S] = {}, y2[kSecond ? W * S : 1] = {}, wx[holds_q ? W * S : 1];
    if constexpr (holds_q)
      unroll<W>(W, [&](int v) FASTMLIP_INLINE {
        const int at = u + v * L;
        weighted<T, D1, kSecond>(d1, x + at, hx + at, padded, edge.w + at, edge.hw + at, left,
                                 wx + v * S);
      });
    unroll<D3>(d3, [&](int m3) FASTMLIP_INLINE {
      Vec<T> g[W];
      unroll<W>(W, [&](int v) FASTMLIP_INLINE {
        const int at = m3 * padded + u + v * L;
        g[v] = pin(load(edge.grad + at));
        if (begins_line(v)) prefetch_soon(edge.soon + at);
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
      const Vec<T> w = pin(load_some(edge.w + u + v * L, left));
      Vec<T> hw{}, dw{};
      if (kSecond) hw = pin(load_some(edge.hw + u + v * L, left));
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
      write_some(edge.dw + u + v * L, dw, left, edge.stream);
    });
  });
  if constexpr (holds_q)
    unroll<kQ>(kQ, [&](int i) FASTMLIP_INLINE { to[i * kStep] = shorten<T>(q[i]); });
}

// How many columns of m1 of Q, from `first` on, a loop over channels can sum in registers, besides
// w x of each and grad. Entries that are not selected() stay zero.
template <int D1, int D3, bool kSparse>
constexpr int columns_from(int first) {
  int columns = 0;
  for (int registers = 1; first + columns < D1; ++columns) {
    for (int m3 = 0; m3 < D3; ++m3) registers += !kSparse || selected(D1, D3, first + columns, m3);
    if (++registers > kRegisters) break;
  }
  return std::max(columns, 1);
}

// Columns of m1 of Q of one edge, from kFirst on in as few loops over channels as registers allow.
template <class T, int D1, int D3, bool kSparse, bool kSecond, int kFirst = 0>
FASTMLIP_INLINE inline void send_columns(const PlanPath<T>& p, const Group<T>& group, int e,
                                         const T* x, const T* hx, Short<T>* to) {
  constexpr int C = columns_from<D1, D3, kSparse>(kFirst), next = kFirst + C;
  const int padded = p.padded, first = kFirst * padded;
  const PathEdge<T> edge(p, group, e);
  Vec<T> q[C * D3] = {};
  for_channels<T>(p.mul, [&](auto, int u, int left) FASTMLIP_INLINE {
    Vec<T> v[C];
    weighted<T, C, kSecond>(C, x + first + u, hx + first + u, padded, edge.w + u, edge.hw + u, left,
                            v);
    unroll<D3>(D3, [&](int m3) FASTMLIP_INLINE {
      const Vec<T> g = pin(load(edge.grad + m3 * padded + u));
      unroll<C>(C, [&](int c) FASTMLIP_INLINE {
        if (!kSparse || selected(D1, D3, kFirst + c, m3)) q[c * D3 + m3] += v[c] * g;
      });
    });
  });
  unroll<C * D3>(C * D3,
                 [&](int i) FASTMLIP_INLINE { to[(kFirst * D3 + i) * kStep] = shorten<T>(q[i]); });
  if constexpr (next < D1) send_columns<T, D1, D3, kSparse, kSecond, next>(p, group, e, x, hx, to);
}

// The same where the dimensions are not known.
template <class T, bool kSecond>
void send_any_columns(const PlanPath<T>& p, const Group<T>& group, int e, const T* x, const T* hx,
                      Short<T>* to) {
  const int d3 = p.d3, padded = p.padded;
  const PathEdge<T> edge(p, group, e);
  for (int m1 = 0; m1 < p.d1; ++m1, x += padded, hx += padded, to += d3 * kStep) {
    Vec<T> q[kMaxDim] = {};
    for_channels<T>(p.mul, [&](auto, int u, int left) FASTMLIP_INLINE {
      Vec<T> v;
      weighted<T, 1, kSecond>(1, x + u, hx + u, padded, edge.w + u, edge.hw + u, left, &v);
      for (int m3 = 0; m3 < d3; ++m3) q[m3] += v * pin(load(edge.grad + m3 * padded + u));
    });
    for (int m3 = 0; m3 < d3; ++m3) to[m3 * kStep] = shorten<T>(q[m3]);
  }
}

// da of kStep edges at a time from their Q, one coefficient for all of them.
template <class T>
[[gnu::noinline]] void contract_q(const Plan<T>& plan, const Short<T>* q, Short<T>* da) {
  constexpr int V = kStep * kShortLanes<T> / kLanes<T>;
  const int dim2 = plan.dim2;
  const CgTerm<T>* term = plan.by_m2.data();
  for (int m2 = 0; m2 < dim2; ++m2) {
    Vec<T> sum[2 * V] = {};  // of every other term, so that additions need not wait for each other
    auto add = [&](const CgTerm<T>& t, Vec<T>* to) FASTMLIP_INLINE {
      const Vec<T> value = broadcast<T>(t.value);
      const T* from = reinterpret_cast<const T*>(q + t.index * kStep);
      unroll<V>(V, [&](int v) FASTMLIP_INLINE { to[v] += value * load(from + v * kLanes<T>); });
    };
    const CgTerm<T>* stop = plan.by_m2.data() + plan.m2_end[m2];
    for (; term + 1 < stop; term += 2) add(term[0], sum), add(term[1], sum + V);
    if (term < stop) add(*term++, sum);
    unroll<V>(V, [&](int v) FASTMLIP_INLINE { sum[v] += sum[V + v]; });
    Short<T> each[kStep];
    std::memcpy(each, sum, sizeof(each));
    unroll<kStep>(kStep, [&](int e) FASTMLIP_INLINE { da[e * dim2 + m2] = each[e]; });
  }
}

template <class T, int D1, int D3, bool kSparse, bool kSecond>
[[gnu::noinline]] void send_path(const PlanPath<T>& p, const Group<T>& group, const T* x,
                                 const T* hx, T* dx) {
  Short<T>* q = group.q + p.matrix * kStep;
  for (int e = group.begin; e < group.end; ++e, ++q) {
    send_rows<T, D1, D3, kSparse, kSecond>(p, group, e, x, hx, dx, q);
    if constexpr (!D1 || !D3)
      send_any_columns<T, kSecond>(p, group, e, x, hx, q);
    else if constexpr (!kHoldsQ<D1, D3, kSecond>)
      send_columns<T, D1, D3, kSparse, kSecond>(p, group, e, x, hx, q);
  }
}

template <class T, bool kSecond>
void send(const PlanPath<T>& p, const Group<T>& group, const T* x, const T* hx, T* dx) {
  x += p.in1;
  hx += p.in1;
  dx += p.in1;
  if (p.d2 == 1)
    return with_dim(p.d1, [&](auto D) { send_scalar_path<T, D, kSecond>(p, group, x, hx, dx); });
  with_dims(p, [&](auto D1, auto D3, auto Sparse) {
    if constexpr (D1 > 1 && D3 == 1)
      send_dot_path<T, D1, kSecond>(p, group, x, hx, dx);
    else if constexpr (D1 == 1 && D3 > 1 && holds<D3, kSecond>(1))
      send_row_path<T, D3, kSecond>(p, group, x, hx, dx);
    else
      send_path<T, D1, D3, Sparse, kSecond>(p, group, x, hx, dx);
  });
}

}  // namespace
}  // namespace fastmlip::FASTMLIP_ISA
