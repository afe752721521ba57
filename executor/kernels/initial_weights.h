#pragma once

#include <cstdint>
#include <string_view>

namespace meshwright::kernels {

// Random numbers for one tensor. Value i is a pure function of (seed, tensor, i), i the index in the whole,
// unsharded tensor: a shard draws its own part, and float gets the rounded double, bit for bit, though it is drawn
// several times as fast.
struct TensorStream {
  std::uint64_t seed = 0;
  std::uint64_t tensor = 0;  // tensor_id of its name
};

// FNV-1a, 64 bits.
constexpr std::uint64_t tensor_id(std::string_view name) {
  std::uint64_t hash = 0xCBF29CE484222325;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3;
  return hash;
}

// out[i] = value first + i of the tensor: uniform on [low, high).
template <class Real>
void uniform(const TensorStream& stream, std::int64_t first, std::int64_t n, double low, double high, Real* out);

// Normal with mean 0 and this standard deviation (Box & Muller 1958).
template <class Real>
void normal(const TensorStream& stream, std::int64_t first, std::int64_t n, double deviation, Real* out);

// A standard normal restricted to (-2, 2), by rejection, times `scale`. The restriction lowers the standard
// deviation to kTruncatedNormalDeviation, so a kernel with variance 1/fan_in has scale = sqrt(1/fan_in) /
// kTruncatedNormalDeviation.
inline constexpr double kTruncatedNormalDeviation = 0.87962566103423978;
template <class Real>
void truncated_normal(const TensorStream& stream, std::int64_t first, std::int64_t n, double scale, Real* out);

}  // namespace meshwright::kernels
