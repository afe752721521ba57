#include "model/program/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace meshwright {
namespace {

double ramp(double at, double low, double high) { return std::clamp((at - low) / (high - low), 0.0, 1.0); }

}  // namespace

std::vector<double> rope_frequencies(const RopeSpec& spec, std::int64_t width) {
  const auto w = static_cast<double>(width), original = static_cast<double>(spec.original_positions);
  constexpr double kTurn = 2 * std::numbers::pi;
  // The pair, as a real number, that turns so often in the original positions.
  const auto pair_of = [&](double turns) {
    return w * std::log(original / (kTurn * turns)) / (2 * std::log(spec.theta));
  };
  double low = 0, high = 0;
  if (spec.scaling == RopeScaling::kYarn) {
    low = pair_of(spec.beta_fast), high = pair_of(spec.beta_slow);
    if (spec.truncate) low = std::floor(low), high = std::ceil(high);
    low = std::max(low, 0.0), high = std::min(high, w - 1);
    if (high == low) high += 0.001;
  }
  std::vector<double> frequencies(static_cast<std::size_t>(width / 2));
  for (std::size_t j = 0; j < frequencies.size(); ++j) {
    double omega = std::pow(spec.theta, -2.0 * static_cast<double>(j) / w);
    if (spec.scaling == RopeScaling::kLlama3) {
      const double s = ramp(original * omega / kTurn, spec.low_freq_factor, spec.high_freq_factor);
      omega *= s + (1 - s) / spec.factor;
    } else if (spec.scaling == RopeScaling::kYarn) {
      const double r = ramp(static_cast<double>(j), low, high);
      omega *= (1 - r) + r / spec.factor;
    }
    frequencies[j] = omega;
  }
  return frequencies;
}

}  // namespace meshwright
