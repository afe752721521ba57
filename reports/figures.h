// Numbers as reports print them.
#pragma once

#include <cstdint>
#include <string>

#include "model/program/units.h"

namespace meshwright {

std::string with_commas(std::int64_t count);  // 949,248,384
std::string gib(Bytes bytes);                 // 12.34, in GiB: 2^30 bytes
std::string bytes_text(Bytes bytes);          // "512 B", "3.2 KiB", "1.25 GiB"
std::string milliseconds(Seconds seconds);    // 812.4; three digits behind the point below 10 ms
std::string seconds_text(double seconds);     // "812.4 ms", "3.21 s", "2 min 5 s"
std::string percent(double fraction);         // 41.3, of a fraction such as 0.413
std::string flops_text(double flops);         // "1.23 PFLOP"
std::string rate_text(double per_second);     // "275 T", with an SI prefix

}  // namespace meshwright
