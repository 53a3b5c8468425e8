// Rows of ghost atoms, copies of atoms that another rank of a parallel simulation owns.
#pragma once

#include <cstdint>

// Rows [num_rows, columns] of numbers of `bytes` bytes each (4: float, 8: double), local atoms
// first. `forward` fills the rows of ghosts from their owners; `reverse` adds those of ghosts to
// their owners, the first num_local rows. Every rank calls in the same order. Not 0: it failed.
// They do not throw, and run on the thread that calls the operator.
extern "C" {
typedef int (*fastmlip_ghost_rows)(void* context, void* rows, int64_t num_local, int64_t num_rows,
                                   int64_t columns, int64_t bytes);

// Who exchanges from now on, in this process; null pointers for nobody.
__attribute__((visibility("default"))) void fastmlip_set_ghost_world(fastmlip_ghost_rows forward,
                                                                     fastmlip_ghost_rows reverse,
                                                                     void* context);
}

namespace fastmlip {

struct GhostWorld {
  fastmlip_ghost_rows forward = nullptr, reverse = nullptr;
  void* context = nullptr;
};

const GhostWorld& ghost_world();

}  // namespace fastmlip
