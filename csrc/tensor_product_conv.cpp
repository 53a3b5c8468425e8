// CPU kernels of tensor_product_conv; fastmlip/ops/tensor_product_conv.py states the formula.
//
// Two passes serve every derivative. Channels lie contiguous ("packed": [block][m][mul padded to
// a vector]), so one vector holds one component of kLanes channels. For a group of kLanes edges
// the matrices M_p[m1, m3] = sum_m2 c_p C_p[m1, m2, m3] edge_attr[m2] are made first, one edge a
// lane; the loops over channels then only broadcast them.
//
//   receive: a node owns its row of out and runs over the edges that point to it.
//       out[m3] += sum_m1 M[m1, m3] w x[m1]
//   send: a node owns its row of dx and runs over the edges that start at it; dw and da have one
//       writer, the edge. With g = grad[edge_dst]:
//       y[m1] = sum_m3 M[m1, m3] g[m3],  dx[m1] += w y[m1],  dw = sum_m1 x[m1] y[m1],
//       Q[m1, m3] = sum_u w x[m1] g[m3],  da[m2] = sum_{m1, m3} c_p C_p[m1, m2, m3] Q[m1, m3]
//
// Second order (directions hx, ha, hw; M' made from ha, y' = M' g) replaces
//       w x -> w hx + hw x with M, plus w x with M'            (receive)
//       dx -> w y' + hw y,  dw -> sum x y' + hx y,  Q -> sum (w hx + hw x) g    (send)
#include <atomic>

#include "paths.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

// ------------------------------------------------------------------ the two passes

// Ranges of nodes with about equal numbers of edges, dealt out to threads as they come free, so
// that a thread which wakes late or is slow holds nobody up. Which thread a node falls to changes
// nothing that is computed.
class Parts {
 public:
  Parts(const int64_t* ptr, int64_t num_nodes, int64_t threads)
      : ptr_(ptr), num_nodes_(num_nodes), parts_(threads == 1 ? 1 : 8 * threads) {}

  bool take(int64_t* begin, int64_t* end) {
    const int64_t part = next_.fetch_add(1, std::memory_order_relaxed);
    *begin = node(part);
    *end = node(part + 1);
    return part < parts_;
  }

 private:
  int64_t node(int64_t part) const {
    if (part == 0) return 0;
    if (part >= parts_) return num_nodes_;
    return std::lower_bound(ptr_, ptr_ + num_nodes_, ptr_[num_nodes_] * part / parts_) - ptr_;
  }

  const int64_t* ptr_;
  const int64_t num_nodes_, parts_;
  std::atomic<int64_t> next_{0};
};

template <class T>
Buffer<T> pack_rows(const std::vector<PackedBlock>& blocks, int dim, int packed, const T* rows,
                    int64_t num_nodes, ParallelFor parallel_for, int64_t threads) {
  Buffer<T> result = allocate<T>(num_nodes * packed);
  auto part = [&](int64_t i) {
    for (int64_t n = num_nodes * i / threads; n < num_nodes * (i + 1) / threads; ++n)
      pack(blocks, rows + n * dim, result.get() + n * packed);
  };
  run(parallel_for, threads, part);
  return result;
}

// Edges that da has rows for: a whole group, and a whole step of contract_q.
template <class T>
constexpr int64_t kDaRows = std::max(kLanes<T>, kStep);

// Scratch of one thread: everything a group points to that is not a tensor.
template <class T>
struct Scratch {
  Buffer<Vec<T>> attr, attr2, q, da;
  Buffer<T> matrix, matrix2, partial;
  Group<T> group{};

  explicit Scratch(const Plan<T>& plan)
      : attr(allocate<Vec<T>>(plan.dim2)),
        attr2(allocate<Vec<T>>(plan.dim2)),
        q(allocate<Vec<T>>(kStep * plan.max_matrix)),
        da(allocate<Vec<T>>(kDaRows<T> * plan.dim2)),
        matrix(allocate<T>(int64_t(kLanes<T>) * plan.max_matrix)),
        matrix2(allocate<T>(int64_t(kLanes<T>) * plan.max_matrix)),
        partial(allocate<T>(plan.max_padded)) {
    std::fill_n(q.get(), kStep * plan.max_matrix, Vec<T>{});
    group.attr = attr.get();
    group.attr2 = attr2.get();
    group.q = q.get();
    group.da = da.get();
    group.matrix = matrix.get();
    group.matrix2 = matrix2.get();
    group.partial = partial.get();
  }

  static void gather(const T* rows, int dim2, const int64_t* edges, int count, Vec<T>* lanes) {
    T* to = reinterpret_cast<T*>(lanes);
    for (int m = 0; m < dim2; ++m)
      for (int e = 0; e < kLanes<T>; ++e)
        to[m * kLanes<T> + e] = e < count ? rows[edges[e] * dim2 + m] : 0;
  }

  // The group of `count` edges, of `left` edges to come; `far` are their nodes at the other end.
  void fill(const Plan<T>& plan, const Tensors<T>& t, const int64_t* edges, const int64_t* far,
            int count, int64_t left, const T* far_rows, const T* far_rows2, int far_packed) {
    group.count = count;
    gather(t.edge_attr, plan.dim2, edges, count, attr.get());
    if (t.ha) gather(t.ha, plan.dim2, edges, count, attr2.get());
    for (int e = 0; e < count; ++e) {
      group.w[e] = t.edge_weight + edges[e] * plan.weight_numel;
      group.hw[e] = t.hw ? t.hw + edges[e] * plan.weight_numel : nullptr;
      const int64_t next = edges[e + kLanes<T> < left ? e + kLanes<T> : e];
      group.next_w[e] = t.edge_weight + next * plan.weight_numel;
      group.next_hw[e] = t.hw ? t.hw + next * plan.weight_numel : nullptr;
      group.dw[e] = t.dw ? t.dw + edges[e] * plan.weight_numel : nullptr;
      group.far[e] = far_rows + far[e] * far_packed;
      group.far2[e] = far_rows2 + (far_rows2 ? far[e] * far_packed : 0);
    }
    group.far[count] = group.far[0];
  }
};

template <class T, bool kSecond>
void receive_pass(const Tensors<T>& t, const EdgeOrder& order, const int64_t* tables,
                  ParallelFor parallel_for, int64_t threads) {
  const Plan<T> plan(tables);
  const int64_t nodes = order.num_nodes;
  auto pack_in1 = [&](const T* rows) {
    return pack_rows(plan.blocks1, plan.dim1, plan.packed1, rows, nodes, parallel_for, threads);
  };
  const Buffer<T> x = pack_in1(t.x), hx = kSecond ? pack_in1(t.hx) : nullptr;
  auto receive_node = [&](Scratch<T>& scratch, int64_t n, T* sum) {
    std::fill_n(sum, plan.packed3, T(0));
    for (int64_t k = order.dst_ptr[n]; k < order.dst_ptr[n + 1]; k += kLanes<T>) {
      const int count = int(std::min<int64_t>(kLanes<T>, order.dst_ptr[n + 1] - k));
      scratch.fill(plan, t, order.dst_edge + k, order.dst_src + k, count, order.num_edges - k,
                   x.get(), hx.get(), plan.packed1);
      for (const PlanPath<T>& path : plan.paths) {
        make_matrix(path, scratch.group.attr, scratch.group.matrix);
        if (kSecond) make_matrix(path, scratch.group.attr2, scratch.group.matrix2);
        receive<T, kSecond>(path, scratch.group, sum);
      }
    }
    unpack(plan.blocks3, sum, t.out + n * plan.dim3);
  };
  Parts parts(order.dst_ptr, nodes, threads);
  run(parallel_for, threads, [&](int64_t) {
    Scratch<T> scratch(plan);
    const Buffer<T> sum = allocate<T>(plan.packed3);
    for (int64_t begin, end; parts.take(&begin, &end);)
      for (int64_t n = begin; n < end; ++n) receive_node(scratch, n, sum.get());
  });
}

template <class T, bool kSecond>
void send_pass(const Tensors<T>& t, const EdgeOrder& order, const int64_t* tables,
               ParallelFor parallel_for, int64_t threads) {
  const Plan<T> plan(tables);
  const int64_t nodes = order.num_nodes;
  auto pack_all = [&](const std::vector<PackedBlock>& blocks, int dim, int packed, const T* rows) {
    return pack_rows(blocks, dim, packed, rows, nodes, parallel_for, threads);
  };
  const Buffer<T> grad = pack_all(plan.blocks3, plan.dim3, plan.packed3, t.grad);
  const Buffer<T> x = pack_all(plan.blocks1, plan.dim1, plan.packed1, t.x);
  const Buffer<T> hx = kSecond ? pack_all(plan.blocks1, plan.dim1, plan.packed1, t.hx) : nullptr;

  auto send_node = [&](Scratch<T>& scratch, int64_t n, T* dx_row) {
    const int64_t row = n * plan.packed1;
    const T* hx_row = kSecond ? hx.get() + row : x.get();
    for (int64_t k = order.src_ptr[n]; k < order.src_ptr[n + 1]; k += kLanes<T>) {
      const int count = int(std::min<int64_t>(kLanes<T>, order.src_ptr[n + 1] - k));
      const int64_t* edges = order.src_edge + k;
      scratch.fill(plan, t, edges, order.src_dst + k, count, order.num_edges - k, grad.get(),
                   nullptr, plan.packed3);
      std::fill_n(scratch.group.da, kDaRows<T> * plan.dim2, Vec<T>{});
      for (const PlanPath<T>& path : plan.paths) {
        make_matrix(path, scratch.group.attr, scratch.group.matrix);
        if (kSecond) make_matrix(path, scratch.group.attr2, scratch.group.matrix2);
        send<T, kSecond>(path, scratch.group, x.get() + row, hx_row, dx_row, plan.dim2);
      }
      for (int m = 0; m < plan.dim2; ++m) {
        T sums[kLanes<T>];
        store(sums, sum_each<T>(scratch.group.da + m, plan.dim2));
        for (int e = 0; e < count; ++e) t.da[edges[e] * plan.dim2 + m] = sums[e];
      }
    }
  };

  Parts parts(order.src_ptr, nodes, threads);
  run(parallel_for, threads, [&](int64_t) {
    Scratch<T> scratch(plan);
    const Buffer<T> dx = allocate<T>(plan.packed1);
    for (int64_t begin, end; parts.take(&begin, &end);) {
      for (int64_t n = begin; n < end; ++n) {
        std::fill_n(dx.get(), plan.packed1, T(0));
        send_node(scratch, n, dx.get());
        unpack(plan.blocks1, dx.get(), t.dx + n * plan.dim1);
      }
    }
    finish_streams();
  });
}

template <class T>
void receive_any(const Tensors<T>& t, const EdgeOrder& order, const int64_t* tables,
                 ParallelFor parallel_for, int64_t threads) {
  (t.hx ? receive_pass<T, true> : receive_pass<T, false>)(t, order, tables, parallel_for, threads);
}

template <class T>
void send_any(const Tensors<T>& t, const EdgeOrder& order, const int64_t* tables,
              ParallelFor parallel_for, int64_t threads) {
  (t.hx ? send_pass<T, true> : send_pass<T, false>)(t, order, tables, parallel_for, threads);
}

}  // namespace

extern const TensorProductConv tensor_product_conv;
const TensorProductConv tensor_product_conv = {receive_any<float>, receive_any<double>,
                                               send_any<float>, send_any<double>};

}  // namespace fastmlip::FASTMLIP_ISA
