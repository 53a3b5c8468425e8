// CPU kernels of contraction; fastmlip/ops/contraction.py states the formula.
//
// A node runs over the edges that point to it. Its matrix M[i, k] (a vector of channels in each
// entry) is made once, and edges take it from cache, a chunk of them at a time:
//
//   forward:   out[e, k] = sum_i x[e, i] M[i, k]
//   backward:  dx[e, i] = sum_k M[i, k] g[e, k],  dM[i, k] = sum_e x[e, i] g[e, k], from which come
//              denv[j] = sum C M-terms W[p] dM,  dW[p] = sum C M-terms env[j] dM
//   double backward, with M' = M(henv, W) + M(env, hW), of <g, hx M + x M'>:
//              gg = hx M + x M',  gx = M' g,  dM = sum_e hx g,  dM' = sum_e x g
//
// Where x is given by its factors w[e, l(i)] a[e, i], rows of x are made in cache, and the
// gradients of the factors from those of x there: with q = M g (of hx, in second order) and q' = M'
// g,
//   dw[l] = sum_i q[i] a[i],  da[i] = sum_u q[i] w[l(i)]       (backward)
//   gw = sum_i q'[i] a[i] + q[i] ha[i],  ga = sum_u q'[i] w + q[i] hw    (double backward)
//
// Sums over nodes, the gradient of W, run over fixed ranges of nodes first: the same bits for any
// number of threads.
#include "base/memory.h"
#include "operators/contraction_tiles.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

// Ranges of nodes that one thread takes at once.
struct NodeRanges {
  int64_t nodes, size, count;
  explicit NodeRanges(int64_t nodes)
      : nodes(nodes), size(std::max<int64_t>(8, nodes / 512)), count((nodes + size - 1) / size) {}
  int64_t begin(int64_t i) const { return i * size; }
  int64_t end(int64_t i) const { return std::min(nodes, (i + 1) * size); }
};

// What a thread works with.
template <class T>
class Worker {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;

 public:
  Worker(const ContractionPlan<T>& plan, const ContractionTensors<T>& t, const EdgeOrder& order)
      : plan_(plan), t_(t), order_(order), vectors_((t.channels + L - 1) / L) {}

  void forward(int64_t n) {
    if (!has_edges(n)) return;
    const Buffer<V>& m = matrix(0, plan_.forward);
    make(n, false, plan_.forward, m.get());
    each_chunk(n, [&](int64_t v) {
      const Panel<T> x = operand_x(0, t_.x, v), out = output(3, t_.out, plan_.dim3, v);
      multiply(plan_.forward, {{x, at(m, plan_.forward, v)}}, out, count_);
      keep(out, t_.out, plan_.dim3, v);
    });
  }

  void backward(int64_t n, T* dweight) {
    if (!has_edges(n)) return clear_denv(n);
    const Buffer<V>&m = matrix(0, plan_.transposed), &dm = matrix(1, plan_.forward);
    make(n, false, plan_.transposed, m.get());
    clear(dm, plan_.forward);
    each_chunk(n, [&](int64_t v) {
      const Panel<T> x = operand_x(0, t_.x, v), g = operand(2, t_.grad, plan_.dim3, v),
                     dx = output_x(3, v);
      multiply(plan_.transposed, {{g, at(m, plan_.transposed, v)}}, dx, count_);
      outer(plan_.forward, x, g, count_, at(dm, plan_.forward, v));
      keep_x(dx, nullptr, v);
    });
    adjoint(n, dm.get(), nullptr, dweight);
  }

  void double_backward(int64_t n, T* dweight) {
    if (!has_edges(n)) return clear_denv(n);
    const MatrixSide<T>&forward = plan_.forward, &transposed = plan_.transposed;
    const Buffer<V>&m = matrix(0, forward), &m2 = matrix(1, forward), &m2t = matrix(2, transposed),
          &mt = matrix(3, transposed), &dm = matrix(4, forward), &dm2 = matrix(5, forward);
    make(n, false, forward, m.get());
    make(n, true, forward, m2.get());
    make(n, true, transposed, m2t.get());
    if (t_.edge_attr) make(n, false, transposed, mt.get());
    clear(dm, forward);
    clear(dm2, forward);
    each_chunk(n, [&](int64_t v) {
      const Panel<T> x = operand_x(0, t_.x, v), hx = operand_hx(1, v),
                     g = operand(2, t_.grad, plan_.dim3, v);
      const Panel<T> gg = output(3, t_.out, plan_.dim3, v);
      multiply(forward, {{hx, at(m, forward, v)}, {x, at(m2, forward, v)}}, gg, count_);
      keep(gg, t_.out, plan_.dim3, v);
      outer(forward, hx, g, count_, at(dm, forward, v));
      outer(forward, x, g, count_, at(dm2, forward, v));
      const Panel<T> gx = output_x(3, v);
      multiply(transposed, {{g, at(m2t, transposed, v)}}, gx, count_);
      if (!t_.edge_attr) return keep_x(gx, nullptr, v);
      const Panel<T> q = output_x(4, v);
      multiply(transposed, {{g, at(mt, transposed, v)}}, q, count_);
      keep_x(gx, &q, v);
    });
    adjoint(n, dm.get(), dm2.get(), dweight);
  }

 private:
  bool has_edges(int64_t n) const { return order_.dst_ptr[n] < order_.dst_ptr[n + 1]; }
  void clear_denv(int64_t n) const {
    const int64_t size = plan_.dim2 * t_.channels;
    std::fill_n(t_.denv + order_.node[n] * size, size, T(0));
  }

  int left(int64_t v) const { return int(std::min<int64_t>(L, t_.channels - v * L)); }
  T* row(T* rows, int64_t edge, int64_t dim, int64_t v) const {
    return rows + edge * dim * t_.channels + v * L;
  }
  const T* row(const T* rows, int64_t edge, int64_t dim, int64_t v) const {
    return rows + edge * dim * t_.channels + v * L;
  }

  // ---------------------------------------------------------------- matrices

  const Buffer<V>& matrix(int i, const MatrixSide<T>& side) {
    if (!matrices_[i]) matrices_[i] = zeros<V>(side.entries * vectors_);
    return matrices_[i];
  }
  V* at(const Buffer<V>& matrix, const MatrixSide<T>& side, int64_t v) const {
    return matrix.get() + v * side.entries;
  }
  void clear(const Buffer<V>& matrix, const MatrixSide<T>& side) const {
    std::fill_n(matrix.get(), side.entries * vectors_, V{});
  }

  // M of node n of all channels, [vector][entry], or in second order M'.
  void make(int64_t n, bool second, const MatrixSide<T>& side, V* matrix) {
    if (!products_) products_ = allocate<V>(plan_.products), sums_ = allocate<V>(plan_.products);
    const int64_t node = order_.node[n];
    for (int64_t v = 0; v < vectors_; ++v, matrix += side.entries) {
      const T* env = row(t_.env, node, plan_.dim2, v);
      const T* henv = second ? row(t_.henv, node, plan_.dim2, v) : nullptr;
      for (size_t p = 0; p < plan_.paths.size(); ++p) {
        const PathProducts& path = plan_.paths[p];
        const V w = load_some(row(t_.weight, p, 1, v), left(v));
        const V hw = second ? load_some(row(t_.hweight, p, 1, v), left(v)) : V{};
        for (int j = 0; j < path.dim; ++j) {
          const int64_t from = (path.env + j) * t_.channels;
          const V e = load_some(env + from, left(v));
          products_[path.first + j] = second ? w * load_some(henv + from, left(v)) + hw * e : w * e;
        }
      }
      for (const MatrixTerm<T>& term : side.set)
        matrix[term.entry] = term.value * products_[term.product];
      for (const MatrixTerm<T>& term : side.add)
        matrix[term.entry] += term.value * products_[term.product];
    }
  }

  // Gradients of env and of the weights from that of M, and in second order from that of M' too.
  void adjoint(int64_t n, const V* dm, const V* dm2, T* dweight) {
    const int64_t node = order_.node[n];
    const int entries = plan_.forward.entries;
    for (int64_t v = 0; v < vectors_; ++v, dm += entries) {
      const T* env = row(t_.env, node, plan_.dim2, v);
      T* denv = row(t_.denv, node, plan_.dim2, v);
      for (int j = 0; j < plan_.dim2; ++j) store_some(denv + j * t_.channels, V{}, left(v));
      sum_terms(dm, products_.get());
      if (dm2) sum_terms(dm2, sums_.get());
      for (size_t p = 0; p < plan_.paths.size(); ++p) {
        const PathProducts& path = plan_.paths[p];
        const V w = load_some(row(t_.weight, p, 1, v), left(v));
        const V hw = dm2 ? load_some(row(t_.hweight, p, 1, v), left(v)) : V{};
        V dw = load(dweight + (p * vectors_ + v) * L);
        for (int j = 0; j < path.dim; ++j) {
          const int64_t from = (path.env + j) * t_.channels;
          const V d = products_[path.first + j];
          V sum = load_some(denv + from, left(v)) + w * d;
          dw += load_some(env + from, left(v)) * d;
          if (dm2) {
            const V d2 = sums_[path.first + j];
            // d, of M, belongs to (env, weight); d2, of M', to (henv, weight) and (env, hweight)
            sum += hw * d2;
            dw += load_some(row(t_.henv, node, plan_.dim2, v) + from, left(v)) * d2;
          }
          store_some(denv + from, sum, left(v));
        }
        store(dweight + (p * vectors_ + v) * L, dw);
      }
      if (dm2) dm2 += entries;
    }
  }

  void sum_terms(const V* dm, V* sums) const {
    const MatrixTerm<T>*term = plan_.by_product.data(), *end = term + plan_.by_product.size();
    for (int i = 0; i < plan_.products; ++i) {
      V sum{};
      for (; term != end && term->product == i; ++term) sum += term->value * dm[term->entry];
      sums[i] = sum;
    }
  }

  // ---------------------------------------------------------------- rows of edges

  // f(vector of channels) for every chunk of the edges of node n; gradients of edge_attr are summed
  // over channels at the end of a chunk.
  template <class F>
  void each_chunk(int64_t n, const F& f) {
    const int64_t end = order_.dst_ptr[n + 1];
    for (int64_t k = order_.dst_ptr[n]; k < end; k += kChunk) {
      edges_ = order_.dst_edge + k;
      count_ = int(std::min<int64_t>(kChunk, end - k));
      ahead_ = k + 2 * kChunk <= order_.num_edges ? kChunk : 0;
      if (t_.da) clear_da();
      for (int64_t v = 0; v < vectors_; ++v) f(v);
      if (t_.da) keep_da();
    }
  }

  int64_t later(int e) const { return edges_[e + ahead_]; }

  T* scratch(int i) {
    if (!scratch_[i]) scratch_[i] = allocate<T>(kChunk * std::max(plan_.dim1, plan_.dim3) * L);
    return scratch_[i].get();
  }
  Panel<T> in_scratch(int i, int dim) {
    Panel<T> panel;
    T* rows = scratch(i);
    for (int e = 0; e < count_; ++e) panel.row[e] = rows + e * dim * L;
    panel.stride = L;
    return panel;
  }
  Panel<T> in_place(T* rows, int dim, int64_t v) const {
    Panel<T> panel;
    for (int e = 0; e < count_; ++e) panel.row[e] = row(rows, edges_[e], dim, v);
    panel.stride = t_.channels;
    return panel;
  }

  // Rows of a tensor, one behind the other: where they lie, those of all edges would fall into a
  // few sets of the cache. Meanwhile those of the next chunk are fetched.
  Panel<T> operand(int i, const T* rows, int dim, int64_t v) {
    const Panel<T> panel = in_scratch(i, dim);
    for (int e = 0; e < count_; ++e) {
      const T *from = row(rows, edges_[e], dim, v), *next = row(rows, later(e), dim, v);
      T* to = panel.row[e];
      const int64_t stride = t_.channels;
      if (left(v) == L) {
#pragma GCC unroll 4
        for (int c = 0; c < dim; ++c) {
          store(to + c * L, load(from + c * stride));
          prefetch(next + c * stride);
        }
      } else {
        for (int c = 0; c < dim; ++c) store(to + c * L, load_some(from + c * stride, left(v)));
      }
    }
    return panel;
  }

  Panel<T> output(int i, T* rows, int dim, int64_t v) {
    return left(v) == L ? in_place(rows, dim, v) : in_scratch(i, dim);
  }
  void keep(const Panel<T>& panel, T* rows, int dim, int64_t v) const {
    if (left(v) == L) return;
    for (int e = 0; e < count_; ++e) {
      T* to = row(rows, edges_[e], dim, v);
      for (int c = 0; c < dim; ++c)
        store_some(to + c * t_.channels, load(panel.row[e] + c * L), left(v));
    }
  }

  // f(block, weight row) over the irreps of x that is given by its factors.
  template <class F>
  void each_irrep(const F& f) const {
    for (size_t b = 0; b < plan_.in.size(); ++b) f(plan_.in[b], t_.x_rows == 1 ? 0 : int64_t(b));
  }

  Panel<T> operand_x(int i, const T* x, int64_t v) {
    if (!t_.edge_attr) return operand(i, x, plan_.dim1, v);
    const Panel<T> panel = in_scratch(i, plan_.dim1);
    for (int e = 0; e < count_; ++e) {
      const T *w = row(x, edges_[e], t_.x_rows, v), *a = t_.edge_attr + edges_[e] * plan_.dim1;
      each_irrep([&](const Irrep& irrep, int64_t at) {
        const V weight = load_some(w + at * t_.channels, left(v));
        for (int c = irrep.offset; c < irrep.offset + irrep.dim; ++c)
          store(panel.row[e] + c * L, weight * a[c]);
      });
    }
    return panel;
  }

  // The direction of x: hx, or hw a + w ha of its factors.
  Panel<T> operand_hx(int i, int64_t v) {
    if (!t_.edge_attr) return operand(i, t_.hx, plan_.dim1, v);
    const Panel<T> panel = operand_x(i, t_.hx, v);
    for (int e = 0; e < count_; ++e) {
      const T *w = row(t_.x, edges_[e], t_.x_rows, v), *a = t_.ha + edges_[e] * plan_.dim1;
      each_irrep([&](const Irrep& irrep, int64_t at) {
        const V weight = load_some(w + at * t_.channels, left(v));
        for (int c = irrep.offset; c < irrep.offset + irrep.dim; ++c) {
          T* to = panel.row[e] + c * L;
          store(to, load(to) + weight * a[c]);
        }
      });
    }
    return panel;
  }

  Panel<T> output_x(int i, int64_t v) {
    return t_.edge_attr ? in_scratch(i, plan_.dim1) : output(i, t_.dx, plan_.dim1, v);
  }

  // The gradient of x, or of its factors; q is that of hx where there is one.
  void keep_x(const Panel<T>& dx, const Panel<T>* q, int64_t v) {
    if (!t_.edge_attr) return keep(dx, t_.dx, plan_.dim1, v);
    for (int e = 0; e < count_; ++e) {
      const int64_t edge = edges_[e];
      V *da = da_.get() + e * plan_.dim1, sum{};
      each_irrep([&](const Irrep& irrep, int64_t at) {
        const T* a = t_.edge_attr + edge * plan_.dim1;
        const V w = load_some(row(t_.x, edge, t_.x_rows, v) + at * t_.channels, left(v));
        for (int c = irrep.offset; c < irrep.offset + irrep.dim; ++c) {
          const V d = load(dx.row[e] + c * L);
          sum += d * a[c];
          da[c] += d * w;
        }
        if (q) {
          const T* ha = t_.ha + edge * plan_.dim1;
          const V hw = load_some(row(t_.hx, edge, t_.x_rows, v) + at * t_.channels, left(v));
          for (int c = irrep.offset; c < irrep.offset + irrep.dim; ++c) {
            const V d = load(q->row[e] + c * L);
            sum += d * ha[c];
            da[c] += d * hw;
          }
        }
        if (t_.x_rows == 1 && &irrep != &plan_.in.back()) return;
        store_some(row(t_.dx, edge, t_.x_rows, v) + at * t_.channels, sum, left(v));
        sum = V{};
      });
    }
  }

  void clear_da() {
    if (!da_) da_ = allocate<V>(round_up(kChunk * plan_.dim1, L));
    std::fill_n(da_.get(), round_up(count_ * plan_.dim1, L), V{});
  }
  void keep_da() {
    T* sums = scratch(0);
    for (int i = 0; i < count_ * plan_.dim1; i += L) store(sums + i, sum_each<T>(da_.get() + i, 1));
    for (int e = 0; e < count_; ++e)
      std::copy_n(sums + e * plan_.dim1, plan_.dim1, t_.da + edges_[e] * plan_.dim1);
  }

  const ContractionPlan<T>& plan_;
  const ContractionTensors<T>& t_;
  const EdgeOrder& order_;
  const int64_t vectors_;
  Buffer<V> matrices_[6], products_, sums_, da_;
  Buffer<T> scratch_[5];
  const int64_t* edges_ = nullptr;
  int count_ = 0, ahead_ = 0;
};

template <class T>
void forward(const ContractionTensors<T>& t, const EdgeOrder& order, const int64_t* tables,
             ParallelFor parallel_for, int64_t threads) {
  const ContractionPlan<T> plan(tables);
  const NodeRanges ranges(order.num_nodes);
  Shares shares(ranges.count, threads);
  run(parallel_for, threads, [&](int64_t part) {
    Worker<T> worker(plan, t, order);
    for (int64_t i; (i = shares.take(part)) >= 0;)
      for (int64_t n = ranges.begin(i); n < ranges.end(i); ++n) worker.forward(n);
  });
}

template <class T, bool kSecond>
void gradients(const ContractionTensors<T>& t, const EdgeOrder& order, const int64_t* tables,
               ParallelFor parallel_for, int64_t threads) {
  const ContractionPlan<T> plan(tables);
  const NodeRanges ranges(order.num_nodes);
  const int64_t padded = (t.channels + kLanes<T> - 1) / kLanes<T> * kLanes<T>,
                size = int64_t(plan.paths.size()) * padded;
  const Buffer<T> dweight = zeros<T>(std::max<int64_t>(1, ranges.count) * size);
  Shares shares(ranges.count, threads);
  run(parallel_for, threads, [&](int64_t part) {
    Worker<T> worker(plan, t, order);
    for (int64_t i; (i = shares.take(part)) >= 0;)
      for (int64_t n = ranges.begin(i); n < ranges.end(i); ++n)
        kSecond ? worker.double_backward(n, dweight.get() + i * size)
                : worker.backward(n, dweight.get() + i * size);
  });
  for (int64_t i = 1; i < ranges.count; ++i)
    for (int64_t k = 0; k < size; ++k) dweight[k] += dweight[i * size + k];
  for (size_t p = 0; p < plan.paths.size(); ++p)
    std::copy_n(dweight.get() + p * padded, t.channels, t.dweight + p * t.channels);
}

}  // namespace

extern const Contraction contraction;
const Contraction contraction = {forward<float>,           gradients<float, false>,
                                 gradients<float, true>,   forward<double>,
                                 gradients<double, false>, gradients<double, true>};

}  // namespace fastmlip::FASTMLIP_ISA
