// CPU kernels of radial_conv; fastmlip/ops/radial_conv.py states the formula. They are the passes
// of tensor_product_conv over rows of edge_weight that never lie in memory all at once:
//
//   a product radial @ weight   is made for a chunk of nodes at a time, a pair's row once, with the
//                               hidden layers in front of it; its gradient is summed over the pair
//                               before it goes back through weight and the layers
//   a spline                    is evaluated for a batch of edges, spline.h
#include "radial_conv.h"

#include "radial_network.h"
#include "spline.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

// ------------------------------------------------------------------ products, chunk by chunk

// A chunk's rows take about this much memory, so that they stay in a shared cache.
constexpr int64_t kChunkBytes = int64_t(12) << 20;

// The rows of the edges of nodes [begin, end) in the order of a pass: which they are (the edges
// that stand for their pairs), and for each edge of the pass its row.
struct Chunk {
  int64_t begin = 0, end = 0, first = 0, last = 0;  // nodes, and positions in the pass
  std::vector<int64_t> rows;                        // [row]: the edge of radial
  std::vector<int32_t> row_of;                      // [position - first]: its row

  int64_t num_rows() const { return int64_t(rows.size()); }
};

// Whether the rows of all pairs are kept for the backward pass: where there is room for them.
template <class T>
bool keeps_rows(const RadialTensors<T>& t, int64_t num_edges) {
  int64_t count = num_edges;
  if (t.edge_pair && count > t.kept_rows) {
    count = 0;
    for (int64_t e = 0; e < num_edges; ++e) count += t.edge_pair[e] == e;
  }
  return t.kept_rows > 0 && count <= t.kept_rows;
}

// Where they lie, in the order in which receivers first need them: [edge that stands for its pair].
template <class T>
std::vector<int64_t> places_of_kept(const RadialTensors<T>& t, const EdgeOrder& order) {
  std::vector<int64_t> row(order.num_edges, -1);
  int64_t count = 0;
  for (int64_t k = 0; k < order.num_edges; ++k) {
    const int64_t edge = order.dst_edge[k];
    int64_t& place = row[t.edge_pair ? t.edge_pair[edge] : edge];
    if (place < 0) place = count++;
  }
  return row;
}

// Walks through all chunks of a pass. With `once`, a pair has a row in its first chunk only, and in
// later ones that row still, counted from their own first row.
class Chunks {
 public:
  Chunks(const int64_t* ptr, const int64_t* edges, const int64_t* pair, const EdgeOrder& order,
         int64_t row_bytes, bool once = false)
      : ptr_(ptr),
        edges_(edges),
        pair_(pair),
        nodes_(order.num_nodes),
        max_rows_(std::max<int64_t>(1, kChunkBytes / std::max<int64_t>(1, row_bytes))),
        once_(once),
        seen_(order.num_edges, -1) {}

  bool next(Chunk& chunk) {
    if (done_ == nodes_) return false;
    chunk.begin = chunk.end = done_;
    chunk.first = ptr_[chunk.begin];
    chunk.rows.clear();
    chunk.row_of.clear();
    while (chunk.end < nodes_ && (chunk.end == chunk.begin || chunk.num_rows() < max_rows_)) {
      for (int64_t k = ptr_[chunk.end]; k < ptr_[chunk.end + 1]; ++k) {
        const int64_t edge = pair_ ? pair_[edges_[k]] : edges_[k];
        if (seen_[edge] < (once_ ? 0 : base_)) {
          seen_[edge] = base_ + chunk.num_rows();
          chunk.rows.push_back(edge);
        }
        chunk.row_of.push_back(int32_t(seen_[edge] - base_));
      }
      ++chunk.end;
    }
    chunk.last = ptr_[chunk.end];
    done_ = chunk.end;
    base_ += chunk.num_rows();
    return true;
  }

 private:
  const int64_t *ptr_, *edges_, *pair_;
  const int64_t nodes_, max_rows_;
  const bool once_;
  std::vector<int64_t> seen_;  // [edge]: its row, counted over all chunks
  int64_t done_ = 0;           // nodes of chunks so far
  int64_t base_ = 0;           // and rows
};

template <class T>
struct ChunkRows {
  const Chunk& chunk;
  const int64_t numel;
  const T* rows;
  T* gradients;
  const int64_t *kept, *pair;  // if rows are those of places_of_kept()
  static constexpr bool stream = false;
  static constexpr int64_t parts = 8;

  int64_t end(int64_t) const { return chunk.last; }
  void prepare(const Part&, int64_t, int64_t) {}
  void finish(int64_t, int) {}
  const T* w(int64_t k, int64_t edge) const {
    return rows + (kept ? kept[pair ? pair[edge] : edge] : chunk.row_of[k - chunk.first]) * numel;
  }
  const T* hw(int64_t, int64_t) const { return nullptr; }
  T* dw(int64_t k, int64_t) const {
    return gradients ? gradients + (k - chunk.first) * numel : nullptr;
  }
};

template <class T>
HiddenLayers<T> hidden_layers(const RadialTensors<T>& t) {
  return {t.hidden, t.inputs, t.width, t.depth};
}

// rows[i] = hidden layers of radial[chunk.rows[i]], times weight
template <class T, class Aside>
void multiply(const RadialTensors<T>& t, const Chunk& chunk, int64_t numel, T* rows,
              ParallelFor parallel_for, int64_t threads, const Aside& aside) {
  auto make = [&] {
    return [&, hidden = HiddenRows<T>(hidden_layers(t))](int64_t row, int count) mutable {
      T* c[kBlockRows] = {};
      for (int r = 0; r < count; ++r) {
        hidden.set(r, t.radial + chunk.rows[row + r] * t.inputs);
        c[r] = rows + (row + r) * numel;
      }
      gemm_block<T, false>(hidden.forward(count), count, t.width, t.weight, numel, numel, c);
    };
  };
  for_blocks(chunk.num_rows(), parallel_for, threads, make, aside);
}

// What the gradients of a chunk's edges add up to: which rows go back through weight at once, with
// what waited for them, and which wait; and the edges of each row, a list from its head on.
struct Sums {
  struct Row {
    int32_t row, slot;  // where its sum waits, or -1
    bool first;         // nothing waits there yet
  };
  std::vector<Row> back, wait;
  std::vector<int64_t> head, next;  // [row], [position - first]; -1 at the end

  void link(const Chunk& chunk) {
    head.assign(chunk.rows.size(), -1);
    next.resize(chunk.row_of.size());
    for (int64_t i = int64_t(chunk.row_of.size()) - 1; i >= 0; --i) {
      next[i] = head[chunk.row_of[i]];
      head[chunk.row_of[i]] = i;
    }
  }
};

// Sums of gradients of pairs that have edges in later chunks too: they wait for those, so that each
// pair's goes back through weight once; in parts, where there is no room.
template <class T>
class WaitingRows {
 public:
  WaitingRows(const int64_t* pair, int64_t num_edges, int64_t numel)
      : numel_(numel), edges_left_(num_edges, 0), slot_(num_edges, kNone) {
    int64_t most = 0;
    for (int64_t e = 0; e < num_edges; ++e) most += edges_left_[pair ? pair[e] : e]++ == 1;
    const int64_t row_bytes = std::max<int64_t>(1, numel) * int64_t(sizeof(T));
    slots_ = int32_t(std::min(most, kBytes / row_bytes));
    memory_.emplace(std::max<int64_t>(64, slots_ * row_bytes));
  }

  // Sorts the rows of a chunk. Those of the chunk before may still be at their sums.
  void sort(const Chunk& chunk, Sums& sums) {
    free_.insert(free_.end(), read_.begin(), read_.end());
    read_.clear();
    sums.back.clear();
    sums.wait.clear();
    for (int32_t row : chunk.row_of) --edges_left_[chunk.rows[row]];
    for (int32_t row = 0; row < chunk.num_rows(); ++row) {
      const int64_t edge = chunk.rows[row];
      const bool first = slot_[edge] == kNone;
      if (edges_left_[edge] > 0 && first) slot_[edge] = take();
      const int32_t slot = slot_[edge];
      (edges_left_[edge] > 0 && slot != kNone ? sums.wait : sums.back)
          .push_back({row, slot, first});
      if (edges_left_[edge] == 0 && slot != kNone) read_.push_back(slot);
    }
  }

  T* sum(int32_t slot) const { return static_cast<T*>(memory_->get()) + slot * numel_; }

 private:
  static constexpr int64_t kBytes = int64_t(2) << 30;
  static constexpr int32_t kNone = -1;

  int32_t take() {
    if (free_.empty()) return next_ < slots_ ? next_++ : kNone;
    const int32_t slot = free_.back();
    free_.pop_back();
    return slot;
  }

  const int64_t numel_;
  std::vector<int32_t> edges_left_, slot_;  // [edge that stands for its pair]
  std::vector<int32_t> free_, read_;        // slots: to be taken, and after this chunk
  int32_t slots_ = 0, next_ = 0;
  std::optional<Workspace> memory_;
};

// Weights transposed: the last layer's, and those of the hidden layers.
template <class T>
struct Transposed {
  Buffer<T> weight;
  std::vector<Buffer<T>> hidden;

  Transposed(const RadialTensors<T>& t, int64_t numel)
      : weight(transpose(t.weight, t.width, numel)) {
    const HiddenLayers<T> layers = hidden_layers(t);
    for (int64_t i = 0; i < t.depth; ++i)
      hidden.push_back(transpose(layers.weight(i), layers.size(i), t.width));
  }
};

// dradial[chunk.rows[i]] += sum of the gradients of the row's edges, back through weight and the
// hidden layers; of rows that have all of them
template <class T, class Aside>
void multiply_back(const RadialTensors<T>& t, const Chunk& chunk, const Sums& sums, int64_t numel,
                   const T* gradients, const Transposed<T>& transposed,
                   const WaitingRows<T>& waiting, ParallelFor parallel_for, int64_t threads,
                   const Aside& aside) {
  auto add = [&](T* sum, const T* row) {
    for (int64_t k = 0; k < numel; ++k) sum[k] += row[k];
  };
  auto add_edges = [&](T* sum, int32_t row, bool first) {
    int64_t i = sums.head[row];
    if (first) {
      std::copy_n(gradients + i * numel, numel, sum);
      i = sums.next[i];
    }
    for (; i >= 0; i = sums.next[i]) add(sum, gradients + i * numel);
  };
  for_blocks(int64_t(sums.wait.size()), parallel_for, threads, [&] {
    return [&](int64_t begin, int count) {
      for (int64_t i = begin; i < begin + count; ++i) {
        const auto [row, slot, first] = sums.wait[i];
        add_edges(waiting.sum(slot), row, first);
      }
    };
  });
  auto make = [&] {
    return [&, a = zeros<T>(kBlockRows * numel), b = zeros<T>(kBlockRows * t.width),
            hidden = HiddenRows<T>(hidden_layers(t))](int64_t begin, int count) mutable {
      T *to[kBlockRows] = {}, *c[kBlockRows] = {};
      for (int r = 0; r < count; ++r) {
        const auto [row, slot, first] = sums.back[begin + r];
        const int64_t edge = chunk.rows[row];
        add_edges(a.get() + r * numel, row, true);
        if (!first) add(a.get() + r * numel, waiting.sum(slot));
        to[r] = t.dradial + edge * t.inputs;
        c[r] = b.get() + r * t.width;
        hidden.set(r, t.radial + edge * t.inputs);
      }
      const T* weight = transposed.weight.get();
      if (t.depth == 0)
        return gemm_block<T, true>(a.get(), count, numel, weight, t.width, t.width, to);
      gemm_block<T, false>(a.get(), count, numel, weight, t.width, t.width, c);
      hidden.forward(count);
      hidden.backward(b.get(), count, transposed.hidden.data(), to);
    };
  };
  for_blocks(int64_t(sums.back.size()), parallel_for, threads, make, aside);
}

// By several threads where it is much: a run of few costs more.
template <class T>
void set_zero(T* to, int64_t count, ParallelFor parallel_for, int64_t threads) {
  const int64_t parts = count * int64_t(sizeof(T)) >> 20 ? threads : 1;
  run(parallel_for, parts, [&](int64_t part) {
    const int64_t begin = count * part / parts;
    std::fill_n(to + begin, count * (part + 1) / parts - begin, T(0));
  });
}

// ------------------------------------------------------------------ the operators

template <class T>
Tensors<T> conv_tensors(const RadialTensors<T>& t) {
  return {t.x, t.edge_attr, nullptr, t.grad, nullptr, nullptr, nullptr, t.out, t.dx, t.da, nullptr};
}

template <class T>
void forward(const RadialTensors<T>& t, const EdgeOrder& order, const int64_t* tables,
             ParallelFor parallel_for, int64_t threads) {
  const Plan<T> plan(tables);
  const int64_t nodes = order.num_nodes, numel = plan.weight_numel;
  PackedRows<T> x(plan.in, t.x, nodes);
  SplineTable<T> table(t, numel);
  fill(parallel_for, threads, x, table);
  auto receive = [&](const auto& make_rows, int64_t begin, int64_t end) {
    receive_nodes<T, false>(plan, conv_tensors(t), make_rows, order, x.get(), nullptr, begin, end,
                            parallel_for, threads);
  };
  if (t.first_row) return receive([&] { return SplineRows<T>(t, table); }, 0, nodes);
  const bool keep = keeps_rows(t, order.num_edges);
  Chunk chunk, following;
  Chunks chunks(order.dst_ptr, order.dst_edge, t.edge_pair, order, numel * int64_t(sizeof(T)),
                keep);
  Workspace memory(64);
  T* next = t.kept;
  for (bool more = chunks.next(chunk); more; std::swap(chunk, following)) {
    if (!keep) memory.grow(numel * chunk.num_rows() * int64_t(sizeof(T)));
    T* rows = keep ? next : static_cast<T*>(memory.get());
    next += keep * numel * chunk.num_rows();
    multiply(t, chunk, numel, rows, parallel_for, threads, [&] { more = chunks.next(following); });
    receive([&] { return ChunkRows<T>{chunk, numel, rows, nullptr, nullptr, nullptr}; },
            chunk.begin, chunk.end);
  }
}

template <class T>
void backward(const RadialTensors<T>& t, const EdgeOrder& order, const int64_t* tables,
              ParallelFor parallel_for, int64_t threads) {
  const Plan<T> plan(tables);
  const int64_t nodes = order.num_nodes, numel = plan.weight_numel;
  PackedRows<T> grad(plan.out, t.grad, nodes);
  PackedRows<T> x(plan.in, t.x, nodes);
  SplineTable<T> table(t, numel);
  fill(parallel_for, threads, grad, x, table);
  auto send = [&](const auto& make_rows, int64_t begin, int64_t end) {
    send_nodes<T, false>(plan, conv_tensors(t), make_rows, order, grad.get(), x.get(), nullptr,
                         begin, end, parallel_for, threads);
  };
  if (t.first_row) return send([&] { return SplineRows<T>(t, table); }, 0, nodes);
  set_zero(t.dradial, order.num_edges * t.inputs, parallel_for, threads);
  const Transposed<T> transposed(t, numel);
  const bool keep = keeps_rows(t, order.num_edges);
  const std::vector<int64_t> kept = keep ? places_of_kept(t, order) : std::vector<int64_t>();
  Chunks chunks(order.src_ptr, order.src_edge, t.edge_pair, order, numel * int64_t(sizeof(T)));
  WaitingRows<T> waiting(t.edge_pair, order.num_edges, numel);
  Chunk chunk, following;
  Sums sums, following_sums;
  auto advance = [&](Chunk& chunk, Sums& sums) {
    if (!chunks.next(chunk)) return false;
    waiting.sort(chunk, sums);
    sums.link(chunk);
    return true;
  };
  Workspace memory(64);
  for (bool more = advance(chunk, sums); more;
       std::swap(chunk, following), std::swap(sums, following_sums)) {
    const int64_t made = keep ? 0 : chunk.num_rows();
    memory.grow(numel * (made + chunk.last - chunk.first) * int64_t(sizeof(T)));
    T *rows = static_cast<T*>(memory.get()), *gradients = rows + numel * made;
    if (!keep) multiply(t, chunk, numel, rows, parallel_for, threads, [] {});
    send(
        [&] {
          return ChunkRows<T>{
              chunk,      numel, keep ? t.kept : rows, gradients, keep ? kept.data() : nullptr,
              t.edge_pair};
        },
        chunk.begin, chunk.end);
    multiply_back(t, chunk, sums, numel, gradients, transposed, waiting, parallel_for, threads,
                  [&] { more = advance(following, following_sums); });
  }
}

}  // namespace

extern const RadialConv radial_conv;
const RadialConv radial_conv = {forward<float>, forward<double>, backward<float>, backward<double>};

}  // namespace fastmlip::FASTMLIP_ISA
