// What the kernels of edge_embedding take: plain pointers, no torch.
#pragma once

#include <cstdint>

#include "base/parallel.h"

namespace fastmlip {

// A row of the table that fastmlip/spherical_harmonics.py writes behind l_max + 1 scales:
// the derivative of R_i along axis k has value * R_j.
struct HarmonicTerm {
  int64_t i, j, k, value_bits;
};

struct EdgeEmbeddingShape {
  int64_t edges, num_bessels, l_max, p, num_types, num_terms;
  double factor;
  const int64_t* tables;  // l_max + 1 scales, then the terms

  int64_t harmonics() const { return (l_max + 1) * (l_max + 1); }
};

// Row-major tensors; T is the model's dtype. Gradients that are null count as zero.
template <class T>
struct EdgeEmbeddingTensors {
  const double *vec, *roots, *rmax_recip;
  const int64_t* edge_type;  // [2, E], or null: one cutoff for all
  const double *h_vec, *h_roots;
  const double *g_length, *g_norm;
  const T *g_attrs, *g_embedding, *g_cutoff;
  double *length, *norm;
  T *attrs, *embedding, *cutoff;
  double *d_vec, *d_roots;
};

template <class T>
struct EdgeEmbeddingKernels {
  // length, norm, attrs, embedding, cutoff
  void (*forward)(const EdgeEmbeddingShape&, const EdgeEmbeddingTensors<T>&, ParallelFor,
                  int64_t threads);
  // d_vec, d_roots
  void (*backward)(const EdgeEmbeddingShape&, const EdgeEmbeddingTensors<T>&, ParallelFor,
                   int64_t threads);
  // all of them, as their derivative along h_vec, h_roots
  void (*double_backward)(const EdgeEmbeddingShape&, const EdgeEmbeddingTensors<T>&, ParallelFor,
                          int64_t threads);
};

struct EdgeEmbedding {
  EdgeEmbeddingKernels<float> f32;
  EdgeEmbeddingKernels<double> f64;
};

}  // namespace fastmlip
