// fastmlip::release_memory
#include "torch/common.h"

STABLE_TORCH_LIBRARY_FRAGMENT(fastmlip, m) { m.def("release_memory() -> int"); }

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CompositeExplicitAutograd, m) {
  m.impl("release_memory", TORCH_BOX(&fastmlip::release_memory));
}
