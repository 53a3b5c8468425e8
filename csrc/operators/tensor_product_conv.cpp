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
#include "operators/tensor_product_conv.h"

#include "tensor_product/passes.h"

namespace fastmlip::FASTMLIP_ISA {
namespace {

// Rows of edge_weight that lie in memory, one an edge.
template <class T>
struct EdgeRows {
  const Tensors<T>& t;
  const int64_t numel;
  static constexpr bool stream = true;
  static constexpr int64_t parts = 32;  // a part more costs nothing: nobody waits long for the last

  static int64_t end(int64_t num_edges) { return num_edges; }
  void prepare(const Part&, int64_t, int64_t) {}
  void finish(int64_t, int) {}
  const T* w(int64_t, int64_t edge) const { return t.edge_weight + edge * numel; }
  const T* hw(int64_t, int64_t edge) const { return t.hw ? t.hw + edge * numel : nullptr; }
  T* dw(int64_t, int64_t edge) const { return t.dw ? t.dw + edge * numel : nullptr; }
};

template <class T, bool kSecond>
void receive_pass(const Tensors<T>& t, const EdgeOrder& order, const int64_t* tables,
                  ParallelFor parallel_for, int64_t threads) {
  const Plan<T> plan(tables);
  const int64_t nodes = order.num_nodes;
  PackedRows<T> x(plan.in, t.x, nodes);
  PackedRows<T> hx(plan.in, t.hx, nodes);
  fill(parallel_for, threads, x, hx);
  auto rows = [&] { return EdgeRows<T>{t, plan.weight_numel}; };
  receive_nodes<T, kSecond>(plan, t, rows, order, x.get(), hx.get(), 0, nodes, parallel_for,
                            threads);
}

template <class T, bool kSecond>
void send_pass(const Tensors<T>& t, const EdgeOrder& order, const int64_t* tables,
               ParallelFor parallel_for, int64_t threads) {
  const Plan<T> plan(tables);
  const int64_t nodes = order.num_nodes;
  PackedRows<T> grad(plan.out, t.grad, nodes);
  PackedRows<T> x(plan.in, t.x, nodes);
  PackedRows<T> hx(plan.in, t.hx, nodes);
  fill(parallel_for, threads, grad, x, hx);
  auto rows = [&] { return EdgeRows<T>{t, plan.weight_numel}; };
  send_nodes<T, kSecond>(plan, t, rows, order, grad.get(), x.get(), hx.get(), 0, nodes,
                         parallel_for, threads);
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
