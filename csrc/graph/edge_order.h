// One edge list in both orders; fastmlip/ops/edge_order.py describes the table.
#pragma once

#include <cstdint>

#include "base/parallel.h"

namespace fastmlip {

struct EdgeOrder {
  int64_t num_nodes, num_edges;
  const int64_t *dst_ptr, *src_ptr, *dst_edge, *dst_src, *src_edge, *src_dst, *node, *place;

  EdgeOrder(const int64_t* table, int64_t num_nodes, int64_t num_edges)
      : num_nodes(num_nodes),
        num_edges(num_edges),
        dst_ptr(table),
        src_ptr(dst_ptr + num_nodes + 1),
        dst_edge(src_ptr + num_nodes + 1),
        dst_src(dst_edge + num_edges),
        src_edge(dst_src + num_edges),
        src_dst(src_edge + num_edges),
        node(src_dst + num_edges),
        place(node + num_nodes) {}

  static constexpr int64_t kMost = int64_t(1) << 40;  // nodes or edges: more fit into no memory

  static int64_t size(int64_t num_nodes, int64_t num_edges) {
    return 4 * num_nodes + 4 * num_edges + 2;
  }

  // The parts that an operator reads: of nodes, and of edges by receiver, by sender.
  enum Sides { kReceivers = 1, kSenders = 2, kBoth = 3 };

  // What of these parts edge_order() would not make so, or nullptr: positions, edges and nodes are
  // in range, and every edge and node is there once.
  const char* find_fault(Sides, ParallelFor, int64_t threads) const;
};

// Fills the table, with nodes in the order of their positions [num_nodes, 3] along a curve, or in
// their own where positions is null. Returns nullptr, or the name of the argument with an index out
// of range and where it stands. Index is int32_t or int64_t; the two orders can be made by two
// threads.
template <class Index>
const char* edge_order(const Index* dst, const Index* src, const double* positions,
                       int64_t num_nodes, int64_t num_edges, int64_t* table, int64_t* bad_position,
                       ParallelFor, int64_t threads);

}  // namespace fastmlip
