#include "operators/radial_plan.h"

#include <algorithm>
#include <functional>

namespace fastmlip {
namespace {

constexpr int64_t kEdgesOfPart = 1024;  // fewer are not worth a thread

int64_t parts_of(int64_t num_edges, int64_t threads) {
  return std::max<int64_t>(1, std::min(threads, num_edges / kEdgesOfPart));
}

// f(i) for i = begin .. end - 1
template <class F>
void for_range(int64_t begin, int64_t end, ParallelFor parallel_for, int64_t parts, const F& f) {
  run(parallel_for, parts, [&](int64_t part) {
    const int64_t stop = begin + (end - begin) * (part + 1) / parts;
    for (int64_t i = begin + (end - begin) * part / parts; i < stop; ++i) f(i);
  });
}

// x becomes y where better(y, x).
template <class Better>
void improve(int64_t& x, int64_t y, bool one_thread, const Better& better) {
  int64_t before = __atomic_load_n(&x, __ATOMIC_RELAXED);
  if (one_thread) {
    if (better(y, before)) x = y;
    return;
  }
  while (better(y, before) &&
         !__atomic_compare_exchange_n(&x, &before, y, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

}  // namespace

// ------------------------------------------------------------------ chunks

std::vector<Chunk> make_chunks(const int64_t* ptr, int64_t num_nodes, int64_t row_bytes,
                               int64_t threads) {
  // Rows of a chunk are one to each edge or to each pair. A few threads share a cache of 12 MiB or
  // more; each further one brings its own second level and a slice of the third.
  constexpr int64_t kShared = int64_t(18) << 20, kOfThread = int64_t(3) << 20;
  const int64_t bytes = std::max(kShared, threads * kOfThread);
  const int64_t most = std::max<int64_t>(1, bytes / std::max<int64_t>(1, row_bytes));
  std::vector<Chunk> chunks;
  for (int64_t begin = 0, end; begin < num_nodes; begin = end) {
    const int64_t* const stop =
        std::upper_bound(ptr + begin, ptr + num_nodes + 1, ptr[begin] + most);
    end = std::max(begin + 1, stop - ptr - 1);
    chunks.push_back({begin, end, ptr[begin], ptr[end]});
  }
  return chunks;
}

int64_t most_edges(const std::vector<Chunk>& chunks) {
  int64_t most = 0;
  for (const Chunk& chunk : chunks) most = std::max(most, chunk.num_edges());
  return most;
}

int64_t rows_of_block(int64_t num_edges, int64_t threads, int64_t most) {
  constexpr int64_t kBlocksOfThread = 4, kLeast = 8;
  const int64_t rows = num_edges / (kBlocksOfThread * threads) / kLeast * kLeast;
  return std::clamp(rows, kLeast, most);
}

// ------------------------------------------------------------------ rows

RowMakers::RowMakers(const SharedRows& rows, const int64_t* edges, bool rows_stay,
                     ParallelFor parallel_for, int64_t threads)
    : rows_(rows),
      edges_(edges),
      rows_stay_(rows_stay),
      parallel_for_(parallel_for),
      threads_(threads) {
  if (rows.size() == rows.num_edges()) return;
  maker_ = allocate<int64_t>(rows.size());
  const int64_t none = rows_stay ? INT64_MAX : -1;
  for_range(0, rows.size(), parallel_for, parts_of(rows.size(), threads),
            [&](int64_t row) { maker_[row] = none; });
  if (rows_stay) find(0, rows.num_edges());
}

void RowMakers::begin(const Chunk& chunk) {
  if (maker_ && !rows_stay_) find(chunk.first, chunk.last);
}

// The first edge of each row at [first, last) makes it. Makers of earlier chunks stand before.
void RowMakers::find(int64_t first, int64_t last) {
  const int64_t parts = parts_of(last - first, threads_);
  for_range(first, last, parallel_for_, parts, [&](int64_t k) {
    improve(maker_[rows_.of(edges_[k])], k, parts == 1,
            [&](int64_t now, int64_t before) { return before < first || now < before; });
  });
}

// ------------------------------------------------------------------ gradients

Gradients::Gradients(const SharedRows& rows, const EdgeOrder& order,
                     const std::vector<Chunk>& chunks, int64_t room, ParallelFor parallel_for,
                     int64_t threads)
    : rows_(rows),
      order_(order),
      parallel_for_(parallel_for),
      parts_(parts_of(order.num_edges, threads)),
      where_(allocate<int64_t>(order.num_edges)) {
  const int64_t edges = order.num_edges;
  if (rows.size() == edges) return;
  first_ = allocate<int64_t>(rows.size());
  last_ = allocate<int64_t>(rows.size());
  for_range(0, rows.size(), parallel_for, parts_,
            [&](int64_t row) { first_[row] = edges, last_[row] = -1; });
  for_range(0, edges, parallel_for, parts_, [&](int64_t k) {
    const int64_t row = rows.of(order.src_edge[k]);
    improve(first_[row], k, parts_ == 1, std::less<int64_t>());
    improve(last_[row], k, parts_ == 1, std::greater<int64_t>());
  });
  // Which rows wait must not follow from the chunks, which other numbers of threads have others of.
  constexpr int64_t kBins = 1024;
  std::vector<int64_t> ends(kBins);
  for (int64_t i = 0; i < kBins; ++i) ends[i] = edges * (i + 1) / kBins;
  if (edges - rows.size() > room)  // all but the last edge of each
    for (farthest_ = edges; farthest_ > 0 && count(ends) > room;) farthest_ /= 2;
  ends.clear();
  for (const Chunk& chunk : chunks) ends.push_back(chunk.last);
  waiting_ = count(ends);
  free_ = allocate<int64_t>(waiting_);
  for (int64_t i = 0; i < waiting_; ++i) give(-1 - i);
}

// The most rows that wait at a time, if those of edges up to each of `ends` are made and then
// summed.
int64_t Gradients::count(const std::vector<int64_t>& ends) const {
  const int64_t groups = int64_t(ends.size());
  std::vector<int64_t> change(parts_ * (groups + 1), 0);  // from one group to the next
  run(parallel_for_, parts_, [&](int64_t part) {
    int64_t* const own = change.data() + part * (groups + 1);
    const int64_t stop = order_.num_edges * (part + 1) / parts_;
    for (int64_t k = order_.num_edges * part / parts_; k < stop; ++k) {
      const int64_t row = rows_.of(order_.src_edge[k]);
      if (alone(row) || last_[row] == k) continue;
      auto group = [&](int64_t k) {
        return std::upper_bound(ends.begin(), ends.end(), k) - ends.begin();
      };
      const int64_t from = group(k), to = group(last_[row]);
      if (from < to) ++own[from], --own[to + 1];
    }
  });
  int64_t most = 0, now = 0;
  for (int64_t i = 0; i < groups; ++i) {
    for (int64_t part = 0; part < parts_; ++part) now += change[part * (groups + 1) + i];
    most = std::max(most, now);
  }
  return most;
}

}  // namespace fastmlip
