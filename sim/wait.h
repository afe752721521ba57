// When something finished, and until when it had waited for another stage: what attribution carries along
// (simulate.h).
#pragma once

#include <algorithm>
#include <compare>

#include "model/program/units.h"

namespace meshwright {

struct Moment {
  Time time = 0;
  Time waited_until = 0;  // latest moment at which the chain that led here waited only for another stage; 0: never
  auto operator<=>(const Moment&) const = default;  // so the maximum is what finished last, as attribution wants it
};

// The start of something that was ready here at `ready` and started at `start`: later, if another stage was
// not ready.
constexpr Moment started(Moment ready, Time start) { return {start, start > ready.time ? start : ready.waited_until}; }

// How much of a wait of the compute stream, from `free` to `until`, is bubble.
constexpr Time bubble_of(Time free, Moment until) {
  return std::max<Time>(0, std::min(until.time, until.waited_until) - free);
}

}  // namespace meshwright
