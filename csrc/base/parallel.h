// Threads for kernels, which do not know torch.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <vector>

namespace fastmlip {

// Runs f(part, context) for part = 0 .. parts - 1, on any number of threads. f does not throw.
using ParallelFor = void (*)(int64_t parts, void (*f)(int64_t, void*), void* context);

// Runs part(0) .. part(parts - 1) through the caller's threads. The first exception of a part is
// thrown on the calling thread, once all have ended.
template <class F>
void run(ParallelFor parallel_for, int64_t parts, const F& part) {
  if (parts == 1) return part(0);
  struct Context {
    const F& part;
    std::atomic<bool> failed{false};
    std::exception_ptr error;
  } context{part};
  parallel_for(
      parts,
      [](int64_t i, void* pointer) noexcept {
        auto& context = *static_cast<Context*>(pointer);
        try {
          context.part(i);
        } catch (...) {
          if (!context.failed.exchange(true)) context.error = std::current_exception();
        }
      },
      &context);
  if (context.error) std::rethrow_exception(context.error);
}

// thing.fill(part, parts) of several things, those that are not ready(), in one run: every run
// waits for its last thread.
template <class... Things>
void fill(ParallelFor parallel_for, int64_t parts, Things&... things) {
  if ((things.ready() && ...)) return;
  run(parallel_for, parts, [&](int64_t part) { (things.fill(part, parts), ...); });
}

// Tasks 0 .. count - 1, dealt out to the parts of a run. Each part begins with a share of its own,
// of tasks that follow one another: where tasks are nodes in their order, a thread comes back,
// operator after operator, to those that its cache holds. A part whose share is done helps the
// others, so a thread that wakes late or is slow holds nobody up.
class Shares {
 public:
  Shares(int64_t count, int64_t parts) : count_(count), next_(parts) {
    for (int64_t i = 0; i < parts; ++i) next_[i].task = begin(i);
  }

  // A task that nobody has taken; -1 where all are.
  int64_t take(int64_t part) {
    for (int64_t i = 0; i < int64_t(next_.size()); ++i) {
      const int64_t share = (part + i) % int64_t(next_.size());
      const int64_t task = next_[share].task.fetch_add(1, std::memory_order_relaxed);
      if (task < begin(share + 1)) return task;
    }
    return -1;
  }

 private:
  struct alignas(64) Next {
    std::atomic<int64_t> task;
  };

  int64_t begin(int64_t share) const { return count_ * share / int64_t(next_.size()); }

  const int64_t count_;
  std::vector<Next> next_;
};

}  // namespace fastmlip
