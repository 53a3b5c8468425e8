// Nodes in the order of their types, as kernels take them.
#pragma once

#include <cstdint>

namespace fastmlip {

// Nodes n of type t are node[type_end[t - 1]] .. node[type_end[t] - 1]; without types (node null)
// all are of type 0.
struct Typed {
  const int64_t *node, *type_end;
  int64_t num_types, num_nodes;
};

}  // namespace fastmlip
