// One path (one instruction) over one group of edges, for both passes and both orders: the inner
// loops of tensor_product_conv.cpp, whose header states the formulas.
#pragma once

#include "tensor_product/plan.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

// A group of up to kLanes edges of one node, seen from that node.
template <class T>
struct Group {
  int count;
  bool stream;                            // whether rows of dw are written past the caches
  const T *w[kLanes<T>], *hw[kLanes<T>];  // rows of edge_weight
  const T *next_w[kLanes<T>], *next_hw[kLanes<T>];  // those of edges that follow, to prefetch
  T* dw[kLanes<T>];                                 // rows of its gradient
  const T *far[kLanes<T>], *far2[kLanes<T>];        // packed rows of the other node: x, hx or grad
  const T *matrix, *matrix2;                        // M, M' of the path at hand: [d1 * d3][lane]
  int begin, end;                                   // of them those that send() is to take
  const T* soon;                                    // what it will read next of far
  Short<T>* q;                                      // Q of these, of all paths: [entry][kStep]
  Short<T>* da;                                     // [edge][dim2], not yet summed over lanes
};

// M of all paths, a vector of edges for each entry; entries without a term are zero already.
template <class T>
[[gnu::noinline]] void make_matrices(const Plan<T>& plan, const Vec<T>* attr, Vec<T>* matrix) {
  for (const CgTerm<T>& term : plan.set) matrix[term.index] = term.value * attr[term.m2];
  for (const CgTerm<T>& term : plan.add) matrix[term.index] += term.value * attr[term.m2];
}

// In the kernels D1, D3 are the irreps' dimensions where known at compile time, 0 where not.
constexpr int kRegisters = FASTMLIP_VECTOR_BYTES == 64 ? 32 : 16;
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

}  // namespace
}  // namespace fastmlip::FASTMLIP_ISA
