// Vectors of edges, and what their gradients give to the positions; fastmlip/ops/edge_vectors.py
// states the formulas.
#pragma once

#include "graph/edge_order.h"

namespace fastmlip {

// vectors[e] = positions[src] - positions[dst], rows of three; T is float or double.
template <class T>
void edge_vectors(const T* positions, const EdgeOrder& order, T* vectors, ParallelFor,
                  int64_t threads);

// dpositions[n] = sum of the rows of grad of the edges that start at n, less that of those which
// end there
template <class T>
void edge_vectors_backward(const T* grad, const EdgeOrder& order, T* dpositions, ParallelFor,
                           int64_t threads);

}  // namespace fastmlip
