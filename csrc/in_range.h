// Whether indices stay within their array: what every operator asks before it reads or writes
// there.
#pragma once

#include <cstdint>

namespace fastmlip {

// The first i where 0 <= index[i] < end does not hold, or -1. Neither such an index nor what is
// left from it to the end has the sign bit, which vectors of any instruction set can tell.
template <class Index>
inline int64_t first_bad(const Index* index, int64_t count, int64_t end) {
  uint64_t bits = 0;
  for (int64_t i = 0; i < count; ++i)
    bits |= uint64_t(index[i]) | (uint64_t(end) - 1 - uint64_t(index[i]));
  for (int64_t i = 0; bits >> 63; ++i)
    if (index[i] < 0 || index[i] >= end) return i;
  return -1;
}

}  // namespace fastmlip
