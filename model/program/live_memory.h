// What a rank's memory holds: the lifetimes in a Program, walked in program order or at the times of a timeline.
//
// A byte that is no state is live from the operation that first writes it to its end: the Free of its workspace tensor, the
// end of a chunk or of the program that covers it (program.h). Parameters, gradients, optimizer and data are live throughout.
// What is sent or reduced ends only where the Program no longer gives the message time: so the walk in program order has it
// live as long as it may be under way, and what is received from when it may arrive. What is gathered is live from its place in
// program order.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "model/program/program.h"
#include "model/program/step_report.h"

namespace meshwright {

// Peaks of every stage of a set, in program order. Distinct pieces and chunks are read once, a slot is then a sum: the
// work grows with the calls of distinct chunks and with slots.
class MemoryWalk {
 public:
  explicit MemoryWalk(const ProgramSet& set);  // which must outlive it
  ~MemoryWalk();
  MemoryWalk(const MemoryWalk&) = delete;
  MemoryWalk& operator=(const MemoryWalk&) = delete;

  MemoryPeak peak(const Program& program);  // one of the set's

 private:
  class Pieces;
  const ProgramSet& set_;
  std::unique_ptr<Pieces> pieces_;
};

// The same, operation by operation and byte by byte: the slow, obvious version.
MemoryPeak peak_by_operation(const ProgramSet& set, const Program& program);

// Bytes that are live from this moment to the next one in the map; it begins with moment 0. Times are those of `times`.
using LiveBytes = std::map<std::int64_t, std::int64_t>;

// Of every class, at the times of a timeline: a byte is live from the operation that writes it to the end of the last one
// that reads it before it is written anew; what is written and never read (scratch) lives during that operation. So
// nothing but state is live at the end of a step.
// `timeline`: of a rank of `program`, in program order. `times(i)`: when interval i begins and ends.
std::array<LiveBytes, kMemoryClasses> live_bytes(
    const ProgramSet& set, const Program& program, const std::vector<Interval>& timeline,
    const std::function<std::pair<std::int64_t, std::int64_t>(std::size_t)>& times);

}  // namespace meshwright
