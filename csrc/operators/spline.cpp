// CPU kernels of spline; fastmlip/ops/spline.py states the formula.
//
// Edges are taken in batches, in the order they come. Values and gradients of a batch lie in rows
// of whole blocks of columns, which stay in cache.
#include "operators/spline.h"

#include <algorithm>
#include <numeric>

#include "operators/spline_batch.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

// f(first edge, batch, rows) for every batch of edges.
template <class T, class F>
void each_batch(const SplineTensors<T>& t, bool backward, ParallelFor parallel_for, int64_t threads,
                const F& f) {
  const int64_t batches = (t.edges + kBatch - 1) / kBatch;
  Shares shares(batches, threads);
  run(parallel_for, threads, [&](int64_t part) {
    SplineBatch<T> batch(spline_blocks(t.columns), t.table_rows, backward);
    const Buffer<T> rows = zeros<T>(kBatch * batch.stride);
    int64_t edges[kBatch];
    for (int64_t i; (i = shares.take(part)) >= 0;) {
      const int64_t count = std::min<int64_t>(kBatch, t.edges - i * kBatch);
      std::iota(edges, edges + count, i * kBatch);
      batch.begin(edges, count, t.place, t.first_row);
      f(edges, batch, rows.get());
    }
  });
}

template <class T>
void forward(const SplineTensors<T>& t, ParallelFor parallel_for, int64_t threads) {
  each_batch(t, false, parallel_for, threads,
             [&](const int64_t* edges, const SplineBatch<T>& batch, T* rows) {
               batch.make(t.table, rows);
               for (int64_t e = 0; e < batch.count; ++e)
                 std::copy_n(rows + e * batch.stride, t.columns, t.out + edges[e] * t.columns);
             });
}

template <class T>
void backward(const SplineTensors<T>& t, ParallelFor parallel_for, int64_t threads) {
  each_batch(t, true, parallel_for, threads,
             [&](const int64_t* edges, const SplineBatch<T>& batch, T* rows) {
               for (int64_t e = 0; e < batch.count; ++e)
                 std::copy_n(t.grad + edges[e] * t.columns, t.columns, rows + e * batch.stride);
               batch.template project<false>(t.table, rows, edges, t.dplace);
             });
}

}  // namespace

extern const Spline spline;
const Spline spline = {forward<float>, backward<float>, forward<double>, backward<double>};

}  // namespace fastmlip::FASTMLIP_ISA
