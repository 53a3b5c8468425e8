// Nodes along a curve, and edges in receiver order and in sender order by stable counting sorts;
// plain C++.
#include "graph/edge_order.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/in_range.h"

namespace fastmlip {
namespace {

// Whose rows fit into a cache: their order is that of other operators, whose threads begin with the
// same ones.
constexpr int64_t kFewNodes = 1000;

// Every third bit of the result is one of the ten lowest of `i`.
uint64_t spread(uint64_t i) {
  i = (i | i << 16) & 0x030000FF;
  i = (i | i << 8) & 0x0300F00F;
  i = (i | i << 4) & 0x030C30C3;
  return (i | i << 2) & 0x09249249;
}

// Where on a Hilbert curve the cube lies that has these indices: of 10 bits each, overwritten. The
// way of J. Skilling, AIP Conf. Proc. 707, 381 (2004).
uint64_t place_on_curve(uint32_t (&index)[3]) {
  for (uint32_t bit = 512; bit > 1; bit /= 2)
    for (uint32_t& i : index) {
      const uint32_t turn = i & bit ? 0 : (index[0] ^ i) & (bit - 1);
      index[0] ^= i & bit ? bit - 1 : turn;
      i ^= turn;
    }
  index[1] ^= index[0];
  index[2] ^= index[1];
  uint32_t flip = 0;
  for (uint32_t bit = 512; bit > 1; bit /= 2) flip ^= index[2] & bit ? bit - 1 : 0;
  return spread(index[0] ^ flip) << 2 | spread(index[1] ^ flip) << 1 | spread(index[2] ^ flip);
}

// node[i]: the i-th node along a Hilbert curve through cubes, 1,024 in the longest direction. Those
// that follow one another are near in space, so most of what they read is still in a cache.
void sort_nodes(const double* positions, int64_t num_nodes, int64_t* node) {
  double low[3] = {INFINITY, INFINITY, INFINITY}, extent = 0;
  for (int64_t i = 0; i < 3 * num_nodes; ++i) low[i % 3] = std::min(low[i % 3], positions[i]);
  for (int64_t i = 0; i < 3 * num_nodes; ++i)
    if (std::isfinite(positions[i])) extent = std::max(extent, positions[i] - low[i % 3]);
  std::vector<uint64_t> code(num_nodes);  // with the node behind it
  for (int64_t n = 0; n < num_nodes; ++n) {
    uint32_t index[3];
    for (int d = 0; d < 3; ++d) {
      const double at = (positions[3 * n + d] - low[d]) / extent * 1023;
      index[d] = at > 0 && at <= 1023 ? uint32_t(at) : 0;
    }
    code[n] = place_on_curve(index) << 32 | uint64_t(n);
  }
  std::sort(code.begin(), code.end());
  for (int64_t n = 0; n < num_nodes; ++n) node[n] = int64_t(code[n] & 0xFFFFFFFF);
}

// ptr[i] .. ptr[i + 1]: where the edges of the i-th node stand; edges[...]: which they are;
// others[...]: their nodes at the other end. Place tells where a node stands.
template <class Index, class Place>
void sort_by(const Index* key, const Index* other, const Place& place, int64_t num_nodes,
             int64_t num_edges, int64_t* ptr, int64_t* edges, int64_t* others) {
  bool sorted = true;
  for (int64_t e = 1; e < num_edges; ++e) sorted &= place(key[e - 1]) <= place(key[e]);
  std::fill_n(ptr, num_nodes + 1, int64_t(0));
  if (sorted)
    for (int64_t e = 0, begin; e < num_edges; ptr[place(key[begin]) + 1] = e - begin)
      for (begin = e; e < num_edges && key[e] == key[begin];) ++e;
  else
    for (int64_t e = 0; e < num_edges; ++e) ++ptr[place(key[e]) + 1];
  for (int64_t n = 0; n < num_nodes; ++n) ptr[n + 1] += ptr[n];
  if (sorted) {
    std::iota(edges, edges + num_edges, int64_t(0));
    std::copy_n(other, num_edges, others);
    return;
  }
  for (int64_t e = 0; e < num_edges; ++e) {
    const int64_t to = ptr[place(key[e])]++;
    edges[to] = e;
    others[to] = other[e];
  }
  for (int64_t n = num_nodes; n > 0; --n) ptr[n] = ptr[n - 1];  // undo the advance
  ptr[0] = 0;
}

// Edges by their nodes at one end.
struct Side {
  const int64_t *ptr, *edge, *other;
  std::vector<uint8_t> seen;  // [edge]

  Side(const int64_t* ptr, const int64_t* edge, const int64_t* other, int64_t num_edges)
      : ptr(ptr), edge(edge), other(other), seen(num_edges) {}

  const char* find_fault(int64_t first_node, int64_t last_node, int64_t num_nodes, int64_t begin,
                         int64_t end) {
    const int64_t num_edges = int64_t(seen.size());
    uint64_t bits = beyond(ptr[num_nodes], num_edges + 1);
    for (int64_t i = first_node; i < last_node; ++i)
      bits |= beyond(ptr[i], num_edges + 1) | (uint64_t(ptr[i + 1]) - uint64_t(ptr[i]));
    if (bits >> 63 || ptr[0] != 0 || ptr[num_nodes] != num_edges) return "positions of a node";
    if (first_bad(other, begin, end, num_nodes) >= 0) return "a node at the other end of an edge";
    if (first_bad(edge, begin, end, num_edges) >= 0) return "an edge out of range";
    // other threads may have the same edge, if it is there twice
    for (int64_t k = begin; k < end; ++k) __atomic_store_n(&seen[edge[k]], 1, __ATOMIC_RELAXED);
    return nullptr;
  }

  bool all_seen() const {
    uint8_t all = 1;
    for (uint8_t one : seen) all &= one;
    return all;
  }
};

}  // namespace

const char* EdgeOrder::find_fault(Sides sides, ParallelFor parallel_for, int64_t threads) const {
  std::vector<Side> found;
  if (sides & kReceivers) found.emplace_back(dst_ptr, dst_edge, dst_src, num_edges);
  if (sides & kSenders) found.emplace_back(src_ptr, src_edge, src_dst, num_edges);
  std::atomic<const char*> fault{nullptr};
  run(parallel_for, threads, [&](int64_t part) {
    const auto share = [&](int64_t count, int64_t i) { return count * i / threads; };
    const int64_t first = share(num_nodes, part), last = share(num_nodes, part + 1);
    bool placed = first_bad(node, first, last, num_nodes) < 0;
    for (int64_t i = first; placed && i < last; ++i) placed = place[node[i]] == i;
    if (!placed) fault = "the place of a node";
    for (Side& side : found)
      if (const char* what = side.find_fault(first, last, num_nodes, share(num_edges, part),
                                             share(num_edges, part + 1)))
        fault = what;
  });
  for (const Side& side : found)
    if (!fault && !side.all_seen()) fault = "an edge is missing";
  return fault;
}

template <class Index>
const char* edge_order(const Index* dst, const Index* src, const double* positions,
                       int64_t num_nodes, int64_t num_edges, int64_t* table, int64_t* bad_position,
                       ParallelFor parallel_for, int64_t threads) {
  const Index* const ends[2] = {dst, src};
  int64_t* const ptr[2] = {table, table + num_nodes + 1};
  int64_t* const first = ptr[1] + num_nodes + 1;
  int64_t* const edges[2] = {first, first + 2 * num_edges};
  int64_t *const node = first + 4 * num_edges, *const place = node + num_nodes;
  const bool along_curve = positions && num_nodes > kFewNodes;
  if (along_curve)
    sort_nodes(positions, num_nodes, node);
  else
    std::iota(node, node + num_nodes, int64_t(0));
  for (int64_t i = 0; i < num_nodes; ++i) place[node[i]] = i;
  int64_t bad[2];
  run(parallel_for, threads, [&](int64_t part) {
    for (int64_t i = part; i < 2; i += threads) {
      auto sort = [&](const auto& place) {
        sort_by(ends[i], ends[1 - i], place, num_nodes, num_edges, ptr[i], edges[i],
                edges[i] + num_edges);
      };
      bad[i] = first_bad(ends[i], 0, num_edges, num_nodes);
      if (bad[i] < 0)
        along_curve ? sort([&](int64_t n) { return place[n]; }) : sort([](int64_t n) { return n; });
    }
  });
  *bad_position = bad[0] >= 0 ? bad[0] : bad[1];
  return bad[0] >= 0 ? "edge_dst" : bad[1] >= 0 ? "edge_src" : nullptr;
}

template const char* edge_order(const int32_t*, const int32_t*, const double*, int64_t, int64_t,
                                int64_t*, int64_t*, ParallelFor, int64_t);
template const char* edge_order(const int64_t*, const int64_t*, const double*, int64_t, int64_t,
                                int64_t*, int64_t*, ParallelFor, int64_t);

}  // namespace fastmlip
