// What radial_conv does when, and how much memory that takes: made before its kernels begin, by all
// threads. Plain C++. Nothing of it changes a bit of the result, whatever the number of threads.
#pragma once

#include <atomic>
#include <vector>

#include "base/memory.h"
#include "graph/edge_order.h"
#include "graph/shared_rows.h"

namespace fastmlip {

// Nodes [begin, end) of the order, whose edges stand at [first, last) in the order of a pass.
struct Chunk {
  int64_t begin, end, first, last;

  int64_t num_edges() const { return last - first; }
};

// All nodes in chunks of few enough edges that rows of one of them stay in the caches that so many
// threads have, where a node has not more by itself.
std::vector<Chunk> make_chunks(const int64_t* ptr, int64_t num_nodes, int64_t row_bytes,
                               int64_t threads);

int64_t most_edges(const std::vector<Chunk>& chunks);  // of one of them

// How many rows a thread makes at a time: `most`, or fewer where too few would be left for others.
int64_t rows_of_block(int64_t num_edges, int64_t threads, int64_t most);

// Which edges of a pass make the rows that all of their pair's use.
class RowMakers {
 public:
  // edges: in the order of the pass. Where rows stay, a pair's is made once in the whole pass,
  // otherwise once in each chunk.
  RowMakers(const SharedRows& rows, const int64_t* edges, bool rows_stay, ParallelFor parallel_for,
            int64_t threads);

  void begin(const Chunk& chunk);  // before others are asked about its edges

  // Where the edge stands that makes the row of the one at k.
  int64_t maker(int64_t k) const { return maker_ ? maker_[rows_.of(edges_[k])] : k; }

 private:
  void find(int64_t first, int64_t last);

  const SharedRows& rows_;
  const int64_t* const edges_;
  const bool rows_stay_;
  const ParallelFor parallel_for_;
  const int64_t threads_;
  Buffer<int64_t> maker_;  // [row]; null where each edge has its own
};

// Where gradients of rows lie until those of all edges that share one are there, which are then
// summed and go back through the network once: in the place that its edge has in the chunk, or, if
// there are edges in later chunks, in a place where it waits for them. Where more rows than `room`
// (and a chunk's) would wait, those farthest apart do not: every edge's goes back by itself.
class Gradients {
 public:
  Gradients(const SharedRows& rows, const EdgeOrder& order, const std::vector<Chunk>& chunks,
            int64_t room, ParallelFor parallel_for, int64_t threads);

  int64_t waiting() const { return waiting_; }  // places where rows wait
  bool any_alone() const { return farthest_ < order_.num_edges; }

  // Whether the gradients of the row's edges go back one by one.
  bool alone(int64_t row) const { return last_ && last_[row] - first_[row] > farthest_; }
  // Whether the gradient of the edge at k goes back once this chunk's are there: its own, or with
  // it those of all edges of its row.
  bool goes_back(int64_t k) const {
    const int64_t row = rows_.of(order_.src_edge[k]);
    return alone(row) || last(row, k) == k;
  }

  // Where the row of the edge at k is written: a place in the chunk, from 0 on, or one where it
  // waits, from -1 downwards. By one thread, once for each edge.
  int64_t put(const Chunk& chunk, int64_t k) {
    const int64_t edge = order_.src_edge[k], row = rows_.of(edge);
    const bool waits = last(row, k) >= chunk.last && !alone(row);
    return where_[edge] = waits ? free_[num_free_.fetch_sub(1, std::memory_order_relaxed) - 1]
                                : k - chunk.first;
  }
  int64_t where(int64_t edge) const { return where_[edge]; }
  // Others may wait there, once the threads that put have ended.
  void give(int64_t place) { free_[num_free_.fetch_add(1, std::memory_order_relaxed)] = place; }

 private:
  // Where the last edge of the row stands that the one at k has.
  int64_t last(int64_t row, int64_t k) const { return last_ ? last_[row] : k; }
  int64_t count(const std::vector<int64_t>& ends) const;

  const SharedRows& rows_;
  const EdgeOrder& order_;
  const ParallelFor parallel_for_;
  const int64_t parts_;
  int64_t farthest_ = INT64_MAX, waiting_ = 0;
  // [row]: where its first and last edge stand; null where each edge has its own
  Buffer<int64_t> first_, last_;
  Buffer<int64_t> where_;  // [edge]
  Buffer<int64_t> free_;   // places that may be taken
  std::atomic<int64_t> num_free_{0};
};

}  // namespace fastmlip
