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
#include "plan.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

// ------------------------------------------------------------------ one group of edges

// A group of up to kLanes edges of one node, seen from that node.
template <class T>
struct Group {
  int count;
  const T *w[kLanes<T>], *hw[kLanes<T>];          // rows of edge_weight
  T* dw[kLanes<T>];                               // rows of its gradient
  const T *far[kLanes<T>], *far2[kLanes<T>];      // packed rows of the other node: x, hx or grad
  const Vec<T> *attr, *attr2;                     // edge_attr, ha: [dim2], one edge a lane
  T *matrix, *matrix2;                            // M, M' of the path at hand: [d1 * d3][lane]
  Vec<T>* q;                                      // Q of one edge: [d1 * d3]
  Vec<T>* da;                                     // [lane][dim2], not yet summed over lanes
};

template <class T>
void make_matrix(const PlanPath<T>& p, const Vec<T>* attr, T* matrix) {
  const CgTerm<T>*term = p.by_matrix.data(), *end = term + p.by_matrix.size();
  const int entries = p.d2 == 1 ? 1 : p.d1 * p.d3;  // l2 = 0: one number times the unit matrix
  for (int index = 0; index < entries; ++index) {
    Vec<T> m{};
    for (; term != end && term->index == index; ++term) m += term->value * attr[p.in2 + term->m2];
    store(matrix + index * kLanes<T>, m);
  }
}

// In the kernels D1, D3 are the irreps' dimensions where known at compile time, 0 where not.
constexpr int kMaxDim = 23;  // e3nn's Wigner matrices end at l = 11
template <int D>
inline constexpr int kSize = D ? D : kMaxDim;

template <class T, int D1, int D3, bool kSecond>
void receive_path(const PlanPath<T>& p, const Group<T>& group, T* out) {
  constexpr int L = kLanes<T>;
  const int d1 = D1 ? D1 : p.d1, d3 = D3 ? D3 : p.d3;
  for (int u = 0; u < p.mul; u += L) {
    T* to = out + p.out + u;
    Vec<T> sum[kSize<D3>];
    for (int m3 = 0; m3 < d3; ++m3) sum[m3] = load(to + m3 * p.padded);
    for (int e = 0; e < group.count; ++e) {
      const T *matrix = group.matrix + e, *matrix2 = group.matrix2 + e;
      const T *x = group.far[e] + p.in1 + u, *hx = group.far2[e] + p.in1 + u;
      const Vec<T> w = load_some(group.w[e] + p.weight + u, p.mul - u);
      Vec<T> hw{};
      if (kSecond) hw = load_some(group.hw[e] + p.weight + u, p.mul - u);
      for (int m1 = 0; m1 < d1; ++m1) {
        const Vec<T> xm = load(x + m1 * p.padded);
        if (kSecond) {
          const Vec<T> v = w * load(hx + m1 * p.padded) + hw * xm, v2 = w * xm;
          for (int m3 = 0; m3 < d3; ++m3)
            sum[m3] += matrix[(m1 * d3 + m3) * L] * v + matrix2[(m1 * d3 + m3) * L] * v2;
        } else {
          const Vec<T> v = w * xm;
          for (int m3 = 0; m3 < d3; ++m3) sum[m3] += matrix[(m1 * d3 + m3) * L] * v;
        }
      }
    }
    for (int m3 = 0; m3 < d3; ++m3) store(to + m3 * p.padded, sum[m3]);
  }
}

template <class T, int D, bool kSecond>
void receive_scalar_path(const PlanPath<T>& p, const Group<T>& group, T* out) {
  const int d = D ? D : p.d1;
  for (int u = 0; u < p.mul; u += kLanes<T>) {
    T* to = out + p.out + u;
    Vec<T> sum[kSize<D>];
    for (int m = 0; m < d; ++m) sum[m] = load(to + m * p.padded);
    for (int e = 0; e < group.count; ++e) {
      const T *x = group.far[e] + p.in1 + u, *hx = group.far2[e] + p.in1 + u;
      const Vec<T> w = load_some(group.w[e] + p.weight + u, p.mul - u);
      if (kSecond) {
        const Vec<T> hw = load_some(group.hw[e] + p.weight + u, p.mul - u);
        const Vec<T> with_hx = group.matrix[e] * w, with_x = group.matrix[e] * hw + group.matrix2[e] * w;
        for (int m = 0; m < d; ++m)
          sum[m] += with_hx * load(hx + m * p.padded) + with_x * load(x + m * p.padded);
      } else {
        const Vec<T> scaled = group.matrix[e] * w;
        for (int m = 0; m < d; ++m) sum[m] += scaled * load(x + m * p.padded);
      }
    }
    for (int m = 0; m < d; ++m) store(to + m * p.padded, sum[m]);
  }
}

// Columns [first, first + C) of m1, so that C * d3 running sums of Q fit the registers.
template <class T, int C, int D3, bool kSecond>
void send_columns(const PlanPath<T>& p, const Group<T>& group, int e, int first, const T* x,
                  const T* hx, T* dx) {
  constexpr int L = kLanes<T>;
  const int d3 = D3 ? D3 : p.d3;
  const T *matrix = group.matrix + e, *matrix2 = group.matrix2 + e;
  const T* grad = group.far[e] + p.out;
  Vec<T> q[C][kSize<D3>];
  for (int c = 0; c < C; ++c)
    for (int m3 = 0; m3 < d3; ++m3) q[c][m3] = Vec<T>{};
  for (int u = 0; u < p.mul; u += L) {
    const int left = p.mul - u;
    Vec<T> g[kSize<D3>];
    for (int m3 = 0; m3 < d3; ++m3) g[m3] = load(grad + m3 * p.padded + u);
    const Vec<T> w = load_some(group.w[e] + p.weight + u, left);
    Vec<T> hw{}, dw{};
    if (kSecond) hw = load_some(group.hw[e] + p.weight + u, left);
    T* to = group.dw[e] + p.weight + u;
    if (first) dw = load_some(to, left);
    for (int c = 0; c < C; ++c) {
      const int at = p.in1 + (first + c) * p.padded + u, row = (first + c) * d3;
      const Vec<T> xm = load(x + at);
      Vec<T> y{}, y2{}, v = w * xm;
      if (kSecond) v = w * load(hx + at) + hw * xm;
      for (int m3 = 0; m3 < d3; ++m3) {
        y += matrix[(row + m3) * L] * g[m3];
        if (kSecond) y2 += matrix2[(row + m3) * L] * g[m3];
        q[c][m3] += v * g[m3];
      }
      if (kSecond) {
        dw += xm * y2 + load(hx + at) * y;
        store(dx + at, load(dx + at) + w * y2 + hw * y);
      } else {
        dw += xm * y;
        store(dx + at, load(dx + at) + w * y);
      }
    }
    store_some(to, dw, left);
  }
  for (int c = 0; c < C; ++c)
    for (int m3 = 0; m3 < d3; ++m3) group.q[(first + c) * d3 + m3] = q[c][m3];
}

template <class T, int D1, int D3, bool kSecond>
void send_path(const PlanPath<T>& p, const Group<T>& group, const T* x, const T* hx, T* dx, int dim2) {
  constexpr int columns = !D1 || !D3 ? 1 : std::clamp(15 / D3, 1, D1);
  constexpr int rest = D1 ? D1 % columns : 0;
  const int d1 = D1 ? D1 : p.d1;
  for (int e = 0; e < group.count; ++e) {
    int first = 0;
    for (; first + columns <= d1; first += columns)
      send_columns<T, columns, D3, kSecond>(p, group, e, first, x, hx, dx);
    if constexpr (rest > 0) send_columns<T, rest, D3, kSecond>(p, group, e, first, x, hx, dx);
    Vec<T>* da = group.da + e * dim2 + p.in2;
    const CgTerm<T>*term = p.by_attr.data(), *end = term + p.by_attr.size();
    for (int m2 = 0; m2 < p.d2; ++m2) {
      Vec<T> sum{};
      for (; term != end && term->m2 == m2; ++term) sum += term->value * group.q[term->index];
      da[m2] += sum;
    }
  }
}

template <class T, int D, bool kSecond>
void send_scalar_path(const PlanPath<T>& p, const Group<T>& group, const T* x, const T* hx, T* dx, int dim2) {
  const int d = D ? D : p.d1;
  const T coefficient = p.by_matrix[0].value;
  for (int e = 0; e < group.count; ++e) {
    const T *grad = group.far[e] + p.out, scale = group.matrix[e];
    Vec<T> q{};
    for (int u = 0; u < p.mul; u += kLanes<T>) {
      const int left = p.mul - u;
      const Vec<T> w = load_some(group.w[e] + p.weight + u, left);
      Vec<T> xg{}, hxg{};
      Vec<T> with_g = scale * w;
      if (kSecond) {
        const Vec<T> hw = load_some(group.hw[e] + p.weight + u, left);
        with_g = group.matrix2[e] * w + scale * hw;
      }
      for (int m = 0; m < d; ++m) {
        const int at = p.in1 + m * p.padded + u;
        const Vec<T> g = load(grad + m * p.padded + u);
        xg += load(x + at) * g;
        if (kSecond) hxg += load(hx + at) * g;
        store(dx + at, load(dx + at) + with_g * g);
      }
      if (kSecond) {
        const Vec<T> hw = load_some(group.hw[e] + p.weight + u, left);
        q += w * hxg + hw * xg;
        store_some(group.dw[e] + p.weight + u, group.matrix2[e] * xg + scale * hxg, left);
      } else {
        q += w * xg;
        store_some(group.dw[e] + p.weight + u, scale * xg, left);
      }
    }
    group.da[e * dim2 + p.in2] += coefficient * q;
  }
}

// ------------------------------------------------------------------ dispatch on dimensions

template <class T, bool kSecond>
void receive(const PlanPath<T>& p, const Group<T>& group, T* out) {
  if (p.d2 == 1)
    return with_dim(p.d1, [&](auto D) { receive_scalar_path<T, D, kSecond>(p, group, out); });
  with_dim(p.d1, [&](auto D1) {
    with_dim(p.d3, [&](auto D3) {
      constexpr bool known = D1 && D3;
      receive_path<T, known ? D1 : 0, known ? D3 : 0, kSecond>(p, group, out);
    });
  });
}

template <class T, bool kSecond>
void send(const PlanPath<T>& p, const Group<T>& group, const T* x, const T* hx, T* dx, int dim2) {
  if (p.d2 == 1)
    return with_dim(p.d1, [&](auto D) { send_scalar_path<T, D, kSecond>(p, group, x, hx, dx, dim2); });
  with_dim(p.d1, [&](auto D1) {
    with_dim(p.d3, [&](auto D3) {
      constexpr bool known = D1 && D3;
      send_path<T, known ? D1 : 0, known ? D3 : 0, kSecond>(p, group, x, hx, dx, dim2);
    });
  });
}

// ------------------------------------------------------------------ the two passes

// Parts of about equal numbers of edges; which part a node falls in changes nothing it computes.
int64_t part_begin(const int64_t* ptr, int64_t num_nodes, int64_t part, int64_t parts) {
  if (part == parts) return num_nodes;
  const int64_t edge = ptr[num_nodes] / parts * part;
  return part == 0 ? 0 : std::lower_bound(ptr, ptr + num_nodes, edge) - ptr;
}

template <class T>
Buffer<T> pack_rows(const std::vector<PackedBlock>& blocks, int dim, int packed, const T* rows, int64_t num_nodes,
                    ParallelFor parallel_for, int64_t threads) {
  Buffer<T> result = allocate<T>(num_nodes * packed);
  auto part = [&](int64_t i) {
    for (int64_t n = num_nodes * i / threads; n < num_nodes * (i + 1) / threads; ++n)
      pack(blocks, rows + n * dim, result.get() + n * packed);
  };
  run(parallel_for, threads, part);
  return result;
}

// Scratch of one thread: everything a group points to that is not a tensor.
template <class T>
struct Scratch {
  Buffer<Vec<T>> attr, attr2, q, da;
  Buffer<T> matrix, matrix2;
  Group<T> group{};

  explicit Scratch(const Plan<T>& plan)
      : attr(allocate<Vec<T>>(plan.dim2)),
        attr2(allocate<Vec<T>>(plan.dim2)),
        q(allocate<Vec<T>>(plan.max_matrix)),
        da(allocate<Vec<T>>(int64_t(kLanes<T>) * plan.dim2)),
        matrix(allocate<T>(int64_t(kLanes<T>) * plan.max_matrix)),
        matrix2(allocate<T>(int64_t(kLanes<T>) * plan.max_matrix)) {
    group.attr = attr.get();
    group.attr2 = attr2.get();
    group.q = q.get();
    group.da = da.get();
    group.matrix = matrix.get();
    group.matrix2 = matrix2.get();
  }

  static void gather(const T* rows, int dim2, const int64_t* edges, int count, Vec<T>* lanes) {
    T* to = reinterpret_cast<T*>(lanes);
    for (int m = 0; m < dim2; ++m)
      for (int e = 0; e < kLanes<T>; ++e) to[m * kLanes<T> + e] = e < count ? rows[edges[e] * dim2 + m] : 0;
  }

  // The group of `count` edges; `far` are their nodes at the other end, with packed rows.
  void fill(const Plan<T>& plan, const Tensors<T>& t, const int64_t* edges, const int64_t* far, int count,
            const T* far_rows, const T* far_rows2, int far_packed) {
    group.count = count;
    gather(t.edge_attr, plan.dim2, edges, count, attr.get());
    if (t.ha) gather(t.ha, plan.dim2, edges, count, attr2.get());
    for (int e = 0; e < count; ++e) {
      group.w[e] = t.edge_weight + edges[e] * plan.weight_numel;
      group.hw[e] = t.hw ? t.hw + edges[e] * plan.weight_numel : nullptr;
      group.dw[e] = t.dw ? t.dw + edges[e] * plan.weight_numel : nullptr;
      group.far[e] = far_rows + far[e] * far_packed;
      group.far2[e] = far_rows2 + (far_rows2 ? far[e] * far_packed : 0);
    }
  }
};

template <class T, bool kSecond>
void receive_pass(const Tensors<T>& t, const EdgeOrder& order, const int64_t* tables, ParallelFor parallel_for,
                  int64_t threads) {
  const Plan<T> plan(tables);
  const int64_t nodes = order.num_nodes;
  auto pack_in1 = [&](const T* rows) {
    return pack_rows(plan.blocks1, plan.dim1, plan.packed1, rows, nodes, parallel_for, threads);
  };
  const Buffer<T> x = pack_in1(t.x), hx = kSecond ? pack_in1(t.hx) : nullptr;
  auto part = [&](int64_t i) {
    Scratch<T> scratch(plan);
    const Buffer<T> sum = allocate<T>(plan.packed3);
    const int64_t end = part_begin(order.dst_ptr, nodes, i + 1, threads);
    for (int64_t n = part_begin(order.dst_ptr, nodes, i, threads); n < end; ++n) {
      std::fill_n(sum.get(), plan.packed3, T(0));
      for (int64_t k = order.dst_ptr[n]; k < order.dst_ptr[n + 1]; k += kLanes<T>) {
        const int count = int(std::min<int64_t>(kLanes<T>, order.dst_ptr[n + 1] - k));
        scratch.fill(plan, t, order.dst_edge + k, order.dst_src + k, count, x.get(), hx.get(), plan.packed1);
        for (const PlanPath<T>& path : plan.paths) {
          make_matrix(path, scratch.group.attr, scratch.group.matrix);
          if (kSecond) make_matrix(path, scratch.group.attr2, scratch.group.matrix2);
          receive<T, kSecond>(path, scratch.group, sum.get());
        }
      }
      unpack(plan.blocks3, sum.get(), t.out + n * plan.dim3);
    }
  };
  run(parallel_for, threads, part);
}

template <class T, bool kSecond>
void send_pass(const Tensors<T>& t, const EdgeOrder& order, const int64_t* tables, ParallelFor parallel_for,
               int64_t threads) {
  const Plan<T> plan(tables);
  const int64_t nodes = order.num_nodes;
  const Buffer<T> grad =
      pack_rows(plan.blocks3, plan.dim3, plan.packed3, t.grad, nodes, parallel_for, threads);
  auto part = [&](int64_t i) {
    Scratch<T> scratch(plan);
    const Buffer<T> x = allocate<T>(plan.packed1), hx = allocate<T>(plan.packed1), dx = allocate<T>(plan.packed1);
    const int64_t end = part_begin(order.src_ptr, nodes, i + 1, threads);
    for (int64_t n = part_begin(order.src_ptr, nodes, i, threads); n < end; ++n) {
      pack(plan.blocks1, t.x + n * plan.dim1, x.get());
      if (kSecond) pack(plan.blocks1, t.hx + n * plan.dim1, hx.get());
      std::fill_n(dx.get(), plan.packed1, T(0));
      for (int64_t k = order.src_ptr[n]; k < order.src_ptr[n + 1]; k += kLanes<T>) {
        const int count = int(std::min<int64_t>(kLanes<T>, order.src_ptr[n + 1] - k));
        const int64_t* edges = order.src_edge + k;
        scratch.fill(plan, t, edges, order.src_dst + k, count, grad.get(), nullptr, plan.packed3);
        std::fill_n(scratch.group.da, int64_t(count) * plan.dim2, Vec<T>{});
        for (const PlanPath<T>& path : plan.paths) {
          make_matrix(path, scratch.group.attr, scratch.group.matrix);
          if (kSecond) make_matrix(path, scratch.group.attr2, scratch.group.matrix2);
          send<T, kSecond>(path, scratch.group, x.get(), hx.get(), dx.get(), plan.dim2);
        }
        for (int e = 0; e < count; ++e)
          for (int m = 0; m < plan.dim2; ++m)
            t.da[edges[e] * plan.dim2 + m] = sum<T>(scratch.group.da[e * plan.dim2 + m]);
      }
      unpack(plan.blocks1, dx.get(), t.dx + n * plan.dim1);
    }
  };
  run(parallel_for, threads, part);
}

template <class T>
void receive_any(const Tensors<T>& t, const EdgeOrder& order, const int64_t* tables, ParallelFor parallel_for,
                 int64_t threads) {
  (t.hx ? receive_pass<T, true> : receive_pass<T, false>)(t, order, tables, parallel_for, threads);
}

template <class T>
void send_any(const Tensors<T>& t, const EdgeOrder& order, const int64_t* tables, ParallelFor parallel_for,
              int64_t threads) {
  (t.hx ? send_pass<T, true> : send_pass<T, false>)(t, order, tables, parallel_for, threads);
}

}  // namespace

#define FASTMLIP_STRING_(name) #name
#define FASTMLIP_STRING(name) FASTMLIP_STRING_(name)

extern const Kernels kernels;
const Kernels kernels = {FASTMLIP_STRING(FASTMLIP_ISA), receive_any<float>, receive_any<double>,
                         send_any<float>, send_any<double>};

}  // namespace fastmlip::FASTMLIP_ISA
