// The way back of paths with a scalar at one end or in edge_attr, over one group of edges, two at a
// time where registers hold what that takes: gradients of the node at hand and of its edges.
#pragma once

#include "tensor_product/paths.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

// Edges of a group that send() takes at a time.
constexpr int kStep = 4;

// What a path reads and writes of edge e of a group.
template <class T>
struct PathEdge {
  const T *grad, *soon, *w, *hw;
  T* dw;
  bool stream;

  PathEdge(const PlanPath<T>& p, const Group<T>& group, int e)
      : grad(group.far[e] + p.out),
        soon(e + 1 < group.end ? group.far[e + 1] + p.out : group.soon),
        w(group.w[e] + p.weight),
        hw(group.hw[e] + p.weight),
        dw(group.dw[e] + p.weight),
        stream(group.stream && can_stream(dw)) {}
};

// Fetches the weights that will be read kFetch paths later.
template <class T, bool kSecond>
FASTMLIP_INLINE inline void fetch_later(const PlanPath<T>& p, const Group<T>& group, int e) {
  const T* w = p.fetch_later ? group.next_w[e] : group.w[e];
  const T* hw = p.fetch_later ? group.next_hw[e] : group.hw[e];
  for (int column = p.fetch; column < p.fetch_end; column += 64 / int(sizeof(T))) {
    prefetch_soon(w + column);
    if (kSecond) prefetch_soon(hw + column);
  }
}

// Whether registers hold the vector m and Q of so many edges, and what else a vector of channels
// needs.
template <int D, bool kSecond>
constexpr bool holds(int edges) {
  return edges * (D * (2 + kSecond) + 2 * (1 + kSecond)) + 8 <= kRegisters;
}

// f(edges, edge, e, q): for edges of the group from e on, as many as registers hold, of which the
// first two are `edge`; their Q begin at q.
template <class T, int D, bool kSecond, class F>
FASTMLIP_INLINE inline void for_edges(const PlanPath<T>& p, const Group<T>& group, const F& f) {
  int e = group.begin;
  Short<T>* q = group.q + p.matrix * kStep;
  auto take = [&](auto edges) FASTMLIP_INLINE {
    constexpr int E = decltype(edges)::value;
    const PathEdge<T> edge[2] = {{p, group, e}, {p, group, e + E - 1}};
    unroll<E>(E, [&](int i) FASTMLIP_INLINE { fetch_later<T, kSecond>(p, group, e + i); });
    f(edges, edge, e, q);
    e += E, q += E;
  };
  if constexpr (holds<D, kSecond>(2))
    while (e + 2 <= group.end) take(std::integral_constant<int, 2>{});
  while (e < group.end) take(std::integral_constant<int, 1>{});
}

// f(edges, edge, m, m2, q): likewise where M of an edge is a vector m of D entries. Those of the
// i-th edge, and the Q that f adds to, begin at i * D.
template <class T, int D, bool kSecond, class F>
FASTMLIP_INLINE inline void for_vectors(const PlanPath<T>& p, const Group<T>& group, const F& f) {
  constexpr int L = kLanes<T>;
  for_edges<T, D, kSecond>(
      p, group, [&](auto edges, const PathEdge<T>* edge, int e, Short<T>* to) FASTMLIP_INLINE {
        constexpr int all = decltype(edges)::value * D;
        Vec<T> q[all] = {}, m[all], m2[all];
        unroll<all>(all, [&](int j) FASTMLIP_INLINE {
          const int at = j % D * L + e + j / D;
          m[j] = broadcast<T>(group.matrix[at]);
          if (kSecond) m2[j] = broadcast<T>(group.matrix2[at]);
        });
        f(edges, edge, m, m2, q);
        unroll<all>(all,
                    [&](int j) FASTMLIP_INLINE { to[j % D * kStep + j / D] = shorten<T>(q[j]); });
      });
}

// To scalars: M is a vector m, and out = w (m . x).
template <class T, int D, bool kSecond>
[[gnu::noinline]] void send_dot_path(const PlanPath<T>& p, const Group<T>& group, const T* x,
                                     const T* hx, T* dx) {
  const int padded = p.padded;
  for_vectors<T, D, kSecond>(p, group,
                             [&](auto edges, const PathEdge<T>* edge, const Vec<T>* m,
                                 const Vec<T>* m2, Vec<T>* q) FASTMLIP_INLINE {
                               constexpr int E = decltype(edges)::value;  // how many
                               for_channels<T>(p.mul, [&](auto, int u, int left) FASTMLIP_INLINE {
                                 Vec<T> g[E], wg[E], hwg[E], dot[E] = {};
                                 unroll<E>(E, [&](int i) FASTMLIP_INLINE {
                                   g[i] = pin(load(edge[i].grad + u));
                                   wg[i] = pin(load_some(edge[i].w + u, left)) * g[i];
                                   if (kSecond)
                                     hwg[i] = pin(load_some(edge[i].hw + u, left)) * g[i];
                                   prefetch_soon(edge[i].soon + u);
                                 });
                                 unroll<D>(D, [&](int m1) FASTMLIP_INLINE {
                                   const int at = m1 * padded + u;
                                   const Vec<T> xm = pin(load(x + at));
                                   Vec<T> hxm{}, d = load(dx + at);
                                   if (kSecond) hxm = pin(load(hx + at));
                                   unroll<E>(E, [&](int i) FASTMLIP_INLINE {
                                     const int j = i * D + m1;
                                     if (kSecond) {
                                       dot[i] += m2[j] * xm + m[j] * hxm;
                                       d += m2[j] * wg[i] + m[j] * hwg[i];
                                       q[j] += hxm * wg[i] + xm * hwg[i];
                                     } else {
                                       dot[i] += m[j] * xm;
                                       d += m[j] * wg[i];
                                       q[j] += xm * wg[i];
                                     }
                                   });
                                   store(dx + at, d);
                                 });
                                 unroll<E>(E, [&](int i) FASTMLIP_INLINE {
                                   write_some(edge[i].dw + u, dot[i] * g[i], left, edge[i].stream);
                                 });
                               });
                             });
}

// From scalars: M is a vector m, and out = w x m.
template <class T, int D, bool kSecond>
[[gnu::noinline]] void send_row_path(const PlanPath<T>& p, const Group<T>& group, const T* x,
                                     const T* hx, T* dx) {
  const int padded = p.padded;
  for_vectors<T, D, kSecond>(p, group,
                             [&](auto edges, const PathEdge<T>* edge, const Vec<T>* m,
                                 const Vec<T>* m2, Vec<T>* q) FASTMLIP_INLINE {
                               constexpr int E = decltype(edges)::value;  // how many
                               for_channels<T>(p.mul, [&](auto, int u, int left) FASTMLIP_INLINE {
                                 const Vec<T> xu = pin(load(x + u));
                                 Vec<T> hxu{}, d = load(dx + u);
                                 if (kSecond) hxu = pin(load(hx + u));
                                 unroll<E>(E, [&](int i) FASTMLIP_INLINE {
                                   const Vec<T> w = pin(load_some(edge[i].w + u, left));
                                   Vec<T> hw{}, wx = w * xu, y{}, y2{};
                                   if (kSecond) {
                                     hw = pin(load_some(edge[i].hw + u, left));
                                     wx = w * hxu + hw * xu;
                                   }
                                   unroll<D>(D, [&](int m3) FASTMLIP_INLINE {
                                     const int at = m3 * padded + u, j = i * D + m3;
                                     const Vec<T> g = pin(load(edge[i].grad + at));
                                     prefetch_soon(edge[i].soon + at);
                                     y += m[j] * g;
                                     if (kSecond) y2 += m2[j] * g;
                                     q[j] += wx * g;
                                   });
                                   d += kSecond ? w * y2 + hw * y : w * y;
                                   write_some(edge[i].dw + u, kSecond ? xu * y2 + hxu * y : xu * y,
                                              left, edge[i].stream);
                                 });
                                 store(dx + u, d);
                               });
                             });
}

template <class T, int D, bool kSecond>
[[gnu::noinline]] void send_scalar_path(const PlanPath<T>& p, const Group<T>& group, const T* x,
                                        const T* hx, T* dx) {
  constexpr int L = kLanes<T>;
  const int d = D ? D : p.d1, padded = p.padded;
  for_edges<T, 1, kSecond>(
      p, group, [&](auto edges, const PathEdge<T>* edge, int e, Short<T>* to) FASTMLIP_INLINE {
        constexpr int E = decltype(edges)::value;  // how many
        T scale[2], scale2[2] = {};
        unroll<E>(E, [&](int i) FASTMLIP_INLINE {
          scale[i] = group.matrix[e + i];
          if (kSecond) scale2[i] = group.matrix2[e + i];
        });
        // several for an edge, so that their additions need not wait for each other
        Vec<T> q[E * wide(2)] = {};
        for_channels<T, wide(2)>(p.mul, [&](auto W, int u, int left) FASTMLIP_INLINE {
          unroll<W>(W, [&](int v) FASTMLIP_INLINE {
            const int column = u + v * L;
            Vec<T> w[E], hw[E], with_g[E], xg[E] = {}, hxg[E] = {};
            unroll<E>(E, [&](int i) FASTMLIP_INLINE {
              w[i] = pin(load_some(edge[i].w + column, left));
              with_g[i] = scale[i] * w[i];
              if (!kSecond) return;
              hw[i] = pin(load_some(edge[i].hw + column, left));
              with_g[i] = scale2[i] * w[i] + scale[i] * hw[i];
            });
            unroll<D>(d, [&](int m) FASTMLIP_INLINE {
              const int at = m * padded + column;
              const Vec<T> xm = pin(load(x + at));
              Vec<T> hxm{}, sum = load(dx + at);
              if (kSecond) hxm = pin(load(hx + at));
              unroll<E>(E, [&](int i) FASTMLIP_INLINE {
                const Vec<T> g = pin(load(edge[i].grad + at));
                if (begins_line(v)) prefetch_soon(edge[i].soon + at);
                xg[i] += xm * g;
                if (kSecond) hxg[i] += hxm * g;
                sum += with_g[i] * g;
              });
              store(dx + at, sum);
            });
            unroll<E>(E, [&](int i) FASTMLIP_INLINE {
              Vec<T> dw = scale[i] * xg[i];
              q[i * wide(2) + v] += w[i] * (kSecond ? hxg[i] : xg[i]);
              if (kSecond) {
                q[i * wide(2) + v] += hw[i] * xg[i];
                dw = scale2[i] * xg[i] + scale[i] * hxg[i];
              }
              write_some(edge[i].dw + column, dw, left, edge[i].stream);
            });
          });
        });
        unroll<E>(E, [&](int i) FASTMLIP_INLINE {
          Vec<T> sum = q[i * wide(2)];
          for (int v = 1; v < wide(2); ++v) sum += q[i * wide(2) + v];
          to[i] = shorten<T>(sum);
        });
      });
}

}  // namespace
}  // namespace fastmlip::FASTMLIP_ISA
