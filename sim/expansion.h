// A ProgramSet written out for the event engine: every operation of one rank per stage is a task.
#pragma once

#include <vector>

#include "model/program/program.h"
#include "sim/cost_model.h"
#include "sim/engine.h"

namespace meshwright {

// What a task is. Points into the ProgramSet.
struct TaskOrigin {
  const Slot* slot;
  const Call* call;
  const Piece* piece;
  const Op* op;
  Stream stream;  // that it occupies
};

struct Expansion {
  TaskGraph graph;
  std::vector<TaskOrigin> origins;     // per task
  std::vector<TaskId> first_of_stage;  // stages + 1 entries: a stage's tasks are consecutive, in program order
};

// Free is no task. A task depends on the last writer of the bytes that it reads, and on the last writer and
// readers of those that it writes; of several on one stream, on the last. Throws std::logic_error if a send
// or a collective over stages has no counterpart, InputError if the durations add up to more than kLongestTime. The set must outlive the expansion.
Expansion expand(const ProgramSet& set, const CostModel& cost);

}  // namespace meshwright
