// The two passes over nodes that tensor_product_conv.cpp and radial_conv.cpp are made of, whatever
// the rows of edge_weight lie in: `Rows` says where. tensor_product_conv.cpp states the formulas.
//
//   rows.prepare(part, n, k)        makes the rows of the group of edges at k, of node n, readable
//   rows.w(k, edge), hw, dw         the row of edge_weight, of its direction, of its gradient
//   rows.finish(k, count)           the gradients of these edges are there
//   rows.stream                     whether gradient rows are read much later, so past the caches
//   rows.parts                      how many parts of the nodes there are for each thread
#pragma once

#include "base/memory.h"
#include "base/parallel.h"
#include "graph/edge_order.h"
#include "tensor_product/send.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

// Ranges of the nodes [begin, end) with about equal numbers of edges, dealt out to threads. Which
// thread a node falls to changes nothing that is computed.
class Parts {
 public:
  Parts(const int64_t* ptr, int64_t begin, int64_t end, int64_t threads, int64_t each)
      : ptr_(ptr),
        begin_(begin),
        end_(end),
        parts_(threads == 1 ? 1 : each * threads),
        shares_(parts_, threads) {}

  bool take(int64_t thread, int64_t* begin, int64_t* end) {
    const int64_t part = shares_.take(thread);
    if (part < 0) return false;
    *begin = node(part);
    *end = node(part + 1);
    return true;
  }

 private:
  int64_t node(int64_t part) const {
    if (part == 0) return begin_;
    if (part == parts_) return end_;
    const int64_t edge = ptr_[begin_] + (ptr_[end_] - ptr_[begin_]) * part / parts_;
    return std::lower_bound(ptr_ + begin_, ptr_ + end_, edge) - ptr_;
  }

  const int64_t* ptr_;
  const int64_t begin_, end_, parts_;
  Shares shares_;
};

// Rows of all nodes in packed layout, once all parts are filled; null of null.
template <class T>
class PackedRows {
 public:
  PackedRows(const Layout& layout, const T* rows, int64_t num_nodes)
      : layout_(layout), rows_(rows), num_nodes_(num_nodes) {
    if (rows && !layout.is_packed()) memory_ = allocate<T>(num_nodes * layout.packed);
  }

  bool ready() const { return !memory_; }

  void fill(int64_t part, int64_t parts) {
    if (ready()) return;
    T* to = memory_.get();
    const int64_t end = num_nodes_ * (part + 1) / parts;
    for (int64_t n = num_nodes_ * part / parts; n < end; ++n)
      pack(layout_, rows_ + n * layout_.dim, to + n * layout_.packed);
  }

  const T* get() const { return memory_ ? memory_.get() : rows_; }

 private:
  const Layout& layout_;
  const T* const rows_;
  const int64_t num_nodes_;
  Buffer<T> memory_;
};

// Edges that da has rows for: a whole group, and a whole step of contract_q.
template <class T>
constexpr int64_t kDaRows = std::max(kLanes<T>, kStep);

// What a thread has taken of a pass: edges by node, up to node `last`.
struct Part {
  const int64_t *ptr, *edge;
  int64_t last;
};

// Scratch of one thread: everything a group points to that is not a tensor.
template <class T>
struct Scratch {
  Buffer<Vec<T>> attr, attr2, matrix, matrix2;
  Buffer<Short<T>> q, da, sums;
  Group<T> group{};

  explicit Scratch(const Plan<T>& plan)
      : attr(allocate<Vec<T>>(plan.dim2)),
        attr2(allocate<Vec<T>>(plan.dim2)),
        matrix(zeros<Vec<T>>(plan.matrix_entries)),
        matrix2(zeros<Vec<T>>(plan.matrix_entries)),
        q(zeros<Short<T>>(kStep * plan.matrix_entries)),
        da(allocate<Short<T>>(kDaRows<T> * plan.dim2)),
        sums(allocate<Short<T>>(kDaRows<T> * plan.dim2 / kShortLanes<T>)) {
    group.q = q.get();
    group.da = da.get();
  }

  // Rows of edges, transposed: one edge a lane, and the first again in lanes behind the last.
  static void gather(const T* rows, int dim2, const int64_t* edges, int count, Vec<T>* lanes) {
    constexpr int L = kLanes<T>;
    const T* row[L];
    for (int e = 0; e < L; ++e) row[e] = rows + edges[e < count ? e : 0] * dim2;
    int m = 0;
    for (; m + L <= dim2; m += L) {
      unroll<L>(L, [&](int e) FASTMLIP_INLINE { lanes[m + e] = load(row[e] + m); });
      transpose_square<T>(lanes + m);
    }
    for (; m < dim2; ++m) {
      Vec<T> all;
      unroll<L>(L, [&](int e) FASTMLIP_INLINE { all[e] = row[e][m]; });
      lanes[m] = all;
    }
  }

  // The group of `count` edges, of `left` edges to come; `far` are their nodes at the other end.
  // What the next group will read from memory is fetched, but for weights: of those the rows
  // `ahead` edges later stand ready to be.
  template <bool kSecond, class Rows>
  void fill(const Plan<T>& plan, const Tensors<T>& t, const Rows& rows, int64_t k,
            const int64_t* edges, const int64_t* far, int count, int64_t left, int ahead,
            const T* far_rows, const T* far_rows2, int far_packed) {
    group.count = count;
    group.stream = rows.stream;
    gather(t.edge_attr, plan.dim2, edges, count, attr.get());
    make_matrices(plan, attr.get(), matrix.get());
    if (kSecond) {
      gather(t.ha, plan.dim2, edges, count, attr2.get());
      make_matrices(plan, attr2.get(), matrix2.get());
    }
    for (int e = 0; e < count; ++e) {
      const int next = e + kLanes<T> < left ? e + kLanes<T> : e,
                later = e + ahead < left ? e + ahead : e;
      group.w[e] = rows.w(k + e, edges[e]);
      group.next_w[e] = rows.w(k + later, edges[later]);
      group.dw[e] = rows.dw(k + e, edges[e]);
      group.far[e] = far_rows + far[e] * far_packed;
      prefetch_soon(t.edge_attr + edges[next] * plan.dim2);
      prefetch_soon(t.edge_attr + (edges[next] + 1) * plan.dim2 - 1);
      if (!kSecond) continue;
      group.hw[e] = rows.hw(k + e, edges[e]);
      group.next_hw[e] = rows.hw(k + later, edges[later]);
      group.far2[e] = far_rows2 ? far_rows2 + far[e] * far_packed : nullptr;
      prefetch_soon(t.ha + edges[next] * plan.dim2);
      prefetch_soon(t.ha + (edges[next] + 1) * plan.dim2 - 1);
    }
  }

  // The matrices of a path become those of the group.
  void at(const PlanPath<T>& path) {
    group.matrix = reinterpret_cast<const T*>(matrix.get() + path.matrix);
    group.matrix2 = reinterpret_cast<const T*>(matrix2.get() + path.matrix);
  }
};

// The sum over the edges that point to the n-th node, into `sum` (packed).
template <class T, bool kSecond, class Rows>
void receive_node(const Plan<T>& plan, const Tensors<T>& t, Rows& rows, const EdgeOrder& order,
                  Scratch<T>& scratch, const T* x, const T* hx, const Part& part, int64_t n,
                  T* sum) {
  std::fill_n(sum, plan.out.packed, T(0));
  const int64_t end = part.ptr[n + 1];
  for (int64_t k = part.ptr[n]; k < end; k += kLanes<T>) {
    const int count = int(std::min<int64_t>(kLanes<T>, end - k));
    const int64_t* edges = part.edge + k;
    rows.prepare(part, n, k);
    scratch.template fill<kSecond>(plan, t, rows, k, edges, order.dst_src + k, count,
                                   rows.end(order.num_edges) - k, kLanes<T>, x, hx, plan.in.packed);
    for (const PlanPath<T>& path : plan.paths) {
      scratch.at(path);
      receive<T, kSecond>(path, scratch.group, sum);
    }
  }
}

// All that the edges which start at the n-th node have a gradient for; its own in `dx` (packed).
template <class T, bool kSecond, class Rows>
void send_node(const Plan<T>& plan, const Tensors<T>& t, Rows& rows, const EdgeOrder& order,
               Scratch<T>& scratch, const T* grad, const T* x, const T* hx, const Part& part,
               int64_t n, T* dx) {
  std::fill_n(dx, plan.in.packed, T(0));
  const int64_t node = order.node[n];
  const T *x_row = x + node * plan.in.packed,
          *hx_row = kSecond ? hx + node * plan.in.packed : x_row;
  const int64_t end = part.ptr[n + 1];
  for (int64_t k = part.ptr[n]; k < end; k += kLanes<T>) {
    const int count = int(std::min<int64_t>(kLanes<T>, end - k));
    const int64_t* edges = part.edge + k;
    rows.prepare(part, n, k);
    scratch.template fill<kSecond>(plan, t, rows, k, edges, order.src_dst + k, count,
                                   rows.end(order.num_edges) - k, kStep, grad, nullptr,
                                   plan.out.packed);
    Group<T>& group = scratch.group;
    for (group.begin = 0; group.begin < count; group.begin = group.end) {
      group.end = std::min(group.begin + kStep, count);
      for (const PlanPath<T>& path : plan.paths) {
        scratch.at(path);
        const bool last = &path == &plan.paths.back() && group.end < count;
        group.soon = group.far[last ? group.end : group.begin] + path.next_out;
        send<T, kSecond>(path, group, x_row, hx_row, dx);
      }
      contract_q(plan, group.q, group.da + group.begin * plan.dim2);
    }
    rows.finish(k, count);
    for (int i = 0; i * kShortLanes<T> < count * plan.dim2; ++i)
      scratch.sums[i] = sum_each<T>(scratch.group.da + i * kShortLanes<T>, 1);
    const T* sums = reinterpret_cast<const T*>(scratch.sums.get());
    for (int e = 0; e < count; ++e) {
      const T* from = sums + e * plan.dim2;
      T* to = t.da + edges[e] * plan.dim2;
      for (int m = 0; m < plan.dim2; m += kLanes<T>)
        store_some(to + m, load_some(from + m, plan.dim2 - m), plan.dim2 - m);
    }
  }
}

// Both passes over nodes begin .. end of the order; make_rows() gives each thread its Rows.
template <class T, bool kSecond, class MakeRows>
void receive_nodes(const Plan<T>& plan, const Tensors<T>& t, const MakeRows& make_rows,
                   const EdgeOrder& order, const T* x, const T* hx, int64_t begin, int64_t end,
                   ParallelFor parallel_for, int64_t threads) {
  Parts parts(order.dst_ptr, begin, end, threads, decltype(make_rows())::parts);
  run(parallel_for, threads, [&](int64_t thread) {
    Scratch<T> scratch(plan);
    auto rows = make_rows();
    const Buffer<T> sum = allocate<T>(plan.out.packed);
    for (int64_t first, last; parts.take(thread, &first, &last);) {
      const Part part{order.dst_ptr, order.dst_edge, last};
      for (int64_t n = first; n < last; ++n) {
        T* row = t.out + order.node[n] * plan.out.dim;
        T* to = plan.out.is_packed() ? row : sum.get();
        receive_node<T, kSecond>(plan, t, rows, order, scratch, x, hx, part, n, to);
        if (to != row) unpack(plan.out, to, row);
      }
    }
  });
}

template <class T, bool kSecond, class MakeRows>
void send_nodes(const Plan<T>& plan, const Tensors<T>& t, const MakeRows& make_rows,
                const EdgeOrder& order, const T* grad, const T* x, const T* hx, int64_t begin,
                int64_t end, ParallelFor parallel_for, int64_t threads) {
  Parts parts(order.src_ptr, begin, end, threads, decltype(make_rows())::parts);
  run(parallel_for, threads, [&](int64_t thread) {
    Scratch<T> scratch(plan);
    auto rows = make_rows();
    const Buffer<T> dx = allocate<T>(plan.in.packed);
    for (int64_t first, last; parts.take(thread, &first, &last);) {
      const Part part{order.src_ptr, order.src_edge, last};
      for (int64_t n = first; n < last; ++n) {
        T* row = t.dx + order.node[n] * plan.in.dim;
        T* to = plan.in.is_packed() ? row : dx.get();
        send_node<T, kSecond>(plan, t, rows, order, scratch, grad, x, hx, part, n, to);
        if (to != row) unpack(plan.in, to, row);
      }
    }
    finish_streams();
  });
}

}  // namespace
}  // namespace fastmlip::FASTMLIP_ISA
