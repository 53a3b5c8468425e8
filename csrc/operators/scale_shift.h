// What the kernels of scale_shift take: plain pointers, no torch.
#pragma once

#include <cstdint>

#include "base/parallel.h"

namespace fastmlip {

// A dtype is float64 or, where `single`, float32; types are int64 or, where `narrow`, int32.
struct Rows {
  const void* data;
  bool single;
};
struct Types {
  const void* data;
  bool narrow;
};
// One value for all types, one for each, or none (nullptr).
struct Values {
  const double* data;
  int64_t count;
};

struct ScaleShift {
  // out[i] = scales[types[i]] * x[i] + shifts[types[i]]; returns where a type is out of range, or
  // -1.
  int64_t (*apply)(Rows x, Types types, Values scales, Values shifts, Rows out, int64_t num_atoms,
                   ParallelFor, int64_t threads);
  // sums[2 * t] = sum of grad[i] * x[i], sums[2 * t + 1] = sum of grad[i], over atoms of type t;
  // the order of a sum depends on num_atoms only. Returns as apply does.
  int64_t (*sum)(Rows grad, Rows x, Types types, double* dscales, double* dshifts,
                 int64_t num_types, int64_t num_atoms, ParallelFor, int64_t threads);
  // out[i] = values[types[i]], or += where `add`; returns as apply does.
  int64_t (*by_type)(Types types, Values values, bool add, double* out, int64_t num_atoms,
                     ParallelFor, int64_t threads);
};

}  // namespace fastmlip
