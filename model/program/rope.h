// Rotary position embedding (Su et al. 2021): which channels turn together, and how fast.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace meshwright {

enum class RopePairing : std::uint8_t {
  kAdjacent,  // channels 2j and 2j + 1 (GPT-J)
  kHalf,      // channels j and j + width/2 (Hugging Face's)
};
constexpr std::array<std::string_view, 2> kRopePairingNames{"adjacent", "half"};
constexpr std::string_view name(RopePairing p) { return kRopePairingNames[static_cast<int>(p)]; }

// For contexts longer than those of pretraining, `original_positions`; at every length.
enum class RopeScaling : std::uint8_t {
  kNone,
  kLlama3,  // slow pairs `factor` times slower: those that turn less than low_freq_factor times in original_positions
  kYarn,    // the same, between beta_slow and beta_fast turns (Peng et al. 2023)
};
constexpr std::array<std::string_view, 3> kRopeScalingNames{"none", "llama3", "yarn"};
constexpr std::string_view name(RopeScaling s) { return kRopeScalingNames[static_cast<int>(s)]; }

struct RopeSpec {
  RopePairing pairing = RopePairing::kAdjacent;
  double theta = 10000;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1;
  double low_freq_factor = 1, high_freq_factor = 4;  // kLlama3
  std::int64_t original_positions = 0;               // kLlama3, kYarn
  double beta_fast = 32, beta_slow = 1;              // kYarn
  bool truncate = true;                              // kYarn: the ramp begins and ends at whole channels
  double attention_factor = 1;                       // cosines and sines are multiplied by it
  bool operator==(const RopeSpec&) const = default;

  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("pairing", name(s.pairing));
    v("theta", s.theta);
    v("scaling", name(s.scaling));
    v("factor", s.factor);
    v("low_freq_factor", s.low_freq_factor);
    v("high_freq_factor", s.high_freq_factor);
    v("original_positions", s.original_positions);
    v("beta_fast", s.beta_fast);
    v("beta_slow", s.beta_slow);
    v("truncate", s.truncate);
    v("attention_factor", s.attention_factor);
  }
};

// Radians per position of each pair j = 0 .. width/2 - 1, width even: omega_j = theta^(-2j/width), scaled by
//   kLlama3  r = original_positions omega / 2 pi,  s = clamp((r - low) / (high - low), 0, 1):  omega *= s + (1 - s) / factor
//   kYarn    D(r) = width ln(original_positions / (2 pi r)) / (2 ln theta),  lo = max(floor D(beta_fast), 0),
//            hi = min(ceil D(beta_slow), width - 1),  ramp_j = clamp((j - lo) / (hi - lo), 0, 1), hi - lo at least 0.001
//            where it is 0:  omega *= (1 - ramp) + ramp / factor.  Not truncated: without floor and ceil.
// Source: transformers 5.24.0, modeling_rope_utils.py.
std::vector<double> rope_frequencies(const RopeSpec& spec, std::int64_t width);

}  // namespace meshwright
