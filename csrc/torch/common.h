// What the operators' torch files share. Files in this folder alone know torch; they use the
// LibTorch stable ABI, so one binary serves every torch from 2.11 on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "base/in_range.h"
#include "base/isa.h"
#include "base/memory.h"
#include "base/parallel.h"
#include "graph/edge_order.h"

namespace fastmlip {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void parallel_for(int64_t parts, void (*f)(int64_t, void*), void* context) {
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) f(part, context);
  });
}

// As many parts as torch has threads, at most `limit`, and none with less than about 10 us of work:
// `work` counts how many times that is there.
inline int64_t parts(int64_t work, int64_t limit = INT64_MAX) {
  return std::max<int64_t>(
      1, std::min<int64_t>({int64_t(torch::stable::get_num_threads()), work, limit}));
}

// The operators' Python pages check what users pass. Compiled models call the C++ operators
// without them, so these check again what could read or write out of bounds.
template <class... Text>
[[noreturn, gnu::cold, gnu::noinline]] void fail(const Text&... text) {
  std::ostringstream what;
  ((what << "fastmlip: ") << ... << text);
  throw std::runtime_error(what.str());
}

// Puts its text together only where a check fails: they run on every call, some for every edge.
template <class... Text>
inline void expect(bool ok, const Text&... text) {
  if (__builtin_expect(!ok, 0)) fail(text...);
}

inline void expect_shape(const char* name, const Tensor& t, int64_t rows, int64_t columns) {
  expect(t.dim() == 2 && t.size(0) == rows && t.size(1) == columns, name, ": expected shape [",
         rows, ", ", columns, "]");
}

template <class... Text>
[[noreturn, gnu::cold]] void fail_range(const char* name, int64_t i, int64_t value, int64_t end,
                                        const Text&... what_end_is) {
  fail(name, "[", i, "] = ", value, " is out of range: expected 0 <= value < ", end,
       what_end_is...);
}

template <class... Text>
inline void expect_range(const char* name, const int64_t* index, int64_t count, int64_t end,
                         const Text&... what_end_is) {
  if (const int64_t i = first_bad(index, 0, count, end); i >= 0)
    fail_range(name, i, index[i], end, what_end_is...);
}

// An edge of each pair stands for both, and for itself.
inline void expect_pairs(const Tensor& edge_pair, int64_t edges) {
  expect(edge_pair.dim() == 1 && edge_pair.size(0) == edges &&
             edge_pair.scalar_type() == ScalarType::Long && edge_pair.is_contiguous(),
         "edge_pair: expected int64 of shape [E], one behind the other");
  const int64_t* pair = edge_pair.const_data_ptr<int64_t>();
  const int64_t count = parts(edges >> 14);
  run(parallel_for, count, [&](int64_t part) {
    const int64_t begin = edges * part / count, end = edges * (part + 1) / count;
    if (const int64_t e = first_bad(pair, begin, end, edges); e >= 0)
      fail_range("edge_pair", e, pair[e], edges, ", the number of edges");
    for (int64_t e = begin; e < end; ++e)
      expect(pair[pair[e]] == pair[e], "edge_pair[", e, "] = ", pair[e],
             ", which stands for others: expected it to stand for itself, got edge_pair[", pair[e],
             "] = ", pair[pair[e]]);
  });
}

// Straight through the C interface: a third of the time of a call to aten::new_empty.
inline Tensor empty(torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType dtype) {
  constexpr size_t kMostDims = 8;
  int64_t strides[kMostDims], stride = 1, numel = 1;
  bool too_many = false;
  expect(sizes.size() <= kMostDims, "expected at most 8 dimensions, got ", sizes.size());
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;  // as torch has them where there is nothing
    too_many |= sizes[i] < 0 || __builtin_mul_overflow(numel, sizes[i], &numel) ||
                __builtin_mul_overflow(stride, std::max<int64_t>(1, sizes[i]), &stride);
  }
  expect(!too_many && stride <= INT64_MAX / 8, "a result of so many numbers fits into no memory");
  const auto [code, bytes] = [&] {
    switch (dtype) {
      case ScalarType::Float:
        return std::pair(aoti_torch_dtype_float32(), 4);
      case ScalarType::Double:
        return std::pair(aoti_torch_dtype_float64(), 8);
      case ScalarType::Int:
        return std::pair(aoti_torch_dtype_int32(), 4);
      case ScalarType::Long:
        return std::pair(aoti_torch_dtype_int64(), 8);
      default:
        fail("expected float32, float64, int32 or int64");
    }
  }();
  // The C interface says that it failed, not why; with such arguments it fails for want of memory.
  AtenTensorHandle handle;
  if (aoti_torch_empty_strided(sizes.size(), sizes.data(), strides, code,
                               aoti_torch_device_type_cpu(), 0, &handle) != TORCH_SUCCESS)
    throw OutOfMemory(numel * bytes);
  Tensor result(handle);
  ask_for_huge_pages(result.data_ptr(), numel * bytes);
  return result;
}

inline Tensor empty_as(const Tensor& t) { return empty(t.sizes(), t.scalar_type()); }

inline Tensor packed(const Tensor& t) {
  if (t.is_contiguous()) return t;
  Tensor result = empty_as(t);
  torch::stable::copy_(result, t);
  return result;
}

inline std::optional<Tensor> packed(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(packed(*t)) : std::nullopt;
}

}  // namespace fastmlip
