// The largest degree of irreps, which kernels have room for.
#pragma once

#ifndef FASTMLIP_L_MAX
#error "FASTMLIP_L_MAX is set by the build, from fastmlip/problem.py"
#endif

namespace fastmlip {

constexpr int kMaxDim = 2 * FASTMLIP_L_MAX + 1;

}  // namespace fastmlip
