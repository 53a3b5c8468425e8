// Rows that edges share: those of a pair have one. Plain C++.
#pragma once

#include "base/memory.h"
#include "base/parallel.h"

namespace fastmlip {

// Rows in ascending order of the edges that stand for them; a row's edges in ascending order.
class SharedRows {
 public:
  // edge_pair [num_edges]: the edge that stands for each one's pair, and for itself; null where
  // each edge has its own row. Without `edges`, begin() and edge() are not there.
  SharedRows(const int64_t* edge_pair, int64_t num_edges, bool edges, ParallelFor parallel_for,
             int64_t threads);

  int64_t num_edges() const { return num_edges_; }
  int64_t size() const { return size_; }                               // how many rows
  int64_t of(int64_t edge) const { return row_ ? row_[edge] : edge; }  // its row
  // Of the edges of a row, the one that stands for the others; and all of them: edge(i) for i from
  // begin(row) to begin(row + 1).
  int64_t head(int64_t row) const { return head_ ? head_[row] : row; }
  int64_t begin(int64_t row) const { return begin_ ? begin_[row] : row; }
  int64_t edge(int64_t i) const { return edge_ ? edge_[i] : i; }

 private:
  void find_edges(ParallelFor parallel_for, int64_t parts);

  const int64_t num_edges_;
  int64_t size_;
  Buffer<int64_t> row_, head_, begin_, edge_;
};

}  // namespace fastmlip
