// The reverse of every edge; fastmlip/ops/edge_pair.py says what counts as one. Plain C++.
#include "graph/edge_pair.h"

#include <algorithm>

namespace fastmlip {
namespace {

constexpr int64_t kNone = -1;

template <class T>
bool opposite(const T* a, const T* b) {
  return a[0] == -b[0] && a[1] == -b[1] && a[2] == -b[2];
}

}  // namespace

template <class T, class U>
void edge_pair(const T* edge_vec, const U* edge_embedding, int64_t columns, const EdgeOrder& order,
               int64_t* pair, ParallelFor parallel_for, int64_t parts) {
  auto for_nodes = [&](auto f) {
    run(parallel_for, parts, [&](int64_t part) {
      for (int64_t i = order.num_nodes * part / parts; i < order.num_nodes * (part + 1) / parts;
           ++i)
        for (int64_t k = order.dst_ptr[i]; k < order.dst_ptr[i + 1]; ++k) f(order.node[i], k);
    });
  };
  // of the edges from `other` to node n, the first reverse of `edge`
  auto find = [&](int64_t n, int64_t other, int64_t edge) {
    const int64_t i = order.place[n];
    for (int64_t k = order.dst_ptr[i]; k < order.dst_ptr[i + 1]; ++k) {
      const int64_t back = order.dst_edge[k];
      if (order.dst_src[k] == other && opposite(edge_vec + 3 * edge, edge_vec + 3 * back) &&
          std::equal(edge_embedding + edge * columns, edge_embedding + (edge + 1) * columns,
                     edge_embedding + back * columns))
        return back;
    }
    return kNone;
  };
  for_nodes([&](int64_t, int64_t k) { pair[order.dst_edge[k]] = order.dst_edge[k]; });
  for_nodes([&](int64_t n, int64_t k) {
    const int64_t edge = order.dst_edge[k], other = order.dst_src[k];
    if (other < n) return;  // that node looks for both
    const int64_t back = find(other, n, edge);
    if (back != kNone && find(n, other, back) == edge)
      pair[edge] = pair[back] = std::min(edge, back);
  });
}

#define FASTMLIP_EDGE_PAIR(T, U)                                                                \
  template void edge_pair(const T*, const U*, int64_t, const EdgeOrder&, int64_t*, ParallelFor, \
                          int64_t);
FASTMLIP_EDGE_PAIR(float, float)
FASTMLIP_EDGE_PAIR(float, double)
FASTMLIP_EDGE_PAIR(double, float)
FASTMLIP_EDGE_PAIR(double, double)

}  // namespace fastmlip
