#include <fmt/format.h>

#include <algorithm>

#include "model/program/check.h"
#include "model/program/op_work.h"
#include "model/program/slot_name.h"
#include "sim/checked_sum.h"
#include "sim/expansion.h"
#include "sim/simulate.h"
#include "sim/stage_totals.h"
#include "sim/wait.h"

namespace meshwright {
namespace {

Interval interval_of(const Program& program, const TaskOrigin& origin, const Execution& execution, TaskId t,
                     const MeshShape& mesh) {
  return {.stream = stream_of(*origin.op),
          .begin = to_seconds(execution.start[t]),
          .end = to_seconds(execution.finish[t]),
          .name = op_name(*origin.op),
          .place = place_of(program, *origin.slot, *origin.call, *origin.piece, *origin.op),
          .bytes = bytes_sent(*origin.op, *origin.piece, mesh),
          .flops = work_of(*origin.op, *origin.piece).flops};
}

// What StageTotals::add_wait() counts, drawn: first the bubble, then the exposed communication.
void draw_wait(RankReport& rank, Time free, Moment until) {
  const Time split = free + bubble_of(free, until);
  if (split > free) rank.waits.push_back({Wait::Kind::kBubble, to_seconds(free), to_seconds(split)});
  if (until.time > split) rank.waits.push_back({Wait::Kind::kExposedComm, to_seconds(split), to_seconds(until.time)});
}

}  // namespace

StepReport simulate_full(const ProgramSet& set, const CostModel& cost, const SimOptions& options) {
  const Expansion expansion = expand(set, cost);
  Engine engine(expansion.graph);
  const Execution& execution = engine.run();
  if (!execution.complete()) {
    const TaskId stuck = static_cast<TaskId>(std::find(execution.finish.begin(), execution.finish.end(), kNever) -
                                             execution.finish.begin());
    const TaskOrigin& origin = expansion.origins[stuck];
    check(false, "simulate: deadlock; {} of {} in slot '{}' never starts", op_name(*origin.op), origin.piece->name,
          slot_name(*origin.slot));
  }
  const Time step = execution.finish.empty() ? 0 : *std::max_element(execution.finish.begin(), execution.finish.end());

  StepReport report{.step_time = to_seconds(step), .ranks = {}};
  std::vector<Moment> finish(execution.finish.size());  // with the chain's last wait for another stage
  for (std::size_t stage = 0; stage < set.stages.size(); ++stage) {
    const Program& program = set.stages[stage];
    RankReport rank = stage_report(program);
    StageTotals totals;
    Time compute_free = 0;
    Moment last;
    for (TaskId t = expansion.first_of_stage[stage]; t < expansion.first_of_stage[stage + 1]; ++t) {
      const TaskOrigin& origin = expansion.origins[t];
      Moment ready;
      for (const TaskId p : expansion.graph.predecessors(t)) ready = std::max(ready, finish[p]);
      const Moment start = started(ready, execution.start[t]);
      finish[t] = {execution.finish[t], start.waited_until};
      if (origin.stream == Stream::kCompute) {
        totals.add_wait(compute_free, start);
        if (options.timeline) {
          draw_wait(rank, compute_free, start);
          if (is_communication(*origin.op))
            rank.waits.push_back(
                {Wait::Kind::kExposedComm, to_seconds(execution.start[t]), to_seconds(execution.finish[t])});
        }
        const Time took = execution.finish[t] - execution.start[t];
        (is_communication(*origin.op) ? totals.exposed : totals.compute) += took;
        compute_free = execution.finish[t];
        finish[t].waited_until = 0;
      }
      last = std::max(last, finish[t]);
      add_checked(totals.flops.value, work_of(*origin.op, *origin.piece).flops.value, 1, kFlopsLimit);
      if (const Bytes sent = bytes_sent(*origin.op, *origin.piece, set.mesh); sent.value > 0)
        add_checked(rank.traffic[traffic_key(*origin.op)].value, sent.value, 1, kBytesLimit);
      if (options.timeline) rank.timeline.push_back(interval_of(program, origin, execution, t, set.mesh));
    }
    totals.add_wait(compute_free, last);
    totals.bubble += step - last.time;
    if (options.timeline) {
      draw_wait(rank, compute_free, last);
      const Time idle = std::max(compute_free, last.time);
      if (step > idle) rank.waits.push_back({Wait::Kind::kBubble, to_seconds(idle), to_seconds(step)});
    }
    totals.write(rank, last.time);
    report.ranks.push_back(std::move(rank));
  }
  return report;
}

}  // namespace meshwright
