// CPU kernels of pair_linear; fastmlip/ops/pair_linear.py states the formula.
//
// A row of the product is made once for all edges that share it, for a block of rows at a time,
// and then copied. What comes back is summed over those edges first.
#include "operators/pair_linear.h"

#include "graph/shared_rows.h"
#include "simd/gemm.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

// to[r] = row i of x, i = begin + r
template <class T>
void gather(const T* x, int64_t inputs, const SharedRows& shared, int64_t begin, int count, T* to) {
  for (int r = 0; r < count; ++r)
    std::copy_n(x + shared.head(begin + r) * inputs, inputs, to + r * inputs);
}

// to[r] = `columns` columns of grad, summed over the edges of row i = begin + r
template <class T>
void sum_edges(const T* grad, int64_t stride, const SharedRows& shared, int64_t begin, int count,
               int64_t columns, T* to) {
  for (int r = 0; r < count; ++r, to += columns) {
    int64_t i = shared.begin(begin + r);
    std::copy_n(grad + shared.edge(i) * stride, columns, to);
    while (++i < shared.begin(begin + r + 1)) {
      const T* from = grad + shared.edge(i) * stride;
      for (int64_t k = 0; k < columns; ++k) to[k] += from[k];
    }
  }
}

template <class T>
void forward(const PairLinearTensors& t, ParallelFor parallel_for, int64_t threads) {
  const auto *x = static_cast<const T*>(t.first), *weight = static_cast<const T*>(t.second);
  auto* out = static_cast<T*>(t.result);
  const SharedRows shared(t.edge_pair, t.edges, true, parallel_for, threads);
  for_blocks(shared.size(), parallel_for, threads, [&] {
    return [&, a = zeros<T>(kBlockRows * t.inputs)](int64_t begin, int count) {
      T* c[kBlockRows] = {};
      gather(x, t.inputs, shared, begin, count, a.get());
      for (int r = 0; r < count; ++r) c[r] = out + shared.edge(shared.begin(begin + r)) * t.outputs;
      gemm_block<T, false>(a.get(), count, t.inputs, weight, t.outputs, t.outputs, c);
      for (int r = 0; r < count; ++r)
        for (int64_t i = shared.begin(begin + r) + 1; i < shared.begin(begin + r + 1); ++i)
          std::copy_n(c[r], t.outputs, out + shared.edge(i) * t.outputs);
    };
  });
}

template <class T>
void dx(const PairLinearTensors& t, ParallelFor parallel_for, int64_t threads) {
  const auto *weight = static_cast<const T*>(t.first), *grad = static_cast<const T*>(t.second);
  auto* result = static_cast<T*>(t.result);
  const SharedRows shared(t.edge_pair, t.edges, true, parallel_for, threads);
  const Buffer<T> transposed = allocate<T>(t.inputs * t.outputs);
  run(parallel_for, threads, [&](int64_t part) {
    transpose(weight, t.inputs, t.outputs, part, threads, transposed.get());
    const int64_t size = t.edges * t.inputs, begin = size * part / threads;
    std::fill_n(result + begin, size * (part + 1) / threads - begin, T(0));
  });
  for_blocks(shared.size(), parallel_for, threads, [&] {
    return [&, a = zeros<T>(kBlockRows * t.outputs)](int64_t begin, int count) {
      T* c[kBlockRows] = {};
      sum_edges(grad, t.outputs, shared, begin, count, t.outputs, a.get());
      for (int r = 0; r < count; ++r) c[r] = result + shared.head(begin + r) * t.inputs;
      gemm_block<T, false>(a.get(), count, t.outputs, transposed.get(), t.inputs, t.inputs, c);
    };
  });
}

// A thread has columns of the result to itself: for any number of threads a sum has one order.
template <class T>
void dweight(const PairLinearTensors& t, ParallelFor parallel_for, int64_t threads) {
  constexpr int64_t tile = kTileVectors * kLanes<T>, most = 8 * tile;
  constexpr int depth = 2 * kBlockRows;
  const auto *x = static_cast<const T*>(t.first), *grad = static_cast<const T*>(t.second);
  auto* result = static_cast<T*>(t.result);
  const SharedRows shared(t.edge_pair, t.edges, true, parallel_for, threads);
  const int64_t tiles = (t.outputs + tile - 1) / tile;
  const int64_t width = std::min(most, (tiles + threads - 1) / threads * tile);
  std::fill_n(result, t.inputs * t.outputs, T(0));
  Shares shares((t.outputs + width - 1) / width, threads);
  run(parallel_for, threads, [&](int64_t part) {
    const Buffer<T> a = zeros<T>(depth * t.inputs + kTileRows), b = zeros<T>(depth * width);
    std::vector<T*> c(t.inputs + kTileRows);
    for (int64_t share; (share = shares.take(part)) >= 0;) {
      const int64_t column = share * width;
      const int64_t columns = std::min(width, t.outputs - column);
      for (int64_t k = 0; k < t.inputs; ++k) c[k] = result + k * t.outputs + column;
      for (int64_t begin = 0; begin < shared.size(); begin += depth) {
        const int count = int(std::min<int64_t>(depth, shared.size() - begin));
        gather(x, t.inputs, shared, begin, count, a.get());
        sum_edges(grad + column, t.outputs, shared, begin, count, columns, b.get());
        gemm_rows<T, kTileRows, true, true>(a.get(), t.inputs, int(t.inputs), count, b.get(),
                                            columns, columns, c.data());
      }
    }
  });
}

}  // namespace

extern const PairLinear pair_linear;
const PairLinear pair_linear = {forward<float>, forward<double>, dx<float>,
                                dx<double>,     dweight<float>,  dweight<double>};

}  // namespace fastmlip::FASTMLIP_ISA
