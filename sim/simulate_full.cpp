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

Interval interval_of(const TaskOrigin& origin, const Execution& execution, TaskId t, const MeshShape& mesh) {
  Interval i{.stream = stream_of(*origin.op),
             .begin = to_seconds(execution.start[t]),
             .end = to_seconds(execution.finish[t]),
             .name = std::string(op_name(*origin.op)),
             .where = slot_name(*origin.slot),
             .bytes = bytes_sent(*origin.op, *origin.piece, mesh),
             .flops = work_of(*origin.op, *origin.piece).flops};
  if (origin.call->layer >= 0) i.where += fmt::format(" L{}", origin.call->layer);
  return i;
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
    RankReport rank = memory_report(set.stages[stage]);
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
        const Time took = execution.finish[t] - execution.start[t];
        (is_communication(*origin.op) ? totals.exposed : totals.compute) += took;
        compute_free = execution.finish[t];
        finish[t].waited_until = 0;
      }
      last = std::max(last, finish[t]);
      add_checked(totals.flops.value, work_of(*origin.op, *origin.piece).flops.value, 1, kFlopsLimit);
      if (const Bytes sent = bytes_sent(*origin.op, *origin.piece, set.mesh); sent.value > 0)
        add_checked(rank.traffic[traffic_key(*origin.op)].value, sent.value, 1, kBytesLimit);
      if (options.timeline) rank.timeline.push_back(interval_of(origin, execution, t, set.mesh));
    }
    totals.add_wait(compute_free, last);
    totals.bubble += step - last.time;
    totals.write(rank, last.time);
    report.ranks.push_back(std::move(rank));
  }
  return report;
}

}  // namespace meshwright
