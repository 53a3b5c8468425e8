// Large arrays in huge pages, where the system gives them on request: their first touch and random
// access to their rows are then far cheaper (twice the speed of the whole backward at 20,000
// edges).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>
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

// Scratch of a thread, aligned to cache lines, that it keeps for its next kernel, up to kMost
// bytes: a small model calls dozens of kernels in a few milliseconds, each with a few arrays for
// each thread.
class Scratches {
 public:
  static void* take(size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    Scratches& own = of_thread();
    auto best = own.kept_.end();
    for (auto i = own.kept_.begin(); i != own.kept_.end(); ++i)
      if (size(*i) >= bytes && (best == own.kept_.end() || size(*i) < size(*best))) best = i;
    if (best != own.kept_.end() && size(*best) <= 2 * bytes) {
      void* memory = *best;
      own.bytes_ -= size(memory);
      *best = own.kept_.back();
      own.kept_.pop_back();
      return memory;
    }
    char* memory = static_cast<char*>(std::aligned_alloc(64, bytes + 64));
    if (!memory) throw std::bad_alloc();
    ask_for_huge_pages(memory, int64_t(bytes));
    size(memory + 64) = bytes;
    return memory + 64;
  }

  static void give(void* memory) {
    Scratches& own = of_thread();
    if (own.bytes_ + size(memory) > kMost) return free(memory);
    own.bytes_ += size(memory);
    own.kept_.push_back(memory);
  }

 private:
#ifdef __SANITIZE_ADDRESS__
  static constexpr size_t kMost = 0;  // so that a use after the end is found
#else
  static constexpr size_t kMost = size_t(4) << 20;
#endif

  ~Scratches() {
    for (void* memory : kept_) free(memory);
  }
  static Scratches& of_thread() {
    static thread_local Scratches instance;
    return instance;
  }
  // stands in front of the memory
  static size_t& size(void* memory) {
    return *reinterpret_cast<size_t*>(static_cast<char*>(memory) - 64);
  }
  static void free(void* memory) { std::free(static_cast<char*>(memory) - 64); }

  std::vector<void*> kept_;
  size_t bytes_ = 0;
};

// Large scratch memory that is kept for the next call, because to give it back and ask for it again
// costs page faults (two thirds of radial_conv's backward at 4,000 edges).
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : bytes_(bytes), memory_(take(bytes_)) {}
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() { keep(memory_, bytes_); }

  void* get() const { return memory_; }

  void grow(int64_t bytes) {
    if (bytes <= bytes_) return;
    std::free(memory_);
    memory_ = take(bytes_ = bytes);
  }

 private:
  static constexpr size_t kMaxKept = 4;  // buffers

  // The smallest kept buffer of at least `bytes`, which becomes its size, or a new one.
  static void* take(int64_t& bytes) {
    const std::lock_guard<std::mutex> lock(mutex());
    auto& kept = free_list();
    auto best = kept.end();
    for (auto i = kept.begin(); i != kept.end(); ++i)
      if (i->second >= bytes && (best == kept.end() || i->second < best->second)) best = i;
    if (best != kept.end()) {
      const auto [memory, size] = *best;
      kept.erase(best);
      bytes = size;
      return memory;
    }
    bytes = (bytes + 63) / 64 * 64;
    void* memory = std::aligned_alloc(64, bytes);
    if (!memory) throw std::bad_alloc();
    ask_for_huge_pages(memory, bytes);
    return memory;
  }

  static void keep(void* memory, int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex());
    auto& kept = free_list();
    kept.emplace_back(memory, bytes);
    if (kept.size() <= kMaxKept) return;
    auto smallest = kept.begin();
    for (auto i = kept.begin(); i != kept.end(); ++i)
      if (i->second < smallest->second) smallest = i;
    std::free(smallest->first);
    kept.erase(smallest);
  }

  static std::mutex& mutex() {
    static std::mutex instance;
    return instance;
  }
  static std::vector<std::pair<void*, int64_t>>& free_list() {
    static auto& instance = *new std::vector<std::pair<void*, int64_t>>;  // outlives all users
    return instance;
  }

  int64_t bytes_;
  void* memory_;
};

}  // namespace fastmlip
