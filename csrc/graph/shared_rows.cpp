#include "graph/shared_rows.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace fastmlip {
namespace {

constexpr int64_t kEdgesOfPart = 1024;  // fewer are not worth a thread

int64_t cut(int64_t count, int64_t part, int64_t parts) { return count * part / parts; }

// x += 1; what it was
int64_t count_one(int64_t& x, bool alone) {
  return alone ? x++ : __atomic_fetch_add(&x, int64_t(1), __ATOMIC_RELAXED);
}

// Every entry becomes the sum of those before it; returns the sum of all.
int64_t sums_before(std::vector<int64_t>& counts) {
  int64_t sum = 0;
  for (int64_t& count : counts) sum += std::exchange(count, sum);
  return sum;
}

}  // namespace

SharedRows::SharedRows(const int64_t* pair, int64_t num_edges, bool edges, ParallelFor parallel_for,
                       int64_t threads)
    : num_edges_(num_edges), size_(num_edges) {
  if (!pair) return;
  const int64_t parts = std::max<int64_t>(1, std::min(threads, num_edges / kEdgesOfPart));
  row_ = allocate<int64_t>(num_edges);
  std::vector<int64_t> first(parts, 0);  // row of each part
  run(parallel_for, parts, [&](int64_t part) {
    int64_t count = 0;
    for (int64_t e = cut(num_edges, part, parts); e < cut(num_edges, part + 1, parts); ++e)
      count += pair[e] == e;
    first[part] = count;
  });
  size_ = sums_before(first);
  head_ = allocate<int64_t>(size_);
  run(parallel_for, parts, [&](int64_t part) {
    int64_t row = first[part];
    for (int64_t e = cut(num_edges, part, parts); e < cut(num_edges, part + 1, parts); ++e)
      if (pair[e] == e) head_[row] = e, row_[e] = row++;
  });
  run(parallel_for, parts, [&](int64_t part) {
    for (int64_t e = cut(num_edges, part, parts); e < cut(num_edges, part + 1, parts); ++e)
      if (pair[e] != e) row_[e] = row_[pair[e]];
  });
  if (edges) find_edges(parallel_for, parts);
}

// A counting sort. begin_[row + 1] is first how many edges the row has, then where the next of them
// is written, and so at the end where they end.
void SharedRows::find_edges(ParallelFor parallel_for, int64_t parts) {
  const bool alone = parts == 1;
  begin_ = allocate<int64_t>(size_ + 1);
  edge_ = allocate<int64_t>(num_edges_);
  int64_t* const of_row = begin_.get() + 1;
  begin_[0] = 0;
  run(parallel_for, parts, [&](int64_t part) {
    const int64_t row = cut(size_, part, parts);
    std::fill(of_row + row, of_row + cut(size_, part + 1, parts), int64_t(0));
  });
  run(parallel_for, parts, [&](int64_t part) {
    for (int64_t e = cut(num_edges_, part, parts); e < cut(num_edges_, part + 1, parts); ++e)
      count_one(of_row[row_[e]], alone);
  });
  std::vector<int64_t> first(parts, 0);  // edge of each part's rows
  run(parallel_for, parts, [&](int64_t part) {
    for (int64_t r = cut(size_, part, parts); r < cut(size_, part + 1, parts); ++r)
      first[part] += of_row[r];
  });
  sums_before(first);
  run(parallel_for, parts, [&](int64_t part) {
    int64_t sum = first[part];
    for (int64_t r = cut(size_, part, parts); r < cut(size_, part + 1, parts); ++r)
      sum += std::exchange(of_row[r], sum);
  });
  run(parallel_for, parts, [&](int64_t part) {
    for (int64_t e = cut(num_edges_, part, parts); e < cut(num_edges_, part + 1, parts); ++e)
      edge_[count_one(of_row[row_[e]], alone)] = e;
  });
  if (alone) return;  // in ascending order already
  run(parallel_for, parts, [&](int64_t part) {
    for (int64_t r = cut(size_, part, parts); r < cut(size_, part + 1, parts); ++r)
      std::sort(edge_.get() + begin_[r], edge_.get() + begin_[r + 1]);
  });
}

}  // namespace fastmlip
