// Numbers a kernel computes with: a vector of doubles, or a dual number of two, which carries the
// derivative along one direction. What is written once for both is its own next derivative.
#pragma once

#include <cmath>

#include "simd/simd.h"

namespace fastmlip::FASTMLIP_ISA {

using Real = Vec<double>;
typedef int64_t Mask __attribute__((vector_size(FASTMLIP_VECTOR_BYTES)));

struct Dual {
  Real a, b;  // value, derivative
};

inline Real splat(double value) { return Real{} + value; }

inline Dual operator+(Dual x, Dual y) { return {x.a + y.a, x.b + y.b}; }
inline Dual operator-(Dual x, Dual y) { return {x.a - y.a, x.b - y.b}; }
inline Dual operator*(Dual x, Dual y) { return {x.a * y.a, x.a * y.b + x.b * y.a}; }
inline Dual operator+(Dual x, Real y) { return {x.a + y, x.b}; }
inline Dual operator*(Dual x, Real y) { return {x.a * y, x.b * y}; }
inline Dual operator*(Real x, Dual y) { return y * x; }
inline Dual operator+(Dual x, double y) { return {x.a + y, x.b}; }
inline Dual operator-(Dual x, double y) { return {x.a - y, x.b}; }
inline Dual operator-(double x, Dual y) { return {x - y.a, -y.b}; }
inline Dual operator*(Dual x, double y) { return {x.a * y, x.b * y}; }
inline Dual operator*(double x, Dual y) { return y * x; }

inline Real value_of(Real x) { return x; }
inline Real value_of(Dual x) { return x.a; }
inline Real highest_of(Real x) { return x; }  // what a rung of the ladder returns
inline Real highest_of(Dual x) { return x.b; }

inline Real select(Mask mask, Real x, Real y) { return mask ? x : y; }
inline Dual select(Mask mask, Dual x, Dual y) { return {mask ? x.a : y.a, mask ? x.b : y.b}; }

inline bool any(Mask mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi64_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  int64_t result = 0;
  for (int i = 0; i < kLanes<double>; ++i) result |= mask[i];
  return result != 0;
#endif
}

inline Real square_root(Real x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::sqrt(x[i]);
  return x;
}

// 1 / x, and 0 with derivative 0 where x is 0.
inline Real reciprocal(Real x) { return x == 0 ? Real{} : 1.0 / (x == 0 ? splat(1.0) : x); }
inline Dual reciprocal(Dual x) {
  const Real inverse = reciprocal(x.a);
  return {inverse, -inverse * inverse * x.b};
}

// sin and cos of pi x: x minus the nearest integer is exact, and a polynomial does the rest.
inline void sincospi(Real x, Real& sine, Real& cosine) {
  constexpr double shift = 6755399441055744.0;  // 1.5 * 2^52: what is added to it gets rounded
  // (-1)^k / (2k + 1)! and (-1)^k / (2k)!, highest first
  constexpr double s[] = {1. / 51090942171709440000.,
                          -1. / 121645100408832000.,
                          1. / 355687428096000.,
                          -1. / 1307674368000.,
                          1. / 6227020800.,
                          -1. / 39916800.,
                          1. / 362880.,
                          -1. / 5040.,
                          1. / 120.,
                          -1. / 6.,
                          1.};
  constexpr double c[] = {-1. / 1124000727777607680000.,
                          1. / 2432902008176640000.,
                          -1. / 6402373705728000.,
                          1. / 20922789888000.,
                          -1. / 87178291200.,
                          1. / 479001600.,
                          -1. / 3628800.,
                          1. / 40320.,
                          -1. / 720.,
                          1. / 24.,
                          -1. / 2.,
                          1.};
  const Real moved = x + shift;
  const Real z = (x - (moved - shift)) * M_PI, q = z * z;
  Real sum_s = splat(s[0]), sum_c = splat(c[0]);
  for (int k = 1; k < 11; ++k) sum_s = sum_s * q + s[k];
  for (int k = 1; k < 12; ++k) sum_c = sum_c * q + c[k];
  const Mask odd = (Mask)moved << 63;  // sign bit where the nearest integer is odd
  sine = (Real)((Mask)(sum_s * z) ^ odd);
  cosine = (Real)((Mask)sum_c ^ odd);
}
inline void sincospi(Dual x, Dual& sine, Dual& cosine) {
  Real s, c;
  sincospi(x.a, s, c);
  const Real slope = M_PI * x.b;
  sine = {s, c * slope};
  cosine = {c, -s * slope};
}

inline Dual square_root(Dual x) {
  const Real root = square_root(x.a);
  return {root, 0.5 * reciprocal(root) * x.b};
}

// x to a power of at least 0.
template <class T>
inline T power(T x, int64_t exponent, T one) {
  T result = one;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) result = result * x;
    x = x * x;
  }
  return result;
}

}  // namespace fastmlip::FASTMLIP_ISA
