// CPU kernels of gate; fastmlip/ops/gate.py states the formulas.
#include "operators/gate.h"

#include <algorithm>
#include <cstring>

#include "simd/activation.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

// f(u, left, Activated) of the scalars of a segment, a vector at a time.
template <class T, class F>
void activate(const GateSegment& s, const T* row, const F& f) {
  double factor;
  std::memcpy(&factor, &s.factor_bits, sizeof(factor));
  const T c = T(factor);
  auto all = [&](auto function) {
    for_channels<T>(int(s.mul), [&](auto, int u, int left) FASTMLIP_INLINE {
      const Activated<T> a = function(load_some(row + s.gate + u, left));
      f(u, left, Activated<T>{c * a.value, c * a.first, c * a.second});
    });
  };
  if (s.activation == kSilu)
    all([](Vec<T> x) FASTMLIP_INLINE { return silu<T>(x); });
  else if (s.activation == kTanh)
    all([](Vec<T> x) FASTMLIP_INLINE { return hyperbolic_tangent<T>(x); });
  else
    all([](Vec<T> x) FASTMLIP_INLINE { return Activated<T>{x, T(1) + Vec<T>{}, Vec<T>{}}; });
}

// f(i, where irrep u + i begins) for the irreps u .. u + left of a segment; D: their dimension, or
// 0 where it is not known at compile time.
template <class T, int D, class F>
void for_irreps(int u, int left, int64_t dim, const F& f) {
  const int count = std::min(left, kLanes<T>);
  for (int i = 0; i < count; ++i) f(i, (u + i) * (D ? int64_t(D) : dim));
}

template <class T>
void forward_row(const GateSegment& s, const T* x, T* out) {
  activate<T>(s, x, [&](int u, int left, const Activated<T>& a) {
    if (s.dim == 0) return store_some(out + s.out + u, a.value, left);
    with_dim(int(s.dim), [&](auto D) {
      if constexpr (D > 0) {
        if (left >= kLanes<T>) {
          const T* v = x + s.in + u * D;
          Vec<T> g[D];
          Tuples<T, D>::spread(a.value, g);
          return unroll<D>(D, [&](int i) FASTMLIP_INLINE {
            store(out + s.out + u * D + i * kLanes<T>, g[i] * load(v + i * kLanes<T>));
          });
        }
      }
      for_irreps<T, D>(u, left, s.dim, [&](int i, int64_t at) FASTMLIP_INLINE {
        for (int m = 0; m < s.dim; ++m) out[s.out + at + m] = a.value[i] * x[s.in + at + m];
      });
    });
  });
}

template <class T>
void backward_row(const GateSegment& s, const T* x, const T* grad, T* dx) {
  activate<T>(s, x, [&](int u, int left, const Activated<T>& a) {
    if (s.dim == 0)
      return store_some(dx + s.gate + u, a.first * load_some(grad + s.out + u, left), left);
    Vec<T> dots{};
    with_dim(int(s.dim), [&](auto D) {
      if constexpr (D > 0) {
        if (left >= kLanes<T>) {
          Vec<T> g[D], products[D], components[D];
          Tuples<T, D>::spread(a.value, g);
          unroll<D>(D, [&](int i) FASTMLIP_INLINE {
            const int at = u * D + i * kLanes<T>;
            const Vec<T> from = load(grad + s.out + at);
            products[i] = from * load(x + s.in + at);
            store(dx + s.in + at, g[i] * from);
          });
          Tuples<T, D>::split(products, components);
          return unroll<D>(D, [&](int m) FASTMLIP_INLINE { dots += components[m]; });
        }
      }
      for_irreps<T, D>(u, left, s.dim, [&](int i, int64_t at) FASTMLIP_INLINE {
        T dot = 0;
        for (int m = 0; m < s.dim; ++m) {
          dot += grad[s.out + at + m] * x[s.in + at + m];
          dx[s.in + at + m] = a.value[i] * grad[s.out + at + m];
        }
        dots[i] = dot;
      });
    });
    store_some(dx + s.gate + u, a.first * dots, left);
  });
}

// With y = f(g) v, dg = f'(g) <grad, v> and dv = f(g) grad: the gradients of hg dg + <hv, dv>.
template <class T>
void double_backward_row(const GateSegment& s, const T* x, const T* grad, const T* hx, T* dgrad,
                         T* dx) {
  activate<T>(s, x, [&](int u, int left, const Activated<T>& a) {
    const Vec<T> h = load_some(hx + s.gate + u, left);
    if (s.dim == 0) {
      store_some(dgrad + s.out + u, a.first * h, left);
      const Vec<T> g = load_some(grad + s.out + u, left);
      return store_some(dx + s.gate + u, a.second * h * g, left);
    }
    Vec<T> dots{}, hdots{};
    with_dim(int(s.dim), [&](auto D) {
      for_irreps<T, D>(u, left, s.dim, [&](int i, int64_t at) FASTMLIP_INLINE {
        const T value = a.value[i], slope = a.first[i] * h[i];
        T dot = 0, hdot = 0;
        unroll<D>(int(s.dim), [&](int m) FASTMLIP_INLINE {
          const T v = x[s.in + at + m], hv = hx[s.in + at + m], g = grad[s.out + at + m];
          dot += g * v;
          hdot += g * hv;
          dgrad[s.out + at + m] = slope * v + value * hv;
          dx[s.in + at + m] = slope * g;
        });
        dots[i] = dot;
        hdots[i] = hdot;
      });
    });
    store_some(dx + s.gate + u, a.second * h * dots + a.first * hdots, left);
  });
}

// row(segment, n) for all segments of all nodes.
template <class F>
void for_rows(const GateTensors& t, const int64_t* tables, ParallelFor parallel_for,
              int64_t threads, const F& row) {
  const auto& header = *reinterpret_cast<const GateHeader*>(tables);
  const auto* segments = reinterpret_cast<const GateSegment*>(&header + 1);
  run(parallel_for, threads, [&](int64_t i) {
    for (int64_t n = t.num_nodes * i / threads; n < t.num_nodes * (i + 1) / threads; ++n)
      for (int64_t s = 0; s < header.num_segments; ++s)
        row(segments[s], n * header.dim_in, n * header.dim_out);
  });
}

template <class T>
void forward(const GateTensors& t, const int64_t* tables, ParallelFor parallel_for,
             int64_t threads) {
  for_rows(t, tables, parallel_for, threads, [&](const GateSegment& s, int64_t in, int64_t out) {
    forward_row(s, static_cast<const T*>(t.x) + in, static_cast<T*>(t.out) + out);
  });
}

template <class T>
void backward(const GateTensors& t, const int64_t* tables, ParallelFor parallel_for,
              int64_t threads) {
  for_rows(t, tables, parallel_for, threads, [&](const GateSegment& s, int64_t in, int64_t out) {
    backward_row(s, static_cast<const T*>(t.x) + in, static_cast<const T*>(t.grad) + out,
                 static_cast<T*>(t.dx) + in);
  });
}

template <class T>
void double_backward(const GateTensors& t, const int64_t* tables, ParallelFor parallel_for,
                     int64_t threads) {
  for_rows(t, tables, parallel_for, threads, [&](const GateSegment& s, int64_t in, int64_t out) {
    double_backward_row(s, static_cast<const T*>(t.x) + in, static_cast<const T*>(t.grad) + out,
                        static_cast<const T*>(t.hx) + in, static_cast<T*>(t.out) + out,
                        static_cast<T*>(t.dx) + in);
  });
}

}  // namespace

extern const Gate gate;
const Gate gate = {forward<float>,   forward<double>,        backward<float>,
                   backward<double>, double_backward<float>, double_backward<double>};

}  // namespace fastmlip::FASTMLIP_ISA
