// What the kernels of tensor_product_conv take: plain pointers, no torch.
#pragma once

#include <cstdint>

namespace fastmlip {

// One edge list in both orders; see fastmlip/ops/edge_order.py.
struct EdgeOrder {
  int64_t num_nodes, num_edges;
  const int64_t *dst_ptr, *src_ptr, *dst_edge, *dst_src, *src_edge, *src_dst;
};

// Header of the table that fastmlip/problem.py writes, then its rows.
struct Header {
  int64_t num_blocks1, dim2, num_blocks3, num_paths, num_cg, weight_numel;
};
struct Block {
  int64_t mul, dim;
};
struct PathRow {
  int64_t mul, d1, d2, d3, in1_block, in2_offset, out_block, weight_offset, cg_begin, cg_end;
};
struct CgRow {
  int64_t m1, m2, m3, value_bits;
};

// Row-major tensors; a pointer that a kernel does not use is null.
template <class T>
struct Tensors {
  const T *x, *edge_attr, *edge_weight, *grad;  // primal operands
  const T *hx, *ha, *hw;                        // second-order directions, all or none
  T *out, *dx, *da, *dw;
};

// Runs f(part, context) for part = 0 .. parts - 1, on any number of threads.
using ParallelFor = void (*)(int64_t parts, void (*f)(int64_t, void*), void* context);

struct Kernels {
  const char* isa;
  // out (forward), or with directions hx, ha, hw the sum of the three forwards they give.
  void (*receive_f32)(const Tensors<float>&, const EdgeOrder&, const int64_t* tables, ParallelFor,
                      int64_t threads);
  void (*receive_f64)(const Tensors<double>&, const EdgeOrder&, const int64_t* tables, ParallelFor,
                      int64_t threads);
  // dx, da, dw (backward), or with directions the gradients of the directional derivative.
  void (*send_f32)(const Tensors<float>&, const EdgeOrder&, const int64_t* tables, ParallelFor,
                   int64_t threads);
  void (*send_f64)(const Tensors<double>&, const EdgeOrder&, const int64_t* tables, ParallelFor,
                   int64_t threads);
};

const Kernels& kernels();  // the best the processor runs, chosen once (FASTMLIP_ISA overrides)

// Fills `order`; returns nullptr, or the name of the argument with an index out of range and
// where it stands. Index is int32_t or int64_t.
template <class Index>
const char* edge_order(const Index* dst, const Index* src, int64_t num_nodes, int64_t num_edges,
                       int64_t* order, int64_t* bad_position);

}  // namespace fastmlip
