#include "reports/figures.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <cstdlib>
#include <string_view>

namespace meshwright {
namespace {

// Three or four significant digits below 1000, then the next prefix.
std::string si(double value) {
  constexpr std::array<std::string_view, 7> kPrefixes{"", "k", "M", "G", "T", "P", "E"};
  std::size_t prefix = 0;
  while (std::abs(value) >= 999.5 && prefix + 1 < kPrefixes.size()) {
    value /= 1000;
    ++prefix;
  }
  return fmt::format("{:.3g} {}", value, kPrefixes[prefix]);
}

}  // namespace

std::string with_commas(std::int64_t count) {
  std::string digits =
      fmt::format("{}", count < 0 ? 0 - static_cast<std::uint64_t>(count) : static_cast<std::uint64_t>(count));
  for (std::size_t at = digits.size(); at > 3;) digits.insert(at -= 3, 1, ',');
  return count < 0 ? "-" + digits : digits;
}

std::string gib(Bytes bytes) { return fmt::format("{:.2f}", static_cast<double>(bytes.value) / kGiB); }

std::string bytes_text(Bytes bytes) {
  constexpr std::array<std::string_view, 5> kUnits{"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes.value);
  std::size_t unit = 0;
  while (std::abs(value) >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes.value) : fmt::format("{:.2f} {}", value, kUnits[unit]);
}

std::string milliseconds(Seconds seconds) {
  const double ms = seconds.value * 1e3;
  return fmt::format("{:.{}f}", ms, std::abs(ms) < 10 ? 3 : 1);
}

std::string seconds_text(double seconds) {
  if (seconds < 1) return fmt::format("{:.4g} ms", seconds * 1e3);
  if (seconds < 60) return fmt::format("{:.3g} s", seconds);
  const auto whole = static_cast<std::int64_t>(std::llround(seconds));
  return fmt::format("{} min {} s", whole / 60, whole % 60);
}

std::string percent(double fraction) { return fmt::format("{:.1f}", fraction * 100); }

std::string flops_text(double flops) { return si(flops) + "FLOP"; }

std::string rate_text(double per_second) { return si(per_second); }

}  // namespace meshwright
