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
  T *dw[kLanes<T>], *partial;                       // rows of its gradient; one such row of a path
  const T *far[kLanes<T> + 1], *far2[kLanes<T>];    // packed rows of the other node: x, hx or grad
  const Vec<T>*attr, *attr2;                        // edge_attr, ha: [dim2], one edge a lane
  T *matrix, *matrix2;                              // M, M' of the path at hand: [d1 * d3][lane]
  Vec<T>* q;                                        // Q of kStep edges: [kStep][d1 * d3]
  Vec<T>* da;                                       // [lane][dim2], not yet summed over lanes
};

template <class T>
[[gnu::noinline]] void make_matrix(const PlanPath<T>& p, const Vec<T>* attr, T* matrix) {
  const CgTerm<T>*term = p.by_matrix.data(), *end = term + p.by_matrix.size();
  const int entries = p.d2 == 1 ? 1 : p.d1 * p.d3;  // l2 = 0: one number times the unit matrix
  for (int index = 0; index < entries; ++index) {
    Vec<T> m{};
    for (; term != end && term->index == index; ++term) m += term->value * attr[p.in2 + term->m2];
    store(matrix + index * kLanes<T>, m);
  }
}

// In the kernels D1, D3 are the irreps' dimensions where known at compile time, 0 where not.
constexpr int kMaxDim = 23;  // e3nn's Wigner matrices end at l = 11
template <int D>
inline constexpr int kSize = D ? D : kMaxDim;

template <class T, int D1, int D3, bool kSecond>
[[gnu::noinline]] void receive_path(const PlanPath<T>& p, const Group<T>& group, T* out) {
  constexpr int L = kLanes<T>;
  const int d1 = D1 ? D1 : p.d1, d3 = D3 ? D3 : p.d3, padded = p.padded, count = group.count;
  const int in1 = p.in1, weight = p.weight;
  for_channels<T>(p.mul, [&](int u, int left) FASTMLIP_INLINE {
    T* to = out + p.out + u;
    Vec<T> sum[kSize<D3>];
    unroll<D3>(d3, [&](int m3) FASTMLIP_INLINE { sum[m3] = load(to + m3 * padded); });
    for (int e = 0; e < count; ++e) {
      const T *matrix = group.matrix + e, *matrix2 = group.matrix2 + e;
      const T *x = group.far[e] + in1 + u, *hx = group.far2[e] + in1 + u;
      const Vec<T> w = pin(load_some(group.w[e] + weight + u, left));
      prefetch(group.next_w[e] + weight + u);
      Vec<T> hw{};
      if (kSecond) hw = load_some(group.hw[e] + weight + u, left);
      if (kSecond) prefetch(group.next_hw[e] + weight + u);
      unroll<D1>(d1, [&](int m1) FASTMLIP_INLINE {
        const Vec<T> xm = pin(load(x + m1 * padded));
        Vec<T> v = w * xm, v2 = v;
        if (kSecond) v = w * load(hx + m1 * padded) + hw * xm;
        unroll<D3>(d3, [&](int m3) FASTMLIP_INLINE {
          sum[m3] += matrix[(m1 * d3 + m3) * L] * v;
          if (kSecond) sum[m3] += matrix2[(m1 * d3 + m3) * L] * v2;
        });
      });
    }
    unroll<D3>(d3, [&](int m3) FASTMLIP_INLINE { store(to + m3 * padded, sum[m3]); });
  });
}

// l2 = 0: M is one number times the unit matrix.
template <class T, int D, bool kSecond>
[[gnu::noinline]] void receive_scalar_path(const PlanPath<T>& p, const Group<T>& group, T* out) {
  const int d = D ? D : p.d1, padded = p.padded, count = group.count, in1 = p.in1,
            weight = p.weight;
  for_channels<T>(p.mul, [&](int u, int left) FASTMLIP_INLINE {
    T* to = out + p.out + u;
    Vec<T> sum[kSize<D>];
    unroll<D>(d, [&](int m) FASTMLIP_INLINE { sum[m] = load(to + m * padded); });
    for (int e = 0; e < count; ++e) {
      const T *x = group.far[e] + in1 + u, *hx = group.far2[e] + in1 + u;
      const Vec<T> w = pin(load_some(group.w[e] + weight + u, left));
      prefetch(group.next_w[e] + weight + u);
      const Vec<T> scaled = group.matrix[e] * w;
      Vec<T> with_x = scaled;
      if (kSecond) {
        const Vec<T> hw = load_some(group.hw[e] + weight + u, left);
        prefetch(group.next_hw[e] + weight + u);
        with_x = group.matrix[e] * hw + group.matrix2[e] * w;
      }
      unroll<D>(d, [&](int m) FASTMLIP_INLINE {
        sum[m] += with_x * load(x + m * padded);
        if (kSecond) sum[m] += scaled * load(hx + m * padded);
      });
    }
    unroll<D>(d, [&](int m) FASTMLIP_INLINE { store(to + m * padded, sum[m]); });
  });
}

// Columns [first, first + C) of m1, so that C * d3 running sums of Q fit the registers.
template <class T, int C, int D3, bool kSecond>
void send_columns(const PlanPath<T>& p, const Group<T>& group, int e, int first, const T* x,
                  const T* hx, T* dx, Vec<T>* to) {
  constexpr int L = kLanes<T>, S = kSize<D3>;
  const int d1 = p.d1, d3 = D3 ? D3 : p.d3, padded = p.padded;
  const T* matrix = group.matrix + first * d3 * L + e;
  const T* matrix2 = group.matrix2 + first * d3 * L + e;
  const T *grad = group.far[e] + p.out, *w_row = group.w[e] + p.weight,
          *hw_row = group.hw[e] + p.weight;
  const T *next_w = group.next_w[e] + p.weight, *next_hw = group.next_hw[e] + p.weight;
  T *dw_row = group.dw[e] + p.weight, *partial = group.partial;
  const bool last = first + C == d1;
  const T* soon = group.far[e + 1] + p.out;
  x += p.in1 + first * padded;
  hx += p.in1 + first * padded;
  dx += p.in1 + first * padded;
  Vec<T> q[C * S];
  unroll<C>(C, [&](int c) FASTMLIP_INLINE {
    unroll<D3>(d3, [&](int m3) FASTMLIP_INLINE { q[c * S + m3] = Vec<T>{}; });
  });
  for_channels<T>(p.mul, [&](int u, int left) FASTMLIP_INLINE {
    Vec<T> g[S];
    unroll<D3>(d3, [&](int m3) FASTMLIP_INLINE {
      g[m3] = pin(load(grad + m3 * padded + u));
      if (!first) prefetch_soon(soon + m3 * padded + u);
    });
    const Vec<T> w = pin(load_some(w_row + u, left));
    Vec<T> hw{}, dw{};
    if (!first) prefetch(next_w + u);
    if (kSecond && !first) prefetch(next_hw + u);
    if (kSecond) hw = pin(load_some(hw_row + u, left));
    if (first) dw = load(partial + u);
    unroll<C>(C, [&](int c) FASTMLIP_INLINE {
      const int at = c * padded + u;
      const Vec<T> xm = pin(load(x + at));
      Vec<T> hxm{}, y{}, y2{}, v = w * xm;
      if (kSecond) hxm = pin(load(hx + at));
      if (kSecond) v = w * hxm + hw * xm;
      unroll<D3>(d3, [&](int m3) FASTMLIP_INLINE {
        y += matrix[(c * d3 + m3) * L] * g[m3];
        if (kSecond) y2 += matrix2[(c * d3 + m3) * L] * g[m3];
        q[c * S + m3] += v * g[m3];
      });
      Vec<T> d = load(dx + at);
      if (kSecond) {
        dw += xm * y2 + hxm * y;
        d += w * y2 + hw * y;
      } else {
        dw += xm * y;
        d += w * y;
      }
      store(dx + at, d);
    });
    if (last)
      write_some(dw_row + u, dw, left, group.stream);
    else
      store(partial + u, dw);
  });
  to += first * d3;
  unroll<C>(C, [&](int c) FASTMLIP_INLINE {
    unroll<D3>(d3, [&](int m3) FASTMLIP_INLINE { to[c * d3 + m3] = q[c * S + m3]; });
  });
}

// da of kStep edges at a time from their Q, one coefficient for all of them.
constexpr int kStep = 4;

template <class T>
[[gnu::noinline]] void contract_q(const PlanPath<T>& p, const Vec<T>* q, Vec<T>* da, int dim2) {
  const int entries = p.d1 * p.d3;
  const CgTerm<T>* term = p.by_attr.data();
  for (int m2 = 0; m2 < p.d2; ++m2) {
    Vec<T> sum[kStep];
    unroll<kStep>(kStep, [&](int e) FASTMLIP_INLINE { sum[e] = da[e * dim2 + m2]; });
    for (const CgTerm<T>* end = p.by_attr.data() + p.attr_end[m2]; term != end; ++term) {
      const Vec<T>* from = q + term->index;
      const T value = term->value;
      unroll<kStep>(kStep, [&](int e) FASTMLIP_INLINE { sum[e] += value * from[e * entries]; });
    }
    unroll<kStep>(kStep, [&](int e) FASTMLIP_INLINE { da[e * dim2 + m2] = sum[e]; });
  }
}

template <class T, int D1, int D3, bool kSecond>
[[gnu::noinline]] void send_path(const PlanPath<T>& p, const Group<T>& group, const T* x,
                                 const T* hx, T* dx, int dim2) {
  constexpr int columns = !D1 || !D3 ? 1 : std::clamp(15 / D3, 1, D1);
  constexpr int rest = D1 ? D1 % columns : 0;
  const int d1 = D1 ? D1 : p.d1;
  for (int begin = 0; begin < group.count; begin += kStep) {
    const int end = std::min(begin + kStep, group.count);
    for (int e = begin; e < end; ++e) {
      Vec<T>* q = group.q + (e - begin) * p.d1 * p.d3;
      int first = 0;
      for (; first + columns <= d1; first += columns)
        send_columns<T, columns, D3, kSecond>(p, group, e, first, x, hx, dx, q);
      if constexpr (rest > 0) send_columns<T, rest, D3, kSecond>(p, group, e, first, x, hx, dx, q);
    }
    contract_q(p, group.q, group.da + begin * dim2 + p.in2, dim2);
  }
}

template <class T, int D, bool kSecond>
[[gnu::noinline]] void send_scalar_path(const PlanPath<T>& p, const Group<T>& group, const T* x,
                                        const T* hx, T* dx, int dim2) {
  const int d = D ? D : p.d1, padded = p.padded;
  const T coefficient = p.by_matrix[0].value;
  x += p.in1;
  hx += p.in1;
  dx += p.in1;
  for (int e = 0; e < group.count; ++e) {
    const T *grad = group.far[e] + p.out, scale = group.matrix[e],
            scale2 = kSecond ? group.matrix2[e] : T(0);
    const T *w_row = group.w[e] + p.weight, *hw_row = group.hw[e] + p.weight;
    const T *next_w = group.next_w[e] + p.weight, *next_hw = group.next_hw[e] + p.weight;
    T* dw_row = group.dw[e] + p.weight;
    const T* soon = group.far[e + 1] + p.out;
    Vec<T> q{};
    for_channels<T>(p.mul, [&](int u, int left) FASTMLIP_INLINE {
      const Vec<T> w = pin(load_some(w_row + u, left));
      Vec<T> hw{}, xg{}, hxg{}, with_g = scale * w;
      prefetch(next_w + u);
      if (kSecond) {
        prefetch(next_hw + u);
        hw = pin(load_some(hw_row + u, left));
        with_g = scale2 * w + scale * hw;
      }
      unroll<D>(d, [&](int m) FASTMLIP_INLINE {
        const int at = m * padded + u;
        const Vec<T> g = pin(load(grad + at));
        prefetch_soon(soon + at);
        xg += load(x + at) * g;
        if (kSecond) hxg += load(hx + at) * g;
        store(dx + at, load(dx + at) + with_g * g);
      });
      Vec<T> dw = scale * xg;
      q += w * (kSecond ? hxg : xg);
      if (kSecond) {
        q += hw * xg;
        dw = scale2 * xg + scale * hxg;
      }
      write_some(dw_row + u, dw, left, group.stream);
    });
    group.da[e * dim2 + p.in2] += coefficient * q;
  }
}

// ------------------------------------------------------------------ dispatch on dimensions

template <class T, bool kSecond>
void receive(const PlanPath<T>& p, const Group<T>& group, T* out) {
  if (p.d2 == 1)
    return with_dim(p.d1, [&](auto D) { receive_scalar_path<T, D, kSecond>(p, group, out); });
  with_dim(p.d1, [&](auto D1) {
    with_dim(p.d3, [&](auto D3) {
      constexpr bool known = D1 && D3;
      receive_path<T, known ? D1 : 0, known ? D3 : 0, kSecond>(p, group, out);
    });
  });
}

template <class T, bool kSecond>
void send(const PlanPath<T>& p, const Group<T>& group, const T* x, const T* hx, T* dx, int dim2) {
  if (p.d2 == 1)
    return with_dim(p.d1,
                    [&](auto D) { send_scalar_path<T, D, kSecond>(p, group, x, hx, dx, dim2); });
  with_dim(p.d1, [&](auto D1) {
    with_dim(p.d3, [&](auto D3) {
      constexpr bool known = D1 && D3;
      send_path<T, known ? D1 : 0, known ? D3 : 0, kSecond>(p, group, x, hx, dx, dim2);
    });
  });
}

}  // namespace
}  // namespace fastmlip::FASTMLIP_ISA
