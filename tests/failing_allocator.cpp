// Preloaded by tests/test_memory.py: lets one allocation of a shared library fail, whatever the
// library asks for it: the C library, operator new, or torch for a tensor.
#include <dlfcn.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace {

using EmptyStrided = int32_t (*)(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t,
                                 void**);

uintptr_t library_begin, library_end;
std::atomic<int64_t> until_failure{0};  // calls; 0 or less: none fails
EmptyStrided empty_strided;

bool fails(void* caller) {
  const auto address = reinterpret_cast<uintptr_t>(caller);
  if (address < library_begin || address >= library_end) return false;
  return until_failure.load() > 0 && until_failure.fetch_sub(1) == 1;
}

void* checked(void* memory) {
  if (!memory) throw std::bad_alloc();
  return memory;
}

}  // namespace

extern "C" {

void watch(uintptr_t begin, uintptr_t end, void* torch_empty_strided) {
  library_begin = begin, library_end = end;
  empty_strided = reinterpret_cast<EmptyStrided>(torch_empty_strided);
}

void fail_at(int64_t call) { until_failure = call; }

int64_t failed() { return until_failure <= 0; }

void* aligned_alloc(size_t alignment, size_t size) {
  if (fails(__builtin_return_address(0))) return nullptr;
  void* memory = nullptr;
  return posix_memalign(&memory, alignment, size) ? nullptr : memory;
}

int32_t aoti_torch_empty_strided(int64_t dims, const int64_t* sizes, const int64_t* strides,
                                 int32_t dtype, int32_t device, int32_t index, void** result) {
  if (fails(__builtin_return_address(0))) return 1;
  return empty_strided(dims, sizes, strides, dtype, device, index, result);
}
}

void* operator new(size_t size) {
  if (fails(__builtin_return_address(0))) throw std::bad_alloc();
  return checked(std::malloc(size ? size : 1));
}

void* operator new[](size_t size) {
  if (fails(__builtin_return_address(0))) throw std::bad_alloc();
  return checked(std::malloc(size ? size : 1));
}

void* operator new(size_t size, std::align_val_t alignment) {
  if (fails(__builtin_return_address(0))) throw std::bad_alloc();
  void* memory = nullptr;
  return checked(posix_memalign(&memory, size_t(alignment), size) ? nullptr : memory);
}

// nothing that these allocate needs more than free()
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
