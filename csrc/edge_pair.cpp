// The reverse of every edge; fastmlip/ops/edge_pair.py says what counts as one. Plain C++.
#include "edge_pair.h"

#include <algorithm>
#include <vector>

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
  std::vector<int64_t> reverse(order.num_edges, kNone);
  auto find = [&](int64_t n, int64_t k) {  // the first reverse of edge k of node n
    const int64_t edge = order.dst_edge[k], other = order.dst_src[k];
    for (int64_t i = order.dst_ptr[other]; i < order.dst_ptr[other + 1]; ++i) {
      const int64_t back = order.dst_edge[i];
      if (order.dst_src[i] == n && opposite(edge_vec + 3 * edge, edge_vec + 3 * back) &&
          std::equal(edge_embedding + edge * columns, edge_embedding + (edge + 1) * columns,
                     edge_embedding + back * columns))
        return back;
    }
    return kNone;
  };
  run(parallel_for, parts, [&](int64_t part) {
    const int64_t begin = order.num_nodes * part / parts,
                  end = order.num_nodes * (part + 1) / parts;
    for (int64_t n = begin; n < end; ++n)
      for (int64_t k = order.dst_ptr[n]; k < order.dst_ptr[n + 1]; ++k)
        reverse[order.dst_edge[k]] = find(n, k);
  });
  for (int64_t e = 0; e < order.num_edges; ++e) {
    const int64_t back = reverse[e];
    pair[e] = back != kNone && reverse[back] == e ? std::min(e, back) : e;
  }
}

#define FASTMLIP_EDGE_PAIR(T, U)                                                                \
  template void edge_pair(const T*, const U*, int64_t, const EdgeOrder&, int64_t*, ParallelFor, \
                          int64_t);
FASTMLIP_EDGE_PAIR(float, float)
FASTMLIP_EDGE_PAIR(float, double)
FASTMLIP_EDGE_PAIR(double, float)
FASTMLIP_EDGE_PAIR(double, double)

}  // namespace fastmlip
