// What the kernels of zbl take: plain pointers, no torch.
#pragma once

#include <cstdint>

#include "base/parallel.h"

namespace fastmlip {

// Of each atom: its nuclear charge Z, Z^0.23, and its type.
struct ZblAtoms {
  const double *charge, *power;
  const int64_t* type;
};

// Edges in any order; weight is null where every edge counts once.
template <class T>
struct ZblEdges {
  int64_t num_edges, num_nodes, num_atoms, num_types;
  const T *length, *weight;
  const double* phi;     // phi^(order) of each edge where it is known, or null
  const T* normed;       // [E] length / cutoff, or null where cutoffs are there
  const double* cutoff;  // [T, T] cutoff radii, row of the receiver, or null
  const int64_t *dst, *src;
  ZblAtoms atoms;  // [num_atoms] each
  double prefactor, p;
  int order;  // derivative of phi, 0 .. 3
};

// A node or atom index out of range; edge < 0 where there is none.
struct ZblBad {
  int64_t edge = -1;
  bool is_dst = false;
};

struct Zbl {
  // out[n] += sum over edges e with dst[e] = n of weight[e] phi^(order)(length[e]);
  // next[e] = phi^(order + 1)(length[e]), where next is not null
  ZblBad (*nodes_f32)(const ZblEdges<float>&, double* out, double* next, ParallelFor,
                      int64_t threads);
  ZblBad (*nodes_f64)(const ZblEdges<double>&, double* out, double* next, ParallelFor,
                      int64_t threads);
  // out[e] = weight[e] grad[dst[e]] phi^(order)(length[e])
  ZblBad (*edges_f32)(const ZblEdges<float>&, const double* grad, float* out, ParallelFor,
                      int64_t threads);
  ZblBad (*edges_f64)(const ZblEdges<double>&, const double* grad, double* out, ParallelFor,
                      int64_t threads);
};

}  // namespace fastmlip
