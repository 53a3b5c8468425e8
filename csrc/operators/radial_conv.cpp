// CPU kernels of radial_conv; fastmlip/ops/radial_conv.py states the formula. They are the passes
// of tensor_product_conv over rows of edge_weight that never lie in memory all at once:
//
//   a product radial @ weight   is made for a chunk of nodes at a time, a pair's row once, with the
//                               hidden layers in front of it; its gradient is summed over the pair
//                               before it goes back through weight and the layers; radial_plan.h
//   a spline                    is evaluated for a batch of edges, spline.h
#include "operators/radial_conv.h"

#include <optional>

#include "operators/radial_network.h"
#include "operators/radial_plan.h"
#include "operators/spline_rows.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

// ------------------------------------------------------------------ products, chunk by chunk

// Where rows of edge_weight lie: those of all pairs, or those that are made in a chunk, in the
// place of the edge that makes them.
template <class T>
struct MadeRows {
  T* const rows;
  const int64_t numel;
  const SharedRows& shared;
  const RowMakers* const makers;  // null where all pairs have their own

  T* at(const Chunk& chunk, int64_t k, int64_t edge) const {
    return rows + (makers ? makers->maker(k) - chunk.first : shared.of(edge)) * numel;
  }
};

template <class T>
struct ChunkRows {
  const Chunk& chunk;
  const MadeRows<T>& made;
  Gradients* plan = nullptr;
  T* gradients = nullptr;  // in the chunk's first place
  static constexpr bool stream = false;
  static constexpr int64_t parts = 8;

  int64_t end(int64_t) const { return chunk.last; }
  void prepare(const Part&, int64_t, int64_t) {}
  void finish(int64_t, int) {}
  const T* w(int64_t k, int64_t edge) const { return made.at(chunk, k, edge); }
  const T* hw(int64_t, int64_t) const { return nullptr; }
  T* dw(int64_t k, int64_t) const {
    return plan ? gradients + plan->put(chunk, k) * made.numel : nullptr;
  }
};

// What a pass over chunks works with.
template <class T>
struct Work {
  const RadialTensors<T>& t;
  const int64_t* edges;  // in the order of the pass
  const int64_t numel;
  const ParallelFor parallel_for;
  const int64_t threads;

  HiddenLayers<T> layers() const { return {t.hidden, t.inputs, t.width, t.depth}; }

  // make()(k, count) for edges of the chunk at k[0] .. k[count - 1], those for which is_chosen(k);
  // a thread makes one.
  template <class IsChosen, class Make>
  void for_chosen(const Chunk& chunk, const IsChosen& is_chosen, const Make& make) const {
    const int64_t block = rows_of_block(chunk.num_edges(), threads, kBlockRows);
    const int64_t blocks = (chunk.num_edges() + block - 1) / block;
    const int64_t parts = std::max<int64_t>(1, std::min(threads, blocks));
    Shares shares(blocks, parts);
    run(parallel_for, parts, [&](int64_t part) {
      auto f = make();
      int64_t chosen[2 * kBlockRows];
      int64_t count = 0;
      for (int64_t b; (b = shares.take(part)) >= 0;) {
        const int64_t k = chunk.first + b * block, end = std::min(k + block, chunk.last);
        for (int64_t i = k; i < end; ++i)
          if (is_chosen(i)) chosen[count++] = i;
        if (count < block) continue;
        f(chosen, int(block));
        count -= block;
        std::copy_n(chosen + block, count, chosen);
      }
      if (count) f(chosen, int(count));
    });
  }
};

// Rows of the chunk: hidden layers of those of radial, times weight.
template <class T>
void multiply(const Work<T>& work, const Chunk& chunk, const RowMakers& makers,
              const MadeRows<T>& made) {
  const RadialTensors<T>& t = work.t;
  auto make = [&] {
    return [&, hidden = HiddenRows<T>(work.layers())](const int64_t* k, int count) mutable {
      T* c[kBlockRows] = {};
      for (int r = 0; r < count; ++r) {
        const int64_t edge = work.edges[k[r]];
        hidden.set(r, t.radial + made.shared.head(made.shared.of(edge)) * t.inputs);
        c[r] = made.at(chunk, k[r], edge);
      }
      gemm_block<T, false>(hidden.forward(count), count, t.width, t.weight, work.numel, work.numel,
                           c);
    };
  };
  work.for_chosen(chunk, [&](int64_t k) { return makers.maker(k) == k; }, make);
}

// Weights transposed, once all parts are filled: the last layer's, and those of the hidden layers.
template <class T>
class Transposed {
 public:
  explicit Transposed(const Work<T>& work)
      : work_(work), weight(allocate<T>(work.t.width * work.numel)) {
    for (int64_t i = 0; i < work.t.depth; ++i)
      hidden.push_back(allocate<T>(work.layers().size(i) * work.t.width));
  }

  bool ready() const { return false; }

  void fill(int64_t part, int64_t parts) {
    const HiddenLayers<T> layers = work_.layers();
    const int64_t width = layers.width;
    transpose(work_.t.weight, width, work_.numel, part, parts, weight.get());
    for (int64_t i = 0; i < layers.depth; ++i)
      transpose(layers.weight(i), layers.size(i), width, part, parts, hidden[i].get());
  }

 private:
  const Work<T>& work_;

 public:
  const Buffer<T> weight;
  std::vector<Buffer<T>> hidden;
};

// dradial of the rows whose gradients are all there after this chunk: their sum, in ascending order
// of the edges, back through weight and the hidden layers. Where edges of a row go back one by one,
// each into its own row of dradial.
template <class T>
void multiply_back(const Work<T>& work, const Chunk& chunk, const SharedRows& shared,
                   Gradients& plan, const T* gradients, const Transposed<T>& transposed) {
  const RadialTensors<T>& t = work.t;
  const int64_t numel = work.numel;
  auto sum_edges = [&](int64_t row, T* sum) {
    for (int64_t i = shared.begin(row); i < shared.begin(row + 1); ++i) {
      const int64_t where = plan.where(shared.edge(i));
      const T* from = gradients + where * numel;
      if (i == shared.begin(row))
        std::copy_n(from, numel, sum);
      else
        for (int64_t c = 0; c < numel; ++c) sum[c] += from[c];
      if (where < 0) plan.give(where);
    }
  };
  auto make = [&] {
    return [&, a = zeros<T>(kBlockRows * numel), b = zeros<T>(kBlockRows * t.width),
            hidden = HiddenRows<T>(work.layers())](const int64_t* k, int count) mutable {
      T *to[kBlockRows] = {}, *c[kBlockRows] = {};
      for (int r = 0; r < count; ++r) {
        const int64_t edge = work.edges[k[r]], row = shared.of(edge), head = shared.head(row);
        const bool alone = plan.alone(row);
        if (alone)
          std::copy_n(gradients + plan.where(edge) * numel, numel, a.get() + r * numel);
        else
          sum_edges(row, a.get() + r * numel);
        to[r] = t.dradial + (alone ? edge : head) * t.inputs;
        c[r] = b.get() + r * t.width;
        hidden.set(r, t.radial + head * t.inputs);
      }
      const T* weight = transposed.weight.get();
      if (t.depth == 0)
        return gemm_block<T, true>(a.get(), count, numel, weight, t.width, t.width, to);
      gemm_block<T, false>(a.get(), count, numel, weight, t.width, t.width, c);
      hidden.forward(count);
      hidden.backward(b.get(), count, transposed.hidden.data(), to);
    };
  };
  work.for_chosen(chunk, [&](int64_t k) { return plan.goes_back(k); }, make);
}

// Sums those rows of dradial that went back one by one, in ascending order of the edges.
template <class T>
void sum_alone(const Work<T>& work, const SharedRows& shared, const Gradients& plan) {
  const int64_t inputs = work.t.inputs, parts = work.threads;
  run(work.parallel_for, parts, [&](int64_t part) {
    std::vector<T> sum(inputs);
    const int64_t end = shared.size() * (part + 1) / parts;
    for (int64_t row = shared.size() * part / parts; row < end; ++row) {
      if (!plan.alone(row)) continue;
      std::fill(sum.begin(), sum.end(), T(0));
      for (int64_t i = shared.begin(row); i < shared.begin(row + 1); ++i) {
        T* from = work.t.dradial + shared.edge(i) * inputs;
        for (int64_t c = 0; c < inputs; ++c) sum[c] += std::exchange(from[c], T(0));
      }
      std::copy(sum.begin(), sum.end(), work.t.dradial + shared.head(row) * inputs);
    }
  });
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
  if (!t.shared) return receive([&] { return SplineRows<T>(t, table); }, 0, nodes);
  const Work<T> work{t, order.dst_edge, numel, parallel_for, threads};
  const auto chunks = make_chunks(order.dst_ptr, nodes, numel * int64_t(sizeof(T)), threads);
  RowMakers makers(*t.shared, order.dst_edge, t.kept, parallel_for, threads);
  const Buffer<T> memory = t.kept ? nullptr : allocate<T>(most_edges(chunks) * numel);
  const MadeRows<T> made{t.kept ? t.kept : memory.get(), numel, *t.shared,
                         t.kept ? nullptr : &makers};
  for (const Chunk& chunk : chunks) {
    makers.begin(chunk);
    multiply(work, chunk, makers, made);
    receive([&] { return ChunkRows<T>{chunk, made}; }, chunk.begin, chunk.end);
  }
}

template <class T>
void backward(const RadialTensors<T>& t, const EdgeOrder& order, const int64_t* tables,
              ParallelFor parallel_for, int64_t threads) {
  const Plan<T> plan(tables);
  const int64_t nodes = order.num_nodes, numel = plan.weight_numel;
  PackedRows<T> grad(plan.out, t.grad, nodes);
  PackedRows<T> x(plan.in, t.x, nodes);
  auto send = [&](const auto& make_rows, int64_t begin, int64_t end) {
    send_nodes<T, false>(plan, conv_tensors(t), make_rows, order, grad.get(), x.get(), nullptr,
                         begin, end, parallel_for, threads);
  };
  if (!t.shared) {
    SplineTable<T> table(t, numel);
    fill(parallel_for, threads, grad, x, table);
    return send([&] { return SplineRows<T>(t, table); }, 0, nodes);
  }
  const Work<T> work{t, order.src_edge, numel, parallel_for, threads};
  const SharedRows& shared = *t.shared;
  const auto chunks = make_chunks(order.src_ptr, nodes, numel * int64_t(sizeof(T)), threads);
  const int64_t most = most_edges(chunks);
  Gradients gradients(shared, order, chunks, t.room, parallel_for, threads);
  std::optional<RowMakers> makers;
  if (!t.kept) makers.emplace(shared, order.src_edge, false, parallel_for, threads);
  const Buffer<T> memory = t.kept ? nullptr : allocate<T>(most * numel);
  const MadeRows<T> made{t.kept ? t.kept : memory.get(), numel, shared,
                         makers ? &*makers : nullptr};
  const Buffer<T> places = allocate<T>((gradients.waiting() + most) * numel);
  T* const first_place = places.get() + gradients.waiting() * numel;  // of a chunk
  Transposed<T> transposed(work);
  fill(parallel_for, threads, grad, x, transposed);
  set_zero(t.dradial, order.num_edges * t.inputs, parallel_for, threads);
  for (const Chunk& chunk : chunks) {
    if (makers) {
      makers->begin(chunk);
      multiply(work, chunk, *makers, made);
    }
    send([&] { return ChunkRows<T>{chunk, made, &gradients, first_place}; }, chunk.begin,
         chunk.end);
    multiply_back(work, chunk, shared, gradients, first_place, transposed);
  }
  if (gradients.any_alone()) sum_alone(work, shared, gradients);
}

}  // namespace

extern const RadialConv radial_conv;
const RadialConv radial_conv = {forward<float>, forward<double>, backward<float>, backward<double>};

}  // namespace fastmlip::FASTMLIP_ISA
