// The only file that knows torch: schemas, checks and the choice of instruction set. It uses the
// LibTorch stable ABI, so one binary serves every torch from 2.11 on.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <tuple>

#include "memory.h"
#include "tensor_product_conv.h"

namespace fastmlip {

#ifdef FASTMLIP_X86
namespace avx512 {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
#endif
namespace portable {
extern const Kernels kernels;
}

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const Kernels& choose() {
  const char* asked = std::getenv("FASTMLIP_ISA");
  const std::string name = asked ? asked : "";
#ifdef FASTMLIP_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw");
  if (avx512 && (name.empty() || name == "avx512")) return avx512::kernels;
  if (avx2 && (name.empty() || name == "avx2")) return avx2::kernels;
#endif
  if (name.empty() || name == "portable") return portable::kernels;
  throw std::runtime_error("FASTMLIP_ISA: '" + name +
                           "' is not an instruction set of this build that this processor runs "
                           "(avx512, avx2 or portable)");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

namespace {

void parallel_for(int64_t parts, void (*f)(int64_t, void*), void* context) {
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) f(part, context);
  });
}

// As many parts as torch has threads, but none with less than about 20 us of work.
int64_t parts(int64_t num_nodes, int64_t num_edges, int64_t weight_numel) {
  const int64_t work = num_edges * (weight_numel + 64) / (1 << 15);
  return std::max<int64_t>(
      1, std::min<int64_t>({int64_t(torch::stable::get_num_threads()), work, num_nodes}));
}

std::string isa() { return kernels().isa; }

Tensor edge_order_cpu(const Tensor& edge_dst, const Tensor& edge_src, int64_t num_nodes) {
  const int64_t num_edges = edge_dst.size(0);
  const Tensor dst = torch::stable::contiguous(edge_dst), src = torch::stable::contiguous(edge_src);
  Tensor order =
      torch::stable::new_empty(dst, {2 * (num_nodes + 1) + 4 * num_edges}, ScalarType::Long);
  int64_t* table = order.mutable_data_ptr<int64_t>();
  int64_t position = 0;
  const bool narrow = dst.scalar_type() == ScalarType::Int;
  const char* bad = narrow
                        ? edge_order(dst.const_data_ptr<int32_t>(), src.const_data_ptr<int32_t>(),
                                     num_nodes, num_edges, table, &position)
                        : edge_order(dst.const_data_ptr<int64_t>(), src.const_data_ptr<int64_t>(),
                                     num_nodes, num_edges, table, &position);
  if (bad) {
    const Tensor& index = std::string(bad) == "edge_dst" ? dst : src;
    const int64_t value = narrow ? index.const_data_ptr<int32_t>()[position]
                                 : index.const_data_ptr<int64_t>()[position];
    throw std::runtime_error(
        std::string(bad) + "[" + std::to_string(position) + "] = " + std::to_string(value) +
        " is out of range: expected 0 <= index < " + std::to_string(num_nodes) + ", the rows of x");
  }
  return order;
}

EdgeOrder parts_of(const Tensor& order, int64_t num_nodes, int64_t num_edges) {
  const int64_t* p = order.const_data_ptr<int64_t>();
  const int64_t* edges = p + 2 * (num_nodes + 1);
  return {num_nodes,
          num_edges,
          p,
          p + num_nodes + 1,
          edges,
          edges + num_edges,
          edges + 2 * num_edges,
          edges + 3 * num_edges};
}

void expect(bool ok, const std::string& what) {
  if (!ok) throw std::runtime_error("tensor_product_conv: " + what);
}

void expect_shape(const char* name, const Tensor& t, int64_t rows, int64_t columns) {
  expect(t.dim() == 2 && t.size(0) == rows && t.size(1) == columns,
         std::string(name) + ": expected shape [" + std::to_string(rows) + ", " +
             std::to_string(columns) + "]");
}

// The operators' Python page checks what users pass. Compiled models call these operators without
// it, so what could read out of bounds is checked here again. Returns the columns of the result.
int64_t check(const Tensor& x, const Tensor& a, const Tensor& w, const Tensor& order,
              const Tensor& tables) {
  constexpr int64_t header_size = sizeof(Header) / sizeof(int64_t);
  expect(tables.dim() == 1 && tables.size(0) >= header_size, "tables: too short");
  const int64_t* table = tables.const_data_ptr<int64_t>();
  const auto& header = *reinterpret_cast<const Header*>(table);
  const int64_t blocks = header.num_blocks1 + header.num_blocks3;
  expect(tables.size(0) == header_size + 2 * blocks +
                               header.num_paths * int64_t(sizeof(PathRow) / sizeof(int64_t)) +
                               header.num_cg * int64_t(sizeof(CgRow) / sizeof(int64_t)),
         "tables: not a table of TensorProductProblem.tables()");
  int64_t dim1 = 0, dim3 = 0;
  const auto* block = reinterpret_cast<const Block*>(table + header_size);
  for (int64_t i = 0; i < blocks; ++i)
    (i < header.num_blocks1 ? dim1 : dim3) += block[i].mul * block[i].dim;
  const int64_t nodes = x.dim() ? x.size(0) : 0, edges = a.dim() ? a.size(0) : 0;
  expect_shape("x", x, nodes, dim1);
  expect_shape("edge_attr", a, edges, header.dim2);
  expect_shape("edge_weight", w, edges, header.weight_numel);
  expect(order.dim() == 1 && order.size(0) == 2 * (nodes + 1) + 4 * edges,
         "order: not the edge_order of these nodes and edges");
  const int64_t* ends = order.const_data_ptr<int64_t>();
  expect(ends[nodes] == edges && ends[2 * nodes + 1] == edges,
         "order: not the edge_order of these nodes and edges");
  return dim3;
}

// Contiguous operands of one call; directions are all given or all absent.
struct Operands {
  Tensor x, a, w;
  std::optional<Tensor> g, hx, ha, hw;

  template <class T>
  Tensors<T> pointers() const {
    auto data = [](const std::optional<Tensor>& t) { return t ? t->const_data_ptr<T>() : nullptr; };
    return {x.const_data_ptr<T>(),
            a.const_data_ptr<T>(),
            w.const_data_ptr<T>(),
            data(g),
            data(hx),
            data(ha),
            data(hw),
            nullptr,
            nullptr,
            nullptr,
            nullptr};
  }
};

void receive(const Operands& in, const Tensor& order, const Tensor& tables, Tensor& out) {
  const EdgeOrder edges = parts_of(order, in.x.size(0), in.a.size(0));
  const int64_t threads = parts(edges.num_nodes, edges.num_edges, in.w.size(1));
  const int64_t* table = tables.const_data_ptr<int64_t>();
  if (in.x.scalar_type() == ScalarType::Double) {
    Tensors<double> t = in.pointers<double>();
    t.out = out.mutable_data_ptr<double>();
    kernels().receive_f64(t, edges, table, parallel_for, threads);
  } else {
    Tensors<float> t = in.pointers<float>();
    t.out = out.mutable_data_ptr<float>();
    kernels().receive_f32(t, edges, table, parallel_for, threads);
  }
}

void send(const Operands& in, const Tensor& order, const Tensor& tables, Tensor& dx, Tensor& da,
          Tensor& dw) {
  const EdgeOrder edges = parts_of(order, in.x.size(0), in.a.size(0));
  const int64_t threads = parts(edges.num_nodes, edges.num_edges, in.w.size(1));
  const int64_t* table = tables.const_data_ptr<int64_t>();
  if (in.x.scalar_type() == ScalarType::Double) {
    Tensors<double> t = in.pointers<double>();
    t.dx = dx.mutable_data_ptr<double>(), t.da = da.mutable_data_ptr<double>(),
    t.dw = dw.mutable_data_ptr<double>();
    kernels().send_f64(t, edges, table, parallel_for, threads);
  } else {
    Tensors<float> t = in.pointers<float>();
    t.dx = dx.mutable_data_ptr<float>(), t.da = da.mutable_data_ptr<float>(),
    t.dw = dw.mutable_data_ptr<float>();
    kernels().send_f32(t, edges, table, parallel_for, threads);
  }
}

Tensor empty_as(const Tensor& t) {
  Tensor result = torch::stable::new_empty(t, t.sizes());
  ask_for_huge_pages(result.data_ptr(), result.numel() * result.element_size());
  return result;
}
Tensor packed(const Tensor& t) { return torch::stable::contiguous(t); }

Tensor forward_cpu(const Tensor& x, const Tensor& a, const Tensor& w, const Tensor& order,
                   const Tensor& tables, int64_t dim_out) {
  expect(check(x, a, w, order, tables) == dim_out, "dim_out: not the columns of this problem");
  Tensor out = torch::stable::new_empty(x, {x.size(0), dim_out});
  receive({packed(x), packed(a), packed(w), {}, {}, {}, {}}, order, tables, out);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward_cpu(const Tensor& g, const Tensor& x, const Tensor& a,
                                                const Tensor& w, const Tensor& order,
                                                const Tensor& tables) {
  expect_shape("grad", g, x.size(0), check(x, a, w, order, tables));
  const Operands in{packed(x), packed(a), packed(w), packed(g), {}, {}, {}};
  Tensor dx = empty_as(in.x), da = empty_as(in.a), dw = empty_as(in.w);
  send(in, order, tables, dx, da, dw);
  return {dx, da, dw};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> double_backward_cpu(const Tensor& hx, const Tensor& ha,
                                                               const Tensor& hw, const Tensor& g,
                                                               const Tensor& x, const Tensor& a,
                                                               const Tensor& w, const Tensor& order,
                                                               const Tensor& tables) {
  expect_shape("grad", g, x.size(0), check(x, a, w, order, tables));
  expect_shape("hx", hx, x.size(0), x.size(1));
  expect_shape("ha", ha, a.size(0), a.size(1));
  expect_shape("hw", hw, w.size(0), w.size(1));
  const Operands in{packed(x), packed(a), packed(w), packed(g), packed(hx), packed(ha), packed(hw)};
  Tensor gg = empty_as(*in.g), gx = empty_as(in.x), ga = empty_as(in.a), gw = empty_as(in.w);
  receive(in, order, tables, gg);
  send(in, order, tables, gx, ga, gw);
  return {gg, gx, ga, gw};
}

}  // namespace
}  // namespace fastmlip

STABLE_TORCH_LIBRARY_FRAGMENT(fastmlip, m) {
  m.def("isa() -> str");
  m.def("edge_order_cpu(Tensor edge_dst, Tensor edge_src, SymInt num_nodes) -> Tensor");
  m.def(
      "tensor_product_conv_cpu(Tensor x, Tensor edge_attr, Tensor edge_weight, Tensor order, "
      "Tensor tables, "
      "SymInt dim_out) -> Tensor");
  m.def(
      "tensor_product_conv_backward_cpu(Tensor grad, Tensor x, Tensor edge_attr, Tensor "
      "edge_weight, Tensor order, "
      "Tensor tables) -> (Tensor, Tensor, Tensor)");
  m.def(
      "tensor_product_conv_double_backward_cpu(Tensor hx, Tensor ha, Tensor hw, Tensor grad, "
      "Tensor x, "
      "Tensor edge_attr, Tensor edge_weight, Tensor order, Tensor tables) -> (Tensor, Tensor, "
      "Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&fastmlip::isa));
}

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CPU, m) {
  m.impl("edge_order_cpu", TORCH_BOX(&fastmlip::edge_order_cpu));
  m.impl("tensor_product_conv_cpu", TORCH_BOX(&fastmlip::forward_cpu));
  m.impl("tensor_product_conv_backward_cpu", TORCH_BOX(&fastmlip::backward_cpu));
  m.impl("tensor_product_conv_double_backward_cpu", TORCH_BOX(&fastmlip::double_backward_cpu));
}
