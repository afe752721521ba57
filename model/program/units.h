// Units as types: Bytes / Seconds is a rate, Bytes / Flops does not compile. GiB is 2^30 bytes, GB is 10^9.
#pragma once

#include <compare>
#include <cstdint>

namespace meshwright {

template <class Tag, class Rep>
struct Quantity {
  Rep value{};

  constexpr auto operator<=>(const Quantity&) const = default;
  constexpr Quantity& operator+=(Quantity o) {
    value += o.value;
    return *this;
  }
  constexpr Quantity& operator-=(Quantity o) {
    value -= o.value;
    return *this;
  }
  friend constexpr Quantity operator+(Quantity a, Quantity b) { return {a.value + b.value}; }
  friend constexpr Quantity operator-(Quantity a, Quantity b) { return {a.value - b.value}; }
  friend constexpr Quantity operator*(Quantity a, Rep b) { return {a.value * b}; }
  friend constexpr Quantity operator*(Rep a, Quantity b) { return {a * b.value}; }
};

using Bytes = Quantity<struct BytesTag, std::int64_t>;
using Flops = Quantity<struct FlopsTag, std::int64_t>;  // one multiply-add is 2
using Seconds = Quantity<struct SecondsTag, double>;
using BytesPerSecond = Quantity<struct BytesPerSecondTag, double>;
using FlopsPerSecond = Quantity<struct FlopsPerSecondTag, double>;

constexpr Seconds operator/(Bytes b, BytesPerSecond r) { return {static_cast<double>(b.value) / r.value}; }
constexpr Seconds operator/(Flops f, FlopsPerSecond r) { return {static_cast<double>(f.value) / r.value}; }

// The engine's clock: whole picoseconds, so that times add and compare exactly and a timeline shifted in time is the
// same timeline. Times never wrap: to_time() gives kEndOfTime for everything that is longer (or no number), and who adds
// durations up refuses more than kLongestTime, half of it, together (sim/checked_sum.h): 26 days.
using Time = std::int64_t;
constexpr double kPicosecondsPerSecond = 1e12;
constexpr Time kEndOfTime = Time{1} << 62, kLongestTime = kEndOfTime / 2;
constexpr Time to_time(Seconds s) {
  const double t = s.value * kPicosecondsPerSecond + 0.5;
  if (!(t < static_cast<double>(kEndOfTime))) return kEndOfTime;
  return t > 0 ? static_cast<Time>(t) : 0;
}
constexpr Seconds to_seconds(Time t) { return {static_cast<double>(t) / kPicosecondsPerSecond}; }

constexpr std::int64_t kGiB = std::int64_t{1} << 30;

}  // namespace meshwright
