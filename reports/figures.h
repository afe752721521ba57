// Numbers as reports print them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/program/units.h"

namespace meshwright {

std::string with_commas(std::int64_t count);  // 949,248,384
std::string gib(Bytes bytes);                 // 12.34, in GiB: 2^30 bytes
std::string bytes_text(Bytes bytes);          // "512 B", "3.2 KiB", "1.25 GiB"
std::string milliseconds(Seconds seconds);    // 812.4; three digits behind the point below 10 ms
std::string percent(double fraction);         // 41.3, of a fraction such as 0.413
std::string flops_text(double flops);         // "1.23 PFLOP"
std::string rate_text(double per_second);     // "275 T", with an SI prefix

// A time as people say it: "7.432 ms", "201.7 ms", "3.21 s", "8.5 min", "85 min", "3.2 h", "4.1 d". Milliseconds below a
// second, seconds below a minute, minutes below two hours, hours below two days.
std::string seconds_text(double seconds);

// The unit, and the digits behind the point, of a table's column of times: one for all, so that its numbers compare.
struct TimeScale {
  std::string_view unit = "ms";  // as in seconds_text()
  double seconds = 1e-3;         // of one unit
  int digits = 1;

  std::string text(double seconds) const;  // "1,201.7"; without the unit
};
// The unit in which seconds_text() says the median of the times, zeros apart, with digits for about three that count.
TimeScale time_scale(std::vector<double> seconds);

}  // namespace meshwright
