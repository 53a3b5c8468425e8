// Whether indices stay within their array: what every operator asks before it reads or writes
// there.
#pragma once

#include <cstdint>

namespace fastmlip {

// Has the sign bit unless 0 <= index < limit, which vectors of any instruction set can tell.
template <class Index>
[[gnu::always_inline]] inline uint64_t beyond(Index index, int64_t limit) {
  return uint64_t(index) | (uint64_t(limit) - 1 - uint64_t(index));
}

// The first i of begin .. end where 0 <= index[i] < limit does not hold, or -1; of the caller's
// instruction set, so always inline.
template <class Index>
[[gnu::always_inline]] inline int64_t first_bad(const Index* index, int64_t begin, int64_t end,
                                                int64_t limit) {
  uint64_t bits = 0;
  for (int64_t i = begin; i < end; ++i) bits |= beyond(index[i], limit);
  for (int64_t i = begin; bits >> 63; ++i)
    if (index[i] < 0 || index[i] >= limit) return i;
  return -1;
}

}  // namespace fastmlip
