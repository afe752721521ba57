#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "executor/kernels/bf16.h"

// Building blocks of the kernels' inner loops. Internal to executor/kernels: not for headers that other code
// includes, because only the kernels are compiled for the vector units of this machine.
namespace meshwright::kernels {

// e^x. For float within 2 units in the last place on [-87, 88]; 0 below, e^88 above; NaN stays NaN.
// Branch-free, so that loops over it vectorise (std::exp would not, without -ffast-math). Range reduction to
// |r| <= ln2 / 2, then the polynomial of Cephes expf (Moshier).
inline float fast_exp(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  float clamped = x < -87.0f ? -87.0f : x;
  clamped = clamped > 88.0f ? 88.0f : clamped;
  const float shifted = clamped * 1.44269504088896341f + kMagic;
  const float n = shifted - kMagic;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float mantissa = p * r * r + r + 1.0f;
  const auto exponent = std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(kMagic);
  const float result = mantissa * std::bit_cast<float>((exponent + 127u) << 23);
  return x < -87.0f ? 0.0f : result;
}
inline double fast_exp(double x) { return std::exp(x); }

template <class Real>
inline Real logistic(Real x) {
  return Real(1) / (Real(1) + fast_exp(-x));
}

// Vectors of 64 bytes. Reductions spell out their lanes because the compiler may not reorder a sum by itself;
// the order depends on the length alone, so the same input gives the same bits wherever it lies.
template <class Real>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float Vector __attribute__((vector_size(64)));
  static constexpr std::int64_t kWidth = 16;
};
template <>
struct Lanes<double> {
  typedef double Vector __attribute__((vector_size(64)));
  static constexpr std::int64_t kWidth = 8;
};

// v = the elements from x on, at any address. (Not a return value: without AVX-512 that would warn about the
// ABI.)
template <class Real>
[[gnu::always_inline]] inline void load(const Real* x, typename Lanes<Real>::Vector& v) {
  std::memcpy(&v, x, sizeof(v));
}
[[gnu::always_inline]] inline void load(const Bf16* x, Lanes<float>::Vector& v) {
  typedef std::uint16_t Half __attribute__((vector_size(32)));
  typedef std::uint32_t Words __attribute__((vector_size(64)));
  Half half;
  std::memcpy(&half, x, sizeof(half));
  const Words words = __builtin_convertvector(half, Words) << 16;
  std::memcpy(&v, &words, sizeof(v));
}

// Sum over i < n of product(i), where product(first, v) sets v to the products of a full vector and
// product_at(i) is one. Four independent accumulators hide the latency of the additions.
template <class Real, class Product, class ProductAt>
[[gnu::always_inline]] inline Real sum_in_lanes(std::int64_t n, Product product, ProductAt product_at) {
  using Vector = typename Lanes<Real>::Vector;
  constexpr std::int64_t kWidth = Lanes<Real>::kWidth;
  Vector s0{}, s1{}, s2{}, s3{}, v;
  std::int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) {
    product(i, v), s0 += v;
    product(i + kWidth, v), s1 += v;
    product(i + 2 * kWidth, v), s2 += v;
    product(i + 3 * kWidth, v), s3 += v;
  }
  for (; i + kWidth <= n; i += kWidth) product(i, v), s0 += v;
  const Vector s = (s0 + s1) + (s2 + s3);
  Real total = 0;
  for (std::int64_t l = 0; l < kWidth; ++l) total += s[l];
  for (; i < n; ++i) total += product_at(i);
  return total;
}

// Sum over i < n of x[i].
template <class T>
inline Arithmetic<T> sum(std::int64_t n, const T* x) {
  using Real = Arithmetic<T>;
  using Vector = typename Lanes<Real>::Vector;
  return sum_in_lanes<Real>(
      n, [=](std::int64_t i, Vector& v) { load(x + i, v); }, [=](std::int64_t i) { return Real(x[i]); });
}

// Sum over i < n of x[i] * y[i].
template <class X, class Y>
inline Arithmetic<X> dot(std::int64_t n, const X* x, const Y* y) {
  using Real = Arithmetic<X>;
  using Vector = typename Lanes<Real>::Vector;
  return sum_in_lanes<Real>(
      n,
      [=](std::int64_t i, Vector& v) {
        Vector w;
        load(x + i, v), load(y + i, w);
        v *= w;
      },
      [=](std::int64_t i) { return x[i] * y[i]; });
}

// Sum over i < n of x[i] * y[i] * z[i].
template <class X, class Y, class Z>
inline Arithmetic<X> dot(std::int64_t n, const X* x, const Y* y, const Z* z) {
  using Real = Arithmetic<X>;
  using Vector = typename Lanes<Real>::Vector;
  return sum_in_lanes<Real>(
      n,
      [=](std::int64_t i, Vector& v) {
        Vector w, u;
        load(x + i, v), load(y + i, w), load(z + i, u);
        v = v * w * u;
      },
      [=](std::int64_t i) { return x[i] * y[i] * z[i]; });
}

// Largest of x[0..n), n >= 1. NaNs may be passed over: whoever exponentiates x - max meets them again.
template <class T>
inline Arithmetic<T> largest(std::int64_t n, const T* x) {
  using Real = Arithmetic<T>;
  using Vector = typename Lanes<Real>::Vector;
  constexpr std::int64_t kWidth = Lanes<Real>::kWidth;
  Real best = x[0];
  std::int64_t i = 0;
  if (n >= kWidth) {
    Vector m, v;
    load(x, m);
    for (i = kWidth; i + kWidth <= n; i += kWidth) {
      load(x + i, v);
      m = v > m ? v : m;
    }
    for (std::int64_t l = 0; l < kWidth; ++l) best = m[l] > best ? m[l] : best;
  }
  for (; i < n; ++i) {
    const Real v = x[i];
    best = v > best ? v : best;
  }
  return best;
}

}  // namespace meshwright::kernels
