// Interprets a ProgramSet with a clock: what a step costs on a machine that a CostModel describes.
// Not for: links shared by transfers that happen at the same time, or ranks of one stage that differ.
//
// One rank stands for each stage, as ranks that differ only along dp and tp do the same at the same time; so
// members of tp and dp groups are always ready together. Operations start as op.h says, where two operands
// depend on each other if the bytes of their tensors overlap in the arena (a whole tensor each, whatever the
// window).
//
// Attribution. Between the end of a compute stream's operation and the start of its next one, from f to s,
// the rank waited for the operation X that finished last, at s. Following what X itself waited for back in
// time (whichever of its dependencies finished last, and so on), let b be the latest moment at which that
// chain waited only for another stage: the start of a transfer, or of a collective over pp, whose other
// member was ready later than this one. Of the wait,
//   from f to b  is bubble,
//   the rest     is exposed communication.
// Of two that finish last together, the one with the later b counts. Communication on the compute stream (a
// machine that does not overlap) is exposed communication. A stage's end is the end of its last operation:
// the wait between its last compute operation and that counts as above, and from there to the end of the step
// is bubble. So for every stage
//   step time = compute + exposed communication + bubble.
#pragma once

#include <cstdint>
#include <optional>

#include "model/program/program.h"
#include "model/program/step_report.h"
#include "sim/cost_model.h"

namespace meshwright {

struct SimOptions {
  bool timeline = false;  // every operation as an interval: takes the full simulation
  // Whose peak of live bytes is found: of every stage, or of the first that has the largest arena, which is all that a
  // search asks for.
  enum class Live : std::uint8_t { kEveryStage, kLargestArena } live = Live::kEveryStage;
};

// One RankReport per stage, in order: the rank with dp 0 and tp 0. Experts are costed at capacity. Live
// bytes are those of a walk in program order (model/program/live_memory.h). Precondition: verify(set) is empty; a deadlock throws std::logic_error. Throws InputError where a sum
// is beyond what 64 bits hold (sim/checked_sum.h): a step is then too long to be simulated. The same as
// simulate_full to the picosecond (which leaves out live bytes, as does simulate_fast), but its work grows with distinct pieces, the calls of distinct chunks, and
// slots, rather than with operations. Falls back on simulate_full for programs that simulate_fast refuses.
StepReport simulate(const ProgramSet& set, const CostModel& cost, const SimOptions& options = {});

// The slow, obvious version: every operation of every slot is a task of the event engine.
StepReport simulate_full(const ProgramSet& set, const CostModel& cost, const SimOptions& options = {});

// The fast one alone (sim/simulate_fast.cpp says how). None for programs in which the memory behind two
// anchors of a slot overlaps, or whose stages can't be walked in program order without looking ahead; lowered
// programs are never refused.
std::optional<StepReport> simulate_fast(const ProgramSet& set, const CostModel& cost);

}  // namespace meshwright
