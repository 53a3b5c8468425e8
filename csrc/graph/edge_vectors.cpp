// Vectors of edges and their transpose, node by node; plain C++.
#include "graph/edge_vectors.h"

namespace fastmlip {
namespace {

// f(i, node) of the nodes of the order, by threads.
template <class F>
void for_nodes(const EdgeOrder& order, ParallelFor parallel_for, int64_t threads, const F& f) {
  run(parallel_for, threads, [&](int64_t part) {
    const int64_t end = order.num_nodes * (part + 1) / threads;
    for (int64_t i = order.num_nodes * part / threads; i < end; ++i) f(i, order.node[i]);
  });
}

}  // namespace

template <class T>
void edge_vectors(const T* positions, const EdgeOrder& order, T* vectors, ParallelFor parallel_for,
                  int64_t threads) {
  for_nodes(order, parallel_for, threads, [&](int64_t i, int64_t node) {
    for (int64_t k = order.dst_ptr[i]; k < order.dst_ptr[i + 1]; ++k) {
      const T *to = positions + 3 * node, *from = positions + 3 * order.dst_src[k];
      for (int d = 0; d < 3; ++d) vectors[3 * order.dst_edge[k] + d] = from[d] - to[d];
    }
  });
}

template <class T>
void edge_vectors_backward(const T* grad, const EdgeOrder& order, T* dpositions,
                           ParallelFor parallel_for, int64_t threads) {
  for_nodes(order, parallel_for, threads, [&](int64_t i, int64_t node) {
    T starts[3] = {}, ends[3] = {};  // of an edge to its own node: the same, to the bit
    for (int64_t k = order.src_ptr[i]; k < order.src_ptr[i + 1]; ++k)
      for (int d = 0; d < 3; ++d) starts[d] += grad[3 * order.src_edge[k] + d];
    for (int64_t k = order.dst_ptr[i]; k < order.dst_ptr[i + 1]; ++k)
      for (int d = 0; d < 3; ++d) ends[d] += grad[3 * order.dst_edge[k] + d];
    for (int d = 0; d < 3; ++d) dpositions[3 * node + d] = starts[d] - ends[d];
  });
}

template void edge_vectors(const float*, const EdgeOrder&, float*, ParallelFor, int64_t);
template void edge_vectors(const double*, const EdgeOrder&, double*, ParallelFor, int64_t);
template void edge_vectors_backward(const float*, const EdgeOrder&, float*, ParallelFor, int64_t);
template void edge_vectors_backward(const double*, const EdgeOrder&, double*, ParallelFor, int64_t);

}  // namespace fastmlip
