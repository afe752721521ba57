#include "executor/kernels/philox.h"

#include <algorithm>

namespace meshwright::kernels {

void philox_words(PhiloxKey key, std::uint32_t c2, std::uint32_t c3, std::uint64_t first, std::int64_t n,
                  std::uint32_t* out) {
  constexpr int kLanes = 32;  // counters at a time: philox() above, turned inside out so that it vectorises
  std::uint64_t block = first / 4;
  std::int64_t skip = static_cast<std::int64_t>(first % 4);
  while (n > 0) {
    std::uint32_t w0[kLanes], w1[kLanes], w2[kLanes], w3[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      w0[l] = static_cast<std::uint32_t>(block + l);
      w1[l] = static_cast<std::uint32_t>((block + l) >> 32);
      w2[l] = c2;
      w3[l] = c3;
    }
    PhiloxKey k = key;
    for (int round = 0; round < kPhiloxRounds; ++round) {
      for (int l = 0; l < kLanes; ++l) {
        const std::uint64_t p0 = std::uint64_t{kPhiloxMultiplier0} * w0[l];
        const std::uint64_t p1 = std::uint64_t{kPhiloxMultiplier1} * w2[l];
        w0[l] = static_cast<std::uint32_t>(p1 >> 32) ^ w1[l] ^ k[0];
        w2[l] = static_cast<std::uint32_t>(p0 >> 32) ^ w3[l] ^ k[1];
        w1[l] = static_cast<std::uint32_t>(p1);
        w3[l] = static_cast<std::uint32_t>(p0);
      }
      k = {k[0] + kPhiloxWeyl0, k[1] + kPhiloxWeyl1};
    }
    std::uint32_t words[4 * kLanes];
    for (int l = 0; l < kLanes; ++l) {
      words[4 * l] = w0[l];
      words[4 * l + 1] = w1[l];
      words[4 * l + 2] = w2[l];
      words[4 * l + 3] = w3[l];
    }
    const std::int64_t taken = std::min<std::int64_t>(4 * kLanes - skip, n);
    out = std::copy(words + skip, words + skip + taken, out);
    n -= taken;
    skip = 0;
    block += kLanes;
  }
}

}  // namespace meshwright::kernels
