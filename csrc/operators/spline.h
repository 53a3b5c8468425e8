// What the kernels of spline take: plain pointers, no torch.
#pragma once

#include <cstdint>

#include "base/parallel.h"

namespace fastmlip {

constexpr int kSplinePieces = 6;      // rows of coefficients that an edge takes
constexpr int64_t kSplineBlock = 64;  // columns of a block of a spline's table

inline int64_t spline_blocks(int64_t columns) {
  return columns > 0 ? (columns + kSplineBlock - 1) / kSplineBlock : 1;
}

// Row-major tensors; a pointer that a kernel does not use is null.
template <class T>
struct SplineTensors {
  int64_t edges, columns, table_rows;
  const T *place, *table;    // [E], [blocks, table_rows, kSplineBlock]
  const int64_t* first_row;  // [E]
  const T* grad;             // [E, columns]
  T *out, *dplace;
};

template <class T>
using SplineKernel = void (*)(const SplineTensors<T>&, ParallelFor, int64_t threads);

struct Spline {
  SplineKernel<float> forward_f32, backward_f32;
  SplineKernel<double> forward_f64, backward_f64;
};

}  // namespace fastmlip
