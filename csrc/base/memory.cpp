// What is kept lies on shelves: a thread has one (with some others, where there are many threads),
// so that it need not wait for them. Nobody ever waits for a shelf: one that is busy is passed by.
// So a process that was forked while another thread held one, and has it busy for good, goes on.
#include "base/memory.h"

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#endif
#if __has_include(<malloc.h>)
#include <malloc.h>
#endif

namespace fastmlip {
namespace {

constexpr int64_t kLine = 64;                 // of a cache; the size stands in one before a block
constexpr int64_t kStep = int64_t(1) << 20;   // a shelf's share of the budget, in such steps,
constexpr int64_t kSlack = int64_t(4) << 20;  // may be larger by this than what lies on it
constexpr int64_t kLarge = int64_t(1) << 18;  // such blocks are taken from other shelves too
constexpr int64_t kUnread = -1;               // a budget
#ifdef __SANITIZE_ADDRESS__
constexpr int64_t kDefaultBudget = 0;  // so that a use after the end is found
#else
constexpr int64_t kDefaultBudget = int64_t(256) << 20;
#endif

std::atomic<int64_t> budget{kUnread};
std::atomic<int64_t> shares{0};  // of all shelves
std::atomic<int64_t> age{0};     // moves on where a share does

int64_t read_budget() {
  const char* const text = std::getenv("FASTMLIP_MEMORY");
  if (!text || !*text) return kDefaultBudget;
  char* end = nullptr;
  const double number = std::strtod(text, &end);
  const std::string unit = end;
  const int shift = unit.empty() || unit == "MiB" ? 20
                    : unit == "KiB"               ? 10
                    : unit == "GiB"               ? 30
                                                  : 0;
  if (end == text || !shift || !(number >= 0 && number < 1e9))
    throw std::runtime_error(
        "fastmlip: FASTMLIP_MEMORY: expected a number of MiB, or a number "
        "with KiB, MiB or GiB behind it, got '" +
        std::string(text) + "'");
  return int64_t(number * double(int64_t(1) << shift));
}

int64_t& size_of(void* memory) {
  return *reinterpret_cast<int64_t*>(static_cast<char*>(memory) - kLine);
}

void* from_system(int64_t bytes) {
  char* const memory = static_cast<char*>(std::aligned_alloc(kLine, bytes + kLine));
  if (!memory) throw OutOfMemory(bytes);
  ask_for_huge_pages(memory, bytes + kLine);
  size_of(memory + kLine) = bytes;
  return memory + kLine;
}

void to_system(void* memory) {
  if (memory) std::free(static_cast<char*>(memory) - kLine);
}

struct Kept {
  void* memory = nullptr;
  int64_t age = 0;  // when it was given back
};

struct alignas(kLine) Shelf {
  static constexpr int kPlaces = 32;

  std::atomic<bool> busy{false};
  int count = 0;
  int64_t bytes = 0, share = 0;
  Kept kept[kPlaces];

  void* remove(int i) {
    void* const memory = kept[i].memory;
    bytes -= size_of(memory);
    kept[i] = kept[--count];
    return memory;
  }

  int oldest() const {
    int best = -1;
    for (int i = 0; i < count; ++i)
      if (best < 0 || kept[i].age < kept[best].age) best = i;
    return best;
  }

  // A thread gives and takes the same blocks again and again: within the slack that touches nothing
  // which other threads read.
  void settle(int64_t slack) {
    const int64_t need = (bytes + kStep - 1) / kStep * kStep;
    if (need <= share && share <= need + slack) return;
    shares.fetch_add(need - share, std::memory_order_relaxed);
    age.fetch_add(1, std::memory_order_relaxed);
    share = need;
  }
};

constexpr unsigned kShelves = 64;
Shelf shelves[kShelves];

// The i-th shelf that the calling thread looks at.
Shelf& shelf(unsigned i) {
  static std::atomic<unsigned> threads{0};
  thread_local unsigned own = 0;
  if (!own) own = threads.fetch_add(1, std::memory_order_relaxed) % kShelves + 1;
  return shelves[(own - 1 + i) % kShelves];
}

class Hold {
 public:
  explicit Hold(Shelf& shelf)
      : shelf_(shelf), held_(!shelf.busy.exchange(true, std::memory_order_acquire)) {}
  ~Hold() {
    if (held_) shelf_.busy.store(false, std::memory_order_release);
  }
  Hold(const Hold&) = delete;
  Hold& operator=(const Hold&) = delete;
  explicit operator bool() const { return held_; }

 private:
  Shelf& shelf_;
  const bool held_;
};

// The smallest block of the shelf that fits, unless most of it would be left over.
void* find(Shelf& shelf, int64_t bytes) {
  const Hold hold(shelf);
  if (!hold) return nullptr;
  int best = -1;
  for (int i = 0; i < shelf.count; ++i) {
    const int64_t size = size_of(shelf.kept[i].memory);
    if (size < bytes || size / 2 > bytes) continue;
    if (best < 0 || size < size_of(shelf.kept[best].memory)) best = i;
  }
  if (best < 0) return nullptr;
  void* const memory = shelf.remove(best);
  shelf.settle(kSlack);
  return memory;
}

// The block that has to go instead, or null.
void* keep(Shelf& shelf, void* memory) {
  void* const last = shelf.count == Shelf::kPlaces ? shelf.remove(shelf.oldest()) : nullptr;
  shelf.bytes += size_of(memory);
  shelf.kept[shelf.count++] = {memory, age.load(std::memory_order_relaxed)};
  shelf.settle(kSlack);
  return last;
}

// Whether there was something to return. Shares become no larger than what is kept.
bool return_oldest() {
  Shelf* oldest = nullptr;
  int64_t since = INT64_MAX;
  for (Shelf& shelf : shelves) {
    const Hold hold(shelf);
    if (!hold) continue;
    shelf.settle(0);
    const int i = shelf.oldest();
    if (i >= 0 && shelf.kept[i].age < since) oldest = &shelf, since = shelf.kept[i].age;
  }
  if (!oldest) return false;
  void* memory = nullptr;
  {
    const Hold hold(*oldest);
    const int i = hold ? oldest->oldest() : -1;
    if (i >= 0) memory = oldest->remove(i), oldest->settle(0);
  }
  to_system(memory);
  return true;
}

}  // namespace

OutOfMemory::OutOfMemory(int64_t bytes) noexcept {
  std::snprintf(what_, sizeof(what_), "fastmlip: out of memory, asked for %lld bytes",
                static_cast<long long>(bytes));
}

void ask_for_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) noexcept {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t page = uintptr_t(1) << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / page * page;
  const int before = errno;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  errno = before;
#endif
}

void* take(int64_t bytes) {
  if (budget.load(std::memory_order_relaxed) == kUnread) budget = read_budget();
  if (bytes < 0 || bytes > INT64_MAX / 2) throw OutOfMemory(bytes);
  bytes = std::max<int64_t>(1, (bytes + kLine - 1) / kLine) * kLine;
  for (unsigned i = 0; i < (bytes < kLarge ? 1 : kShelves); ++i)
    if (void* const memory = find(shelf(i), bytes)) return memory;
  return from_system(bytes);
}

void give(void* memory) noexcept {
  if (!memory) return;
  const int64_t most = budget.load(std::memory_order_relaxed);
  for (unsigned i = 0; memory && size_of(memory) <= most && i < kShelves; ++i) {
    Shelf& to = shelf(i);
    const Hold hold(to);
    if (!hold) continue;
    memory = keep(to, memory);
    break;
  }
  to_system(memory);
  while (shares.load(std::memory_order_relaxed) > most && return_oldest()) {
  }
}

int64_t release_memory() {
  constexpr int kTries = 1000;  // another thread has it for less than a microsecond
  int64_t released = 0;
  for (Shelf& shelf : shelves) {
    for (int tries = 0; tries < kTries; ++tries) {
      void* all[Shelf::kPlaces];
      int count = 0;
      {
        const Hold hold(shelf);
        if (!hold) {
          std::this_thread::yield();
          continue;
        }
        released += shelf.bytes;
        while (shelf.count) all[count++] = shelf.remove(0);
        shelf.settle(0);
      }
      while (count) to_system(all[--count]);
      break;
    }
  }
#ifdef __GLIBC__
  malloc_trim(0);  // free memory of small blocks stays with the C library otherwise
#endif
  return released;
}

}  // namespace fastmlip
