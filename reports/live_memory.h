// What a rank's memory holds over time, by class: the lifetimes in a Program, at the times of a timeline.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "model/program/program.h"
#include "model/program/step_report.h"

namespace meshwright {

// Bytes that are live from this moment to the next one in the map; it begins with moment 0. Times are those of `times`.
using LiveBytes = std::map<std::int64_t, std::int64_t>;

// Of every class. Parameters, gradients, optimizer and data are live throughout. In the other classes a byte is live from
// the operation that writes it to the end of the last one that reads it before it is written anew; what is written and
// never read (scratch) lives during that operation. So nothing of them is live at the end of a step.
// `timeline`: of a rank of `program`, in program order. `times(i)`: when interval i begins and ends.
std::array<LiveBytes, kMemoryClasses> live_bytes(
    const ProgramSet& set, const Program& program, const std::vector<Interval>& timeline,
    const std::function<std::pair<std::int64_t, std::int64_t>(std::size_t)>& times);

}  // namespace meshwright
