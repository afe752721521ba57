#include "executor/kernels/initial_weights.h"

#include <array>
#include <cmath>
#include <numbers>

#include "executor/kernels/philox.h"

namespace meshwright::kernels {
namespace {

// Elements 2p and 2p + 1 share the two 53-bit numbers of one Philox block, {p (low, high), attempt, 0}.
std::array<double, 2> uniform_pair(PhiloxKey key, std::uint64_t pair, std::uint32_t attempt) {
  const PhiloxCounter w =
      philox({static_cast<std::uint32_t>(pair), static_cast<std::uint32_t>(pair >> 32), attempt, 0}, key);
  const auto unit = [](std::uint32_t low, std::uint32_t high) {  // [0, 1)
    return static_cast<double>(((std::uint64_t{high} << 32) | low) >> 11) * 0x1p-53;
  };
  return {unit(w[0], w[1]), unit(w[2], w[3])};
}

std::array<double, 2> normal_pair(PhiloxKey key, std::uint64_t pair, std::uint32_t attempt) {
  const auto [u, v] = uniform_pair(key, pair, attempt);
  const double radius = std::sqrt(-2 * std::log1p(-u)), angle = 2 * std::numbers::pi * v;
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

double truncated_normal_at(PhiloxKey key, std::uint64_t element, std::array<double, 2> first_attempt) {
  double z = first_attempt[element % 2];
  for (std::uint32_t attempt = 1; !(std::abs(z) < 2); ++attempt)
    z = normal_pair(key, element / 2, attempt)[element % 2];
  return z;
}

// Calls store(i, pair values, element) for elements first .. first + n, computing each pair once.
template <class Pair, class Store>
void for_each_element(std::int64_t first, std::int64_t n, Pair pair_of, Store store) {
  std::array<double, 2> pair{};
  for (std::int64_t i = 0; i < n; ++i) {
    const auto element = static_cast<std::uint64_t>(first + i);
    if (i == 0 || element % 2 == 0) pair = pair_of(element / 2);
    store(i, pair, element);
  }
}

PhiloxKey key_of(const TensorStream& stream) {
  return philox_key(stream.seed, Purpose::kInitialWeights, stream.tensor);
}

}  // namespace

template <class Real>
void uniform(const TensorStream& stream, std::int64_t first, std::int64_t n, double low, double high, Real* out) {
  const PhiloxKey key = key_of(stream);
  for_each_element(
      first, n, [&](std::uint64_t pair) { return uniform_pair(key, pair, 0); },
      [&](std::int64_t i, const std::array<double, 2>& u, std::uint64_t element) {
        out[i] = static_cast<Real>(low + (high - low) * u[element % 2]);
      });
}

template <class Real>
void normal(const TensorStream& stream, std::int64_t first, std::int64_t n, double deviation, Real* out) {
  const PhiloxKey key = key_of(stream);
  for_each_element(
      first, n, [&](std::uint64_t pair) { return normal_pair(key, pair, 0); },
      [&](std::int64_t i, const std::array<double, 2>& z, std::uint64_t element) {
        out[i] = static_cast<Real>(deviation * z[element % 2]);
      });
}

template <class Real>
void truncated_normal(const TensorStream& stream, std::int64_t first, std::int64_t n, double scale, Real* out) {
  const PhiloxKey key = key_of(stream);
  for_each_element(
      first, n, [&](std::uint64_t pair) { return normal_pair(key, pair, 0); },
      [&](std::int64_t i, const std::array<double, 2>& z, std::uint64_t element) {
        out[i] = static_cast<Real>(scale * truncated_normal_at(key, element, z));
      });
}

#define MESHWRIGHT_INSTANTIATE(Real)                                                             \
  template void uniform(const TensorStream&, std::int64_t, std::int64_t, double, double, Real*); \
  template void normal(const TensorStream&, std::int64_t, std::int64_t, double, Real*);          \
  template void truncated_normal(const TensorStream&, std::int64_t, std::int64_t, double, Real*);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
