// Nodes in the order of their types, from a tensor of types.
#pragma once

#include <vector>

#include "graph/typed.h"
#include "torch/common.h"

namespace fastmlip {

struct Sorted {
  std::vector<int64_t> node, type_end;

  Sorted(const int64_t* types, int64_t num_nodes, int64_t num_types)
      : node(num_nodes), type_end(num_types) {
    expect_range("types", types, num_nodes, num_types, ", the number of types");
    for (int64_t n = 0; n < num_nodes; ++n) ++type_end[types[n]];
    std::vector<int64_t> next(num_types);
    for (int64_t t = 1; t < num_types; ++t) next[t] = type_end[t - 1], type_end[t] += next[t];
    for (int64_t n = 0; n < num_nodes; ++n) node[next[types[n]]++] = n;
  }

  Typed typed() const {
    return {node.data(), type_end.data(), int64_t(type_end.size()), int64_t(node.size())};
  }
};

}  // namespace fastmlip
