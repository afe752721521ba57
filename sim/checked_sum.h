// Sums over the operations of a step that never wrap.
#pragma once

#include <cstdint>
#include <string>

#include "model/input/diagnostics.h"
#include "model/program/units.h"

namespace meshwright {

// What is summed, and what can't be said in 64 bits.
struct SumLimit {
  std::int64_t most;
  const char *what, *allowed;
};
// Everything that a simulation works out (moments, waits, totals) is at most this sum: a moment is the length of a path
// of operations on which none lies twice. So who has added up the durations of all operations of all stages first may
// add and subtract times freely afterwards.
constexpr SumLimit kTimeLimit{kLongestTime, "the durations of all operations", "at most 26 days together"};
constexpr SumLimit kFlopsLimit{kEndOfTime, "FLOPs of a rank", "at most 4.6e18"};
constexpr SumLimit kBytesLimit{kEndOfTime, "bytes that a rank sends", "at most 4.6e18"};

// sum += times * each; all of them at least 0. Throws InputError if that is more than limit.most.
inline void add_checked(std::int64_t& sum, std::int64_t each, std::int64_t times, const SumLimit& limit) {
  std::int64_t all = 0;
  if (__builtin_mul_overflow(each, times, &all) || all > limit.most - sum)
    throw InputError(Diagnostic{"simulation", limit.what, "too much for a step", limit.allowed,
                                "the model and batch are too large for this system, or a rate in its file is too low: "
                                "look at the units of its numbers"});
  sum += all;
}

}  // namespace meshwright
