// What the kernel of irreps_linear takes: plain pointers, no torch.
#pragma once

#include <cstdint>

#include "base/parallel.h"
#include "graph/typed.h"

namespace fastmlip {

// The table that fastmlip/ops/irreps_linear.py writes: this, then its paths.
struct LinearHeader {
  int64_t dim_in, dim_out, weight_numel, num_paths;
  int64_t ir_mul_in,
      ir_mul_out;  // layout of either end: [block][m][mul], or [block][mul][m] where 0
};
// Blocks `in` and `out` (where they start in a row) of mul_in and mul_out irreps of `dim`.
struct LinearPath {
  int64_t in, mul_in, out, mul_out, dim, weight;
};

struct IrrepsLinear {
  // out = x times the weights, or from dim_out to dim_in, times the transposed weights
  void (*apply_f32)(const float* x, const float* weight, const Typed&, const int64_t* tables,
                    bool transposed, float* out, ParallelFor, int64_t threads);
  void (*apply_f64)(const double* x, const double* weight, const Typed&, const int64_t* tables,
                    bool transposed, double* out, ParallelFor, int64_t threads);
  // dweight: the gradient of weight, where grad is that of out
  void (*dweight_f32)(const float* x, const float* grad, const Typed&, const int64_t* tables,
                      float* dweight, ParallelFor, int64_t threads);
  void (*dweight_f64)(const double* x, const double* grad, const Typed&, const int64_t* tables,
                      double* dweight, ParallelFor, int64_t threads);
};

}  // namespace fastmlip
