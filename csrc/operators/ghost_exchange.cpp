#include "operators/ghost_exchange.h"

namespace {
fastmlip::GhostWorld world;
}

extern "C" void fastmlip_set_ghost_world(fastmlip_ghost_rows forward, fastmlip_ghost_rows reverse,
                                         void* context) {
  world = {forward, reverse, context};
}

namespace fastmlip {

const GhostWorld& ghost_world() { return world; }

}  // namespace fastmlip
