// Whether indices stay within their array: what every operator asks before it reads or writes
// there.
#pragma once

#include <cstdint>

namespace fastmlip {

// The first i of begin .. end where 0 <= index[i] < limit does not hold, or -1. Neither an index
// that is in range nor what is left from it to the limit has the sign bit, which vectors of any
// instruction set can tell; of the caller's, so always inline.
template <class Index>
[[gnu::always_inline]] inline int64_t first_bad(const Index* index, int64_t begin, int64_t end,
                                                int64_t limit) {
  uint64_t bits = 0;
  for (int64_t i = begin; i < end; ++i)
    bits |= uint64_t(index[i]) | (uint64_t(limit) - 1 - uint64_t(index[i]));
  for (int64_t i = begin; bits >> 63; ++i)
    if (index[i] < 0 || index[i] >= limit) return i;
  return -1;
}

}  // namespace fastmlip
