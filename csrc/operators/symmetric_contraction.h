// What the kernels of symmetric_contraction take: plain pointers, no torch.
#pragma once

#include <cstdint>

#include "base/parallel.h"
#include "graph/typed.h"

namespace fastmlip {

// The table that fastmlip/polynomial.py writes: this, then its terms, then what GPU kernels read.
struct PolynomialHeader {
  int64_t inputs, outputs, num_terms, values, slopes;
};
// Of an output: inputs i <= j <= k, counted from 1, where those that are not there are 0 and stand
// behind. Terms are in ascending order, each is there once.
struct PolynomialTerm {
  int64_t output, i, j, k;
};

// Row-major tensors, channels innermost; a pointer that a kernel does not use is null.
template <class T>
struct PolynomialTensors {
  int64_t channels;
  const T *x, *along;     // [N, inputs, U]; along is a direction, or null
  const T* coefficients;  // [num_types, terms, U]
  const T* grad;          // [N, outputs, U]
};

template <class T>
using PolynomialKernel = void (*)(const PolynomialTensors<T>&, const Typed&, const int64_t* tables,
                                  T* result, ParallelFor, int64_t threads);

// result: [N, outputs, U], like x, or like coefficients; with `along` its derivative.
struct SymmetricContraction {
  PolynomialKernel<float> value_f32, dx_f32, dcoefficients_f32;
  PolynomialKernel<double> value_f64, dx_f64, dcoefficients_f64;
};

}  // namespace fastmlip
