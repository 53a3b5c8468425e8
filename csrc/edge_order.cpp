// Edges in receiver order and in sender order by stable counting sorts; plain C++.
#include "edge_order.h"

#include <numeric>

namespace fastmlip {
namespace {

// ptr[n] .. ptr[n + 1]: where node n's edges stand; edges[...]: which they are; others[...]: their
// nodes at the other end.
template <class Index>
void sort_by(const Index* key, const Index* other, bool sorted, int64_t num_nodes,
             int64_t num_edges, int64_t* ptr, int64_t* edges, int64_t* others) {
  if (sorted) {
    std::iota(edges, edges + num_edges, int64_t(0));
    for (int64_t e = 0; e < num_edges; ++e) others[e] = other[e];
    return;
  }
  for (int64_t e = 0; e < num_edges; ++e) {
    const int64_t place = ptr[key[e]]++;
    edges[place] = e;
    others[place] = other[e];
  }
  for (int64_t n = num_nodes; n > 0; --n) ptr[n] = ptr[n - 1];  // undo the advance
  ptr[0] = 0;
}

// Counts edges per node into ptr, as running sums; returns the first bad position or -1.
template <class Index>
int64_t count(const Index* key, int64_t num_nodes, int64_t num_edges, int64_t* ptr, bool* sorted) {
  for (int64_t n = 0; n <= num_nodes; ++n) ptr[n] = 0;
  *sorted = true;
  Index before = 0;
  for (int64_t e = 0; e < num_edges; ++e) {
    const Index n = key[e];
    if (n < 0 || n >= num_nodes) return e;
    *sorted &= n >= before;
    before = n;
    ++ptr[n + 1];
  }
  for (int64_t n = 0; n < num_nodes; ++n) ptr[n + 1] += ptr[n];
  return -1;
}

}  // namespace

template <class Index>
const char* edge_order(const Index* dst, const Index* src, int64_t num_nodes, int64_t num_edges,
                       int64_t* table, int64_t* bad_position, ParallelFor parallel_for,
                       int64_t threads) {
  const Index* const ends[2] = {dst, src};
  int64_t* const ptr[2] = {table, table + num_nodes + 1};
  int64_t* const first = ptr[1] + num_nodes + 1;
  int64_t* const edges[2] = {first, first + 2 * num_edges};
  int64_t bad[2];
  run(parallel_for, threads, [&](int64_t part) {
    for (int64_t i = part; i < 2; i += threads) {
      bool sorted;
      bad[i] = count(ends[i], num_nodes, num_edges, ptr[i], &sorted);
      if (bad[i] < 0)
        sort_by(ends[i], ends[1 - i], sorted, num_nodes, num_edges, ptr[i], edges[i],
                edges[i] + num_edges);
    }
  });
  *bad_position = bad[0] >= 0 ? bad[0] : bad[1];
  return bad[0] >= 0 ? "edge_dst" : bad[1] >= 0 ? "edge_src" : nullptr;
}

template const char* edge_order(const int32_t*, const int32_t*, int64_t, int64_t, int64_t*,
                                int64_t*, ParallelFor, int64_t);
template const char* edge_order(const int64_t*, const int64_t*, int64_t, int64_t, int64_t*,
                                int64_t*, ParallelFor, int64_t);

}  // namespace fastmlip
