// Threads for kernels, which do not know torch.
#pragma once

#include <cstdint>

namespace fastmlip {

// Runs f(part, context) for part = 0 .. parts - 1, on any number of threads.
using ParallelFor = void (*)(int64_t parts, void (*f)(int64_t, void*), void* context);

// Runs part(0) .. part(parts - 1) through the caller's threads.
template <class F>
void run(ParallelFor parallel_for, int64_t parts, const F& part) {
  if (parts == 1) return part(0);
  parallel_for(
      parts, [](int64_t i, void* f) { (*static_cast<const F*>(f))(i); }, const_cast<F*>(&part));
}

}  // namespace fastmlip
