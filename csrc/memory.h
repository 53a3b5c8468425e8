// Large arrays in huge pages, where the system gives them on request: their first touch and random
// access to their rows are then far cheaper (twice the speed of the whole backward at 20,000
// edges).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#endif

namespace fastmlip {

inline void ask_for_huge_pages(void* memory, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t page = uintptr_t(1) << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / page * page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace fastmlip
