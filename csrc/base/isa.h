// Which of the instruction sets that a kernel source was compiled for this process runs.
#pragma once

namespace fastmlip {

enum class Isa { portable, avx2, avx512 };

Isa isa();  // the best the processor runs, chosen once; FASTMLIP_ISA overrides

}  // namespace fastmlip

// Declares a kernel table that `<op>.cpp` defines in the namespace of each instruction set, and
// `const Type& name()`, the one that this process runs. For use inside namespace fastmlip.
#ifdef FASTMLIP_X86
#define FASTMLIP_KERNELS(Type, name)                                                               \
  namespace portable {                                                                             \
  extern const Type name;                                                                          \
  }                                                                                                \
  namespace avx2 {                                                                                 \
  extern const Type name;                                                                          \
  }                                                                                                \
  namespace avx512 {                                                                               \
  extern const Type name;                                                                          \
  }                                                                                                \
  inline const Type& name() {                                                                      \
    return isa() == Isa::avx512 ? avx512::name : isa() == Isa::avx2 ? avx2::name : portable::name; \
  }
#else
#define FASTMLIP_KERNELS(Type, name) \
  namespace portable {               \
  extern const Type name;            \
  }                                  \
  inline const Type& name() { return portable::name; }
#endif
