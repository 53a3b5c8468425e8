// Edges and their reverses; fastmlip/ops/edge_pair.py describes the result.
#pragma once

#include <cstdint>

#include "base/parallel.h"
#include "graph/edge_order.h"

namespace fastmlip {

// pair[e]: of edge e and its reverse the one that comes first, or e where there is no reverse.
template <class T, class U>
void edge_pair(const T* edge_vec, const U* edge_embedding, int64_t columns, const EdgeOrder& order,
               int64_t* pair, ParallelFor parallel_for, int64_t parts);

}  // namespace fastmlip
