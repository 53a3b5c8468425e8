// The choice of instruction set.
#include <cstdlib>

#include "torch/common.h"

namespace fastmlip {
namespace {

Isa choose() {
  const char* asked = std::getenv("FASTMLIP_ISA");
  const std::string name = asked ? asked : "";
#ifdef FASTMLIP_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw");
  if (avx512 && (name.empty() || name == "avx512")) return Isa::avx512;
  if (avx2 && (name.empty() || name == "avx2")) return Isa::avx2;
#endif
  if (name.empty() || name == "portable") return Isa::portable;
  throw std::runtime_error("FASTMLIP_ISA: '" + name +
                           "' is not an instruction set of this build that this processor runs "
                           "(avx512, avx2 or portable)");
}

std::string isa_name() {
  switch (isa()) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::portable:
      return "portable";
  }
  return "";
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace fastmlip

STABLE_TORCH_LIBRARY_FRAGMENT(fastmlip, m) { m.def("isa() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(fastmlip, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&fastmlip::isa_name));
}
