// What the kernels of gate take: plain pointers, no torch.
#pragma once

#include <cstdint>

#include "base/parallel.h"

namespace fastmlip {

// The table that fastmlip/ops/gate.py writes: this, then its segments.
struct GateHeader {
  int64_t dim_in, dim_out, num_segments;
};
// `mul` scalars at `gate` of a row, through an activation; with dim > 0 the factors of `mul` irreps
// of that dimension at `in`. The result is at `out`.
struct GateSegment {
  int64_t gate, in, out, mul, dim, activation, factor_bits;
};
enum : int64_t { kIdentity, kSilu, kTanh, kActivations };

// Row-major tensors [num_nodes, ...] of T; a pointer that a kernel does not use is null.
struct GateTensors {
  const void *x, *grad, *hx;  // rows of dim_in, dim_out, dim_in
  void *out, *dx;             // rows of dim_out, dim_in
  int64_t num_nodes;
};

struct Gate {
  using Kernel = void (*)(const GateTensors&, const int64_t* tables, ParallelFor, int64_t threads);
  Kernel forward_f32, forward_f64;    // out
  Kernel backward_f32, backward_f64;  // dx
  // of <hx, backward>: out to grad, dx to x
  Kernel double_backward_f32, double_backward_f64;
};

}  // namespace fastmlip
