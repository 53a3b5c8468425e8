// One SIMD vector of T, sized for the instruction set this file is compiled for, on top of the
// compiler's vector extension (so AVX-512, AVX2, SSE2 and NEON share one source).
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#ifndef FASTMLIP_VECTOR_BYTES
#error "FASTMLIP_VECTOR_BYTES (64, 32 or 16) and FASTMLIP_ISA are set by the build"
#endif

#if defined(__AVX512F__)
#include <immintrin.h>
#define FASTMLIP_STREAM _mm512_stream_ps
#define FASTMLIP_STREAM_AS float
#define FASTMLIP_STREAM_VECTOR __m512
#elif defined(__AVX2__)
#include <immintrin.h>
#define FASTMLIP_STREAM _mm256_stream_ps
#define FASTMLIP_STREAM_AS float
#define FASTMLIP_STREAM_VECTOR __m256
#endif

#define FASTMLIP_INLINE __attribute__((always_inline))

namespace fastmlip::FASTMLIP_ISA {

template <class T, int Bytes = FASTMLIP_VECTOR_BYTES>
struct Simd {
  typedef T Vec __attribute__((vector_size(Bytes)));
  static constexpr int lanes = Bytes / sizeof(T);
};

template <class T>
using Vec = typename Simd<T>::Vec;
template <class T>
inline constexpr int kLanes = Simd<T>::lanes;

// What is left of a vector whose lanes will be added up: half of 64 bytes, which AMD's Zen 4 works
// on, and stores, in two steps.
inline constexpr int kShortBytes = FASTMLIP_VECTOR_BYTES == 64 ? 32 : FASTMLIP_VECTOR_BYTES;
template <class T>
using Short = typename Simd<T, kShortBytes>::Vec;
template <class T>
inline constexpr int kShortLanes = Simd<T, kShortBytes>::lanes;

template <class T>
inline Short<T> shorten(Vec<T> v) {
  Short<T> low, high;
  std::memcpy(&low, &v, sizeof(low));
  if (sizeof(low) == sizeof(v)) return low;
#if defined(__AVX512F__)
  high = (Short<T>)_mm512_maskz_extractf64x4_pd(0xff, (__m512d)v, 1);
#else
  std::memcpy(&high, reinterpret_cast<char*>(&v + 1) - sizeof(high), sizeof(high));
#endif
  return low + high;
}

template <class T>
inline Vec<T> load(const T* from) {
  Vec<T> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

// A loaded vector that stays in a register: without this the compiler repeats the load at every
// use as a memory operand, and loads, not arithmetic, become the bottleneck.
#if defined(__AVX512F__)
#define FASTMLIP_VECTOR_REGISTER "+v"
#elif defined(__x86_64__)
#define FASTMLIP_VECTOR_REGISTER "+x"
#elif defined(__aarch64__)
#define FASTMLIP_VECTOR_REGISTER "+w"
#else
#define FASTMLIP_VECTOR_REGISTER "+m"
#endif
template <class V>
inline V pin(V v) {
  asm("" : FASTMLIP_VECTOR_REGISTER(v));
  return v;
}

// A number in every lane, in a register for several uses. (Adding zero to it would cost an
// addition, for it turns -0 into 0; subtracting zero changes nothing and is left out.)
template <class T>
inline Vec<T> broadcast(T number) {
  return pin(number - Vec<T>{});
}

// Each of N numbers in every lane of a vector of its own, by shuffles of a few loads: where many
// vectors are loaded for every number, loads are what is short.
template <class T, int Lane, int... I>
inline Vec<T> splat_lane(Vec<T> v, std::integer_sequence<int, I...>) {
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef Index Mask __attribute__((vector_size(FASTMLIP_VECTOR_BYTES)));
  constexpr Mask mask = {(I * 0 + Lane)...};
  return __builtin_shuffle(v, mask);
}
template <class T, int... N>
inline void splat_each(const T* from, Vec<T>* to, std::integer_sequence<int, N...>) {
  constexpr int L = kLanes<T>;
  ((to[N] = splat_lane<T, N % L>(load(from + N / L * L), std::make_integer_sequence<int, L>{})),
   ...);
}
template <class T, int N>
inline void splat(const T* from, Vec<T>* to) {
  splat_each(from, to, std::make_integer_sequence<int, N>{});
}

template <class T>
inline void store(T* to, Vec<T> v) {
  std::memcpy(to, &v, sizeof(v));
}

// Into the second cache, and into the first. Not left to the compiler to inline: in large functions
// it does not, finds that a call has no effect, and drops it.
template <class T>
FASTMLIP_INLINE inline void prefetch(const T* from) {
  __builtin_prefetch(from, 0, 2);
}

template <class T>
FASTMLIP_INLINE inline void prefetch_soon(const T* from) {
  __builtin_prefetch(from, 0, 3);
}

// The first `count` lanes; the rest is zero, and memory behind them is not touched.
template <class T>
inline Vec<T> load_some(const T* from, int count) {
  if (__builtin_expect(count >= kLanes<T>, 1)) return load(from);
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>)
    return (Vec<T>)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), from);
  else
    return (Vec<T>)_mm512_maskz_loadu_pd(__mmask8((1u << count) - 1), from);
#endif
  alignas(64) T lanes[kLanes<T>] = {};
  std::memcpy(lanes, from, count * sizeof(T));
  return load(lanes);
}

template <class T>
inline void store_some(T* to, Vec<T> v, int count) {
  if (__builtin_expect(count >= kLanes<T>, 1)) return store(to, v);
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>)
    return _mm512_mask_storeu_ps(to, __mmask16((1u << count) - 1), (__m512)v);
  else
    return _mm512_mask_storeu_pd(to, __mmask8((1u << count) - 1), (__m512d)v);
#endif
  std::memcpy(to, &v, count * sizeof(T));
}

// store_some, with `stream` past the caches, for rows that are written once and read much later: a
// plain store would first fetch the line. Only in rows that can_stream.
template <class T>
inline void write_some(T* to, Vec<T> v, int count, bool stream) {
#ifdef FASTMLIP_STREAM
  if (stream && count >= kLanes<T>) {
    FASTMLIP_STREAM(reinterpret_cast<FASTMLIP_STREAM_AS*>(to), (FASTMLIP_STREAM_VECTOR)v);
    return;
  }
#endif
  store_some(to, v, count);
}

template <class T>
inline bool can_stream(const T* row) {
  return reinterpret_cast<uintptr_t>(row) % sizeof(Vec<T>) == 0;
}

// Makes streamed rows visible to other threads.
inline void finish_streams() {
#ifdef FASTMLIP_STREAM
  _mm_sfence();
#endif
}

// One halving step of sum_each: where segments of `Segment` lanes of a and of b each stand for one
// sum, the result holds both, a segment of a and a segment of b in turn, folded to half the length.
template <class T, int Segment, int... I, class V>
inline V fold(V a, V b, std::integer_sequence<int, I...>) {
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef Index Mask __attribute__((vector_size(sizeof(V))));
  constexpr int half = Segment / 2, lanes = sizeof...(I);
  constexpr Mask low = {(I / half % 2 * lanes + I / Segment * Segment + I % half)...};
  return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, low + half);
}

template <class T, int Segment, class V>
inline void fold_all(V* v) {
  if constexpr (Segment > 1) {
    constexpr int half = Segment / 2, lanes = sizeof(V) / sizeof(T);
    for (int i = 0; i < half; ++i)
      v[i] = fold<T, Segment>(v[i], v[i + half], std::make_integer_sequence<int, lanes>{});
    fold_all<T, half>(v);
  }
}

// Lane i of the result is the sum over the lanes of from[i * stride], one i for each lane.
template <class T, class V>
inline V sum_each(const V* from, int64_t stride) {
  constexpr int lanes = sizeof(V) / sizeof(T);
  V v[lanes];
  for (int i = 0; i < lanes; ++i) v[i] = from[i * stride];
  fold_all<T, lanes>(v);
  return v[0];
}

// f(0) .. f(n - 1), written out for n = D where D is known at compile time (D > 0), so that small
// arrays indexed in f become registers.
template <class F, int... I>
FASTMLIP_INLINE inline void unroll_sequence(const F& f, std::integer_sequence<int, I...>) {
  (f(I), ...);
}
#ifdef FASTMLIP_NO_UNROLL  // for sanitizers, which put checks around every access written out
inline constexpr bool kUnroll = false;
#else
inline constexpr bool kUnroll = true;
#endif
template <int D, class F>
FASTMLIP_INLINE inline void unroll(int n, const F& f) {
  if constexpr (D > 0 && kUnroll) {
    unroll_sequence(f, std::make_integer_sequence<int, D>{});
  } else {
    for (int i = 0; i < n; ++i) f(i);
  }
}

// f(integral_constant<int, d>), with 0 for a dimension that has no kernel of its own.
template <class F>
void with_dim(int d, const F& f) {
  switch (d) {
    case 1:
      return f(std::integral_constant<int, 1>{});
    case 3:
      return f(std::integral_constant<int, 3>{});
    case 5:
      return f(std::integral_constant<int, 5>{});
    case 7:
      return f(std::integral_constant<int, 7>{});
    case 9:
      return f(std::integral_constant<int, 9>{});
    default:
      return f(std::integral_constant<int, 0>{});
  }
}

// One step of transpose_square: in squares of 2 Half lanes, what is above the diagonal changes
// places with what is below it; a is of an upper row, b of the lower one.
template <class T, int Half, int... I>
inline void swap_corners(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, I...>) {
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef Index Mask __attribute__((vector_size(FASTMLIP_VECTOR_BYTES)));
  constexpr Mask upper = {(I & Half ? kLanes<T> + I - Half : I)...};
  constexpr Mask lower = {(I & Half ? kLanes<T> + I : I + Half)...};
  const Vec<T> first = __builtin_shuffle(a, b, upper);
  b = __builtin_shuffle(a, b, lower);
  a = first;
}

// The square of kLanes rows v, transposed.
template <class T, int Half = kLanes<T> / 2>
FASTMLIP_INLINE inline void transpose_square(Vec<T>* v) {
  unroll<kLanes<T>>(kLanes<T>, [&](int i) FASTMLIP_INLINE {
    if (!(i & Half))
      swap_corners<T, Half>(v[i], v[i + Half], std::make_integer_sequence<int, kLanes<T>>{});
  });
  if constexpr (Half > 1) transpose_square<T, Half / 2>(v);
}

// split: from kLanes D-tuples, one behind the other in D vectors, a vector of each component; join:
// back. Lane l of vector v is of component (v kLanes + l) mod D. D is odd, so a component has every
// lane once: what is put together lane by lane from all vectors only needs another order.
template <class T, int D>
struct Tuples {
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef Index Mask __attribute__((vector_size(FASTMLIP_VECTOR_BYTES)));
  static constexpr int L = kLanes<T>;
  using Lanes = std::make_integer_sequence<int, L>;
  using Each = std::make_integer_sequence<int, D>;

  static void split(const Vec<T>* tuples, Vec<T>* components) {
    split_each(tuples, components, Each{});
  }
  static void join(const Vec<T>* components, Vec<T>* tuples) {
    join_each(components, tuples, Each{});
  }
  // A number for each tuple, in the places of all its components.
  static void spread(Vec<T> numbers, Vec<T>* tuples) { spread_each(numbers, tuples, Each{}); }

 private:
  // the lanes of b that are of component M in vector V, the others of a
  template <int M, int V, int... I>
  static Vec<T> take(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
    constexpr Mask mask = {((V * L + I) % D == M ? L + I : I)...};
    return __builtin_shuffle(a, b, mask);
  }
  template <int M, int... I>
  static Vec<T> to_order(Vec<T> v, std::integer_sequence<int, I...>) {
    constexpr Mask mask = {((I * D + M) % L)...};
    return __builtin_shuffle(v, mask);
  }
  template <int M, int... I>
  static Vec<T> from_order(Vec<T> v, std::integer_sequence<int, I...>) {
    constexpr Mask mask = {(place(M, I))...};
    return __builtin_shuffle(v, mask);
  }
  static constexpr int place(int m, int lane) {
    int tuple = 0;
    while ((tuple * D + m) % L != lane) ++tuple;
    return tuple;
  }

  template <int M, int... V>
  static Vec<T> component(const Vec<T>* tuples, std::integer_sequence<int, V...>) {
    Vec<T> result = tuples[0];
    ((result = take<M, V>(result, tuples[V], Lanes{})), ...);
    return to_order<M>(result, Lanes{});
  }
  template <int... M>
  static void split_each(const Vec<T>* tuples, Vec<T>* components,
                         std::integer_sequence<int, M...>) {
    ((components[M] = component<M>(tuples, Each{})), ...);
  }
  template <int V, int... I>
  static Vec<T> spread_one(Vec<T> numbers, std::integer_sequence<int, I...>) {
    constexpr Mask mask = {((V * L + I) / D)...};
    return __builtin_shuffle(numbers, mask);
  }
  template <int... V>
  static void spread_each(Vec<T> numbers, Vec<T>* tuples, std::integer_sequence<int, V...>) {
    ((tuples[V] = spread_one<V>(numbers, Lanes{})), ...);
  }
  template <int V, int... M>
  static Vec<T> vector(const Vec<T>* ordered, std::integer_sequence<int, M...>) {
    Vec<T> result = ordered[0];
    ((result = take<M, V>(result, ordered[M], Lanes{})), ...);
    return result;
  }
  template <int... M>
  static void join_each(const Vec<T>* components, Vec<T>* tuples,
                        std::integer_sequence<int, M...>) {
    const Vec<T> ordered[D] = {from_order<M>(components[M], Lanes{})...};
    ((tuples[M] = vector<M>(ordered, Each{})), ...);
  }
};

// f(W, u, left) for the channels u of mul, W vectors at a time while there are that many and then
// one (W is a constant), `left` channels of the last vector to go; where a whole vector is left,
// `left` is a constant, so that load_some and store_some are plain loads and stores.
template <class T, int W = 1, class F>
FASTMLIP_INLINE inline void for_channels(int mul, const F& f) {
  constexpr int L = kLanes<T>;
  int u = 0;
  for (; u + W * L <= mul; u += W * L) f(std::integral_constant<int, W>{}, u, L);
  if constexpr (W > 1)
    for (; u + L <= mul; u += L) f(std::integral_constant<int, 1>{}, u, L);
  if (u < mul) f(std::integral_constant<int, 1>{}, u, mul - u);
}

inline int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace fastmlip::FASTMLIP_ISA
