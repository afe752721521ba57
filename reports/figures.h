// Numbers as reports print them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/program/units.h"

namespace meshwright {

std::string with_commas(std::int64_t count);  // 949,248,384
std::string gib(Bytes bytes);                 // 12.34, in GiB: 2^30 bytes
std::string bytes_text(Bytes bytes);          // "512 B", "3.2 KiB", "1.25 GiB"
std::string percent(double fraction);         // 41.3, of a fraction such as 0.413
std::string flops_text(double flops);         // "1.23 PFLOP"
std::string rate_text(double per_second);     // "275 T", with an SI prefix

// A time as people say it: "7.432 ms", "201.7 ms", "3.21 s", "8.5 min", "85 min", "3.2 h", "4.1 d". Milliseconds below a
// second, seconds below a minute, minutes below two hours, hours below two days.
std::string seconds_text(double seconds);

// The unit, and the digits behind the point, of a table's column of times: one for all, so that its numbers compare, unless
// a number would vanish in it.
struct TimeScale {
  std::string_view unit = "ms";  // as in seconds_text(); "": each time has its own
  double seconds = 1e-3;         // of one unit; 0: each time has its own
  int digits = 1;

  std::string text(double seconds) const;  // "1,201.7", without the unit; where each has its own, "1.2 s"
  // A heading and the unit behind it, where there is one.
  std::string heading(std::string_view title, std::string_view between) const;
};
// The unit in which seconds_text() says `main`, without it the median of the times, zeros apart, with digits for about
// three that count there. If any other than zero would read as zero: more digits, of milliseconds, or else each time its
// own unit.
TimeScale time_scale(std::vector<double> seconds, std::optional<double> main = std::nullopt);

}  // namespace meshwright
