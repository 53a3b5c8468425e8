// CPU kernels of env_sum; fastmlip/ops/env_sum.py states the formula.
//
// A node runs over the edges that point to it, a vector of channels at a time:
//   receive: out[i] += w[l(i)] a[i], or with directions hw[l(i)] a[i] + w[l(i)] ha[i]
//   send:    dw[l] = sum_{i in l} a[i] g[i],  da[i] = sum_u w[l(i)] g[i]
#include "operators/env_sum.h"

#include <vector>

#include "base/limits.h"
#include "base/memory.h"
#include "simd/simd.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

template <int D>
inline constexpr int kComponents = D ? D : kMaxDim;
constexpr int kChunk = 16;  // edges whose gradients are summed over channels together

// Columns offset .. offset + dim - 1 of edge_attr, and the row of weights they share.
struct AttrBlock {
  int offset, dim;
  int64_t row;
};

template <class T>
std::vector<AttrBlock> blocks_of(const EnvSumTensors<T>& t) {
  std::vector<AttrBlock> blocks;
  int offset = 0;
  for (int64_t b = 0; b < t.num_blocks; ++b) {
    blocks.push_back({offset, int(t.dims[b]), t.weight_rows == 1 ? 0 : b});
    offset += int(t.dims[b]);
  }
  return blocks;
}

// Nodes begin .. end of a part, those with about as many edges as of any other part.
template <class F>
void each_node(const EdgeOrder& order, ParallelFor parallel_for, int64_t threads, const F& make) {
  const int64_t ranges = threads == 1 ? 1 : 32 * threads;
  Shares shares(ranges, threads);
  run(parallel_for, threads, [&](int64_t part) {
    auto f = make();
    for (int64_t i; (i = shares.take(part)) >= 0;)
      for (int64_t n = order.num_nodes * i / ranges; n < order.num_nodes * (i + 1) / ranges; ++n)
        f(n);
  });
}

template <class T, int D, bool kSecond>
[[gnu::noinline]] void receive_block(const EnvSumTensors<T>& t, const AttrBlock& b, int dim,
                                     const int64_t* edges, int64_t count, T* out) {
  const int d = D ? D : b.dim;
  for_channels<T>(int(t.channels), [&](auto, int u, int left) FASTMLIP_INLINE {
    Vec<T> sum[kComponents<D>];
    unroll<D>(d, [&](int m) FASTMLIP_INLINE { sum[m] = Vec<T>{}; });
    for (int64_t e = 0; e < count; ++e) {
      const int64_t at = (edges[e] * t.weight_rows + b.row) * t.channels + u;
      const T* a = t.edge_attr + edges[e] * dim + b.offset;
      const Vec<T> w = load_some(t.edge_weight + at, left);
      if constexpr (kSecond) {
        const Vec<T> hw = load_some(t.hw + at, left);
        const T* ha = t.ha + edges[e] * dim + b.offset;
        unroll<D>(d, [&](int m) FASTMLIP_INLINE { sum[m] += hw * a[m] + w * ha[m]; });
      } else {
        unroll<D>(d, [&](int m) FASTMLIP_INLINE { sum[m] += w * a[m]; });
      }
    }
    unroll<D>(d, [&](int m) FASTMLIP_INLINE {
      store_some(out + (b.offset + m) * t.channels + u, sum[m], left);
    });
  });
}

// The gradients of one edge; da [dim] is not yet summed over lanes.
template <class T, int D>
[[gnu::noinline]] void send_block(const EnvSumTensors<T>& t, const AttrBlock& b, int dim,
                                  int64_t edge, const T* grad, Vec<T>* da) {
  const int d = D ? D : b.dim;
  const bool adds = t.weight_rows == 1 && b.offset > 0;
  const T *a = t.edge_attr + edge * dim + b.offset, *g = grad + b.offset * t.channels;
  Vec<T> sum[kComponents<D>];
  unroll<D>(d, [&](int m) FASTMLIP_INLINE { sum[m] = Vec<T>{}; });
  for_channels<T>(int(t.channels), [&](auto, int u, int left) FASTMLIP_INLINE {
    const int64_t at = (edge * t.weight_rows + b.row) * t.channels + u;
    const Vec<T> w = load_some(t.edge_weight + at, left);
    Vec<T> dw = adds ? load_some(t.dw + at, left) : Vec<T>{};
    unroll<D>(d, [&](int m) FASTMLIP_INLINE {
      const Vec<T> value = pin(load_some(g + m * t.channels + u, left));
      dw += value * a[m];
      sum[m] += value * w;
    });
    store_some(t.dw + at, dw, left);
  });
  unroll<D>(d, [&](int m) FASTMLIP_INLINE { da[b.offset + m] = sum[m]; });
}

template <class T>
void receive(const EnvSumTensors<T>& t, const EdgeOrder& order, ParallelFor parallel_for,
             int64_t threads) {
  const std::vector<AttrBlock> blocks = blocks_of(t);
  const int dim = blocks.empty() ? 0 : blocks.back().offset + blocks.back().dim;
  each_node(order, parallel_for, threads, [&] {
    return [&](int64_t n) {
      const int64_t begin = order.dst_ptr[n], count = order.dst_ptr[n + 1] - begin;
      T* out = t.out + order.node[n] * dim * t.channels;
      for (const AttrBlock& b : blocks)
        with_dim(b.dim, [&](auto D) {
          (t.hw ? receive_block<T, D, true>
                : receive_block<T, D, false>)(t, b, dim, order.dst_edge + begin, count, out);
        });
    };
  });
}

template <class T>
void send(const EnvSumTensors<T>& t, const EdgeOrder& order, ParallelFor parallel_for,
          int64_t threads) {
  constexpr int L = kLanes<T>;
  const std::vector<AttrBlock> blocks = blocks_of(t);
  const int dim = blocks.empty() ? 0 : blocks.back().offset + blocks.back().dim;
  each_node(order, parallel_for, threads, [&] {
    return [&, da = zeros<Vec<T>>(round_up(kChunk * dim, L)),
            sums = allocate<T>(round_up(kChunk * dim, L))](int64_t n) {
      const int64_t end = order.dst_ptr[n + 1];
      const T* grad = t.grad + order.node[n] * dim * t.channels;
      for (int64_t k = order.dst_ptr[n]; k < end; k += kChunk) {
        const int64_t* edges = order.dst_edge + k;
        const int count = int(std::min<int64_t>(kChunk, end - k));
        for (int e = 0; e < count; ++e)
          for (const AttrBlock& b : blocks)
            with_dim(b.dim, [&](auto D) {
              send_block<T, D>(t, b, dim, edges[e], grad, da.get() + e * dim);
            });
        for (int i = 0; i < count * dim; i += L) store(&sums[i], sum_each<T>(&da[i], 1));
        for (int e = 0; e < count; ++e) std::copy_n(&sums[e * dim], dim, t.da + edges[e] * dim);
      }
    };
  });
}

}  // namespace

extern const EnvSum env_sum;
const EnvSum env_sum = {receive<float>, send<float>, receive<double>, send<double>};

}  // namespace fastmlip::FASTMLIP_ISA
