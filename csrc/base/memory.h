// Memory of the kernels. What a call gives back is kept for the next one, because to return it to
// the system and ask again costs page faults (two thirds of radial_conv's backward at 4,000 edges):
// up to a budget for the whole process, beyond which what was longest unused goes back. Large
// arrays lie in huge pages, where the system gives them on request: their first touch and random
// access to their rows are then far cheaper (twice the speed of the whole backward at 20,000
// edges).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace fastmlip {

// The error of memory that is not there; Python's MemoryError.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(int64_t bytes) noexcept;
  const char* what() const noexcept override { return what_; }

 private:
  char what_[80];
};

void ask_for_huge_pages(void* memory, int64_t bytes) noexcept;

// Memory of at least so many bytes, aligned to cache lines, its content anything.
void* take(int64_t bytes);
void give(void* memory) noexcept;  // what take() returned, or null

// Returns to the system what all threads have given back; how many bytes that were.
int64_t release_memory();

template <class T>
struct Give {
  void operator()(T* memory) const noexcept { give(memory); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Give<T>>;

template <class T>
[[gnu::always_inline]] inline Buffer<T> allocate(int64_t count) {
  return Buffer<T>(static_cast<T*>(take(std::max<int64_t>(count, 1) * int64_t(sizeof(T)))));
}

template <class T>
[[gnu::always_inline]] inline Buffer<T> zeros(int64_t count) {
  Buffer<T> result = allocate<T>(count);
  std::fill_n(result.get(), count, T{});
  return result;
}

}  // namespace fastmlip
