#include "reports/figures.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
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

// Commas between groups of three, of digits that may have a sign before them.
std::string grouped(std::string digits) {
  const std::size_t sign = digits.starts_with('-') ? 1 : 0;
  for (std::size_t at = digits.size(); at > 3 + sign;) digits.insert(at -= 3, 1, ',');
  return digits;
}

struct TimeUnit {
  std::string_view name;
  double seconds;  // of one
  double below;    // in this unit up to here, in seconds: less than the next unit's least by half of the last digit
};

const TimeUnit& unit_of(double seconds) {
  static constexpr std::array<TimeUnit, 5> kUnits{{{"ms", 1e-3, 0.99995},
                                                   {"s", 1, 59.95},
                                                   {"min", 60, 119.5 * 60},
                                                   {"h", 3600, 47.5 * 3600},
                                                   {"d", 86400, std::numeric_limits<double>::infinity()}}};
  return *std::find_if(kUnits.begin(), kUnits.end() - 1, [&](const TimeUnit& unit) { return seconds < unit.below; });
}

}  // namespace

std::string with_commas(std::int64_t count) { return grouped(fmt::format("{}", count)); }

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

std::string seconds_text(double seconds) {
  const TimeUnit& unit = unit_of(seconds);
  const double value = seconds / unit.seconds;
  if (unit.seconds < 1) return fmt::format("{:.4g} {}", value, unit.name);
  if (unit.seconds == 1) return fmt::format("{:.3g} {}", value, unit.name);
  if (!(value < 1e6)) return fmt::format("{:.3g} {}", value, unit.name);
  return fmt::format("{:.{}f} {}", value, value < 9.95 ? 1 : 0, unit.name);
}

std::string TimeScale::heading(std::string_view title, std::string_view between) const {
  return fmt::format("{}{}{}", title, unit.empty() ? "" : between, unit);
}

std::string TimeScale::text(double time) const {
  if (seconds == 0) return time == 0 ? "0" : seconds_text(time);
  const double value = time / seconds;
  if (!(std::abs(value) < 1e15)) return fmt::format("{:.3g}", value);
  const std::string all = fmt::format("{:.{}f}", value, digits);
  return grouped(all.substr(0, all.find('.'))) + all.substr(std::min(all.find('.'), all.size()));
}

TimeScale time_scale(std::vector<double> times, std::optional<double> main) {
  std::erase(times, 0.0);
  if (times.empty()) return {};
  const auto median = times.begin() + static_cast<std::ptrdiff_t>((times.size() - 1) / 2);
  std::nth_element(times.begin(), median, times.end());
  const TimeUnit& unit = unit_of(main.value_or(*median));
  const double value = main.value_or(*median) / unit.seconds;
  TimeScale scale{unit.name, unit.seconds, value >= 9.995 ? 1 : value >= 0.9995 ? 2 : 3};
  const auto vanishes = [&](double time) {
    return std::abs(time / scale.seconds) <= 0.5 * std::pow(10, -scale.digits);
  };
  constexpr int kMostDigits = 3;
  const auto any_vanishes = [&] { return std::ranges::any_of(times, vanishes); };
  while (any_vanishes() && scale.seconds < 1 && scale.digits < kMostDigits) ++scale.digits;
  return any_vanishes() ? TimeScale{"", 0, 0} : scale;
}

std::string percent(double fraction) { return fmt::format("{:.1f}", fraction * 100); }

std::string flops_text(double flops) { return si(flops) + "FLOP"; }

std::string rate_text(double per_second) { return si(per_second); }

}  // namespace meshwright
