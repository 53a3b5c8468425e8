// Activations of vectors with their first and second derivatives, to the last bits of T.
#pragma once

#include "simd/simd.h"

namespace fastmlip::FASTMLIP_ISA {

// exp(x), infinity where it is too large for T, zero about where it would be below the smallest
// normal number; NaN stays NaN. Cody and Waite: x is n ln 2 + r, and 2 exp(r) its Taylor series,
// |r| < 0.35; n - 1, unlike n, is the exponent of a normal number up to the largest x.
template <class T>
FASTMLIP_INLINE inline Vec<T> exponential(Vec<T> x) {
  constexpr bool single = sizeof(T) == 4;
  using Int = std::conditional_t<single, int32_t, int64_t>;
  typedef Int Ints __attribute__((vector_size(FASTMLIP_VECTOR_BYTES)));
  constexpr T low = single ? T(-87.) : T(-708.4), high = single ? T(89.) : T(710.);
  constexpr T round = single ? T(12582912.) : T(6755399441055744.);  // 1.5 * 2^mantissa
  constexpr T ln2_high = single ? T(0.693359375) : T(0.693147180369123816490);
  constexpr T ln2_low = single ? T(-2.12194440054690583e-4) : T(1.90821492927058770002e-10);
  constexpr T series[] = {2.,
                          2.,
                          2. / 2,
                          2. / 6,
                          2. / 24,
                          2. / 120,
                          2. / 720,
                          2. / 5040,
                          2. / 40320,
                          2. / 362880,
                          2. / 3628800,
                          2. / 39916800,
                          2. / 479001600,
                          2. / 6227020800.};
  constexpr int terms = single ? 7 : 13, mantissa = single ? 23 : 52;
  constexpr Int bias = single ? 127 : 1023;
  x = x < low ? low + Vec<T>{} : x;
  x = x > high ? high + Vec<T>{} : x;
  const Vec<T> shifted = pin(x * T(1.44269504088896340736) + round);
  const Vec<T> n = shifted - round;
  const Vec<T> r = x - n * ln2_high - n * ln2_low;
  Vec<T> sum = series[terms] + Vec<T>{};
  for (int i = terms - 1; i >= 0; --i) sum = sum * r + series[i];
  const Ints power = ((Ints)shifted - (Ints)(round + Vec<T>{}) + (bias - 1)) << mantissa;
  return sum * (Vec<T>)power;
}

template <class T>
struct Activated {
  Vec<T> value, first, second;  // f(x), f'(x), f''(x)
};

// x / (1 + exp(-x))
template <class T>
FASTMLIP_INLINE inline Activated<T> silu(Vec<T> x) {
  const Vec<T> s = T(1) / (T(1) + exponential<T>(-x)), rest = T(1) - s;
  return {x * s, s * (T(1) + x * rest), s * rest * (T(2) + x * (rest - s))};
}

// Near zero the series, because 1 - 2 / (1 + exp(2 x)) has lost the last bits there.
template <class T>
FASTMLIP_INLINE inline Activated<T> hyperbolic_tangent(Vec<T> x) {
  const Vec<T> x2 = x * x, far = T(1) - T(2) / (T(1) + exponential<T>(x + x));
  const Vec<T> near =
      x * (T(1) + x2 * (T(-1. / 3) +
                        x2 * (T(2. / 15) +
                              x2 * (T(-17. / 315) +
                                    x2 * (T(62. / 2835) +
                                          x2 * (T(-1382. / 155925) + x2 * T(21844. / 6081075)))))));
  const Vec<T> value = x2 < T(sizeof(T) == 4 ? 0.2 : 0.01) ? near : far,
               first = T(1) - value * value;
  return {value, first, T(-2) * value * first};
}

}  // namespace fastmlip::FASTMLIP_ISA
