// One SIMD vector of T, sized for the instruction set this file is compiled for, on top of the
// compiler's vector extension (so AVX-512, AVX2, SSE2 and NEON share one source).
#pragma once

#include <cstdint>
#include <cstring>

#ifndef FASTMLIP_VECTOR_BYTES
#error "FASTMLIP_VECTOR_BYTES (64, 32 or 16) and FASTMLIP_ISA are set by the build"
#endif

namespace fastmlip::FASTMLIP_ISA {

template <class T>
struct Simd {
  typedef T Vec __attribute__((vector_size(FASTMLIP_VECTOR_BYTES)));
  static constexpr int lanes = FASTMLIP_VECTOR_BYTES / sizeof(T);
};

template <class T>
using Vec = typename Simd<T>::Vec;
template <class T>
inline constexpr int kLanes = Simd<T>::lanes;

template <class T>
inline Vec<T> load(const T* from) {
  Vec<T> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <class T>
inline void store(T* to, Vec<T> v) {
  std::memcpy(to, &v, sizeof(v));
}

// The first `count` lanes; the rest is zero, and memory behind them is not touched.
template <class T>
inline Vec<T> load_some(const T* from, int count) {
  if (count >= kLanes<T>) return load(from);
  alignas(64) T lanes[kLanes<T>] = {};
  std::memcpy(lanes, from, count * sizeof(T));
  return load(lanes);
}

template <class T>
inline void store_some(T* to, Vec<T> v, int count) {
  if (count >= kLanes<T>) return store(to, v);
  std::memcpy(to, &v, count * sizeof(T));
}

template <class T>
inline T sum(Vec<T> v) {
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int half = kLanes<T> / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

inline int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace fastmlip::FASTMLIP_ISA
