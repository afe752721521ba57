// bfloat16 as a type of storage: 8 bits of exponent, 8 of significand. Kernels read it, compute in float, and round once when
// they write. (g++ 12 has no arithmetic type for it.)
#pragma once

#include <bit>
#include <cstdint>

namespace meshwright {

struct Bf16 {
  std::uint16_t bits;

  Bf16() = default;
  // To nearest, ties to even; what is beyond the largest becomes infinity, NaN stays NaN. Branch-free.
  Bf16(float x) {  // implicit, as between float and double
    const auto u = std::bit_cast<std::uint32_t>(x);
    const std::uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16, quiet = (u >> 16) | 0x40u;
    bits = static_cast<std::uint16_t>(x != x ? quiet : rounded);
  }
  operator float() const { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }

  Bf16& operator+=(float x) { return *this = static_cast<float>(*this) + x; }
  Bf16& operator-=(float x) { return *this = static_cast<float>(*this) - x; }
  Bf16& operator*=(float x) { return *this = static_cast<float>(*this) * x; }
};
static_assert(sizeof(Bf16) == 2);

namespace detail {
template <class T>
struct ArithmeticOf {
  using Type = T;
};
template <>
struct ArithmeticOf<Bf16> {
  using Type = float;
};
}  // namespace detail

// What a kernel computes in that stores T: float for Bf16, else T itself. It is also the type of the Program's state beside
// activations of type T (gradients of parameters, norms' 1/rms, gates).
template <class T>
using Arithmetic = typename detail::ArithmeticOf<T>::Type;

}  // namespace meshwright
