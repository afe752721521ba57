#pragma once

#include <array>
#include <cstdint>

namespace meshwright::kernels {

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a
// bijection of 128-bit counters chosen by a 64-bit key. No state: number i is computed from i, so any rank
// can draw any part of a stream.
using PhiloxCounter = std::array<std::uint32_t, 4>;
using PhiloxKey = std::array<std::uint32_t, 2>;

inline constexpr std::uint32_t kPhiloxMultiplier0 = 0xD2511F53, kPhiloxMultiplier1 = 0xCD9E8D57;
inline constexpr std::uint32_t kPhiloxWeyl0 = 0x9E3779B9, kPhiloxWeyl1 = 0xBB67AE85;
inline constexpr int kPhiloxRounds = 10;

constexpr PhiloxCounter philox(PhiloxCounter c, PhiloxKey k) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const std::uint64_t p0 = std::uint64_t{kPhiloxMultiplier0} * c[0];
    const std::uint64_t p1 = std::uint64_t{kPhiloxMultiplier1} * c[2];
    c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ k[0], static_cast<std::uint32_t>(p1),
         static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k[1], static_cast<std::uint32_t>(p0)};
    k = {k[0] + kPhiloxWeyl0, k[1] + kPhiloxWeyl1};
  }
  return c;
}

// A bijection of 64-bit words with full avalanche: the finaliser of splitmix64 (Steele, Lea, Flood 2014).
constexpr std::uint64_t mix64(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

// What random numbers are drawn for; part of the key, so that streams of different purposes never meet.
enum class Purpose : std::uint32_t { kDropout = 1, kInitialWeights = 2 };

// Key of all numbers of one purpose. `sub_stream` separates them further (a tensor's id; 0 if there is
// nothing to separate).
constexpr PhiloxKey philox_key(std::uint64_t seed, Purpose purpose, std::uint64_t sub_stream = 0) {
  const std::uint64_t key = mix64(mix64(mix64(seed) + static_cast<std::uint64_t>(purpose)) ^ sub_stream);
  return {static_cast<std::uint32_t>(key), static_cast<std::uint32_t>(key >> 32)};
}

// Words first .. first + n of the stream with this key whose word i is word i % 4 of philox({i / 4 (low,
// high), c2, c3}, key).
void philox_words(PhiloxKey key, std::uint32_t c2, std::uint32_t c3, std::uint64_t first, std::int64_t n,
                  std::uint32_t* out);

}  // namespace meshwright::kernels
