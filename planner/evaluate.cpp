#include "planner/evaluate.h"

#include <algorithm>

#include "model/accounting.h"
#include "model/program/check.h"

namespace meshwright {

Bytes memory_needed(const ProgramSet& programs) {
  std::int64_t most = 0;
  for (const Program& stage : programs.stages) most = std::max(most, stage.arena_bytes);
  return {most};
}

std::vector<int> balanced_stages(Lowering& lowering, const Machine& machine) {
  if (!machine.cost_pieces) return lowering.balanced_by_flops();
  const ProgramSet& programs = lowering.cut(lowering.even());
  return lowering.balanced(machine.cost_pieces(programs, lowering.microbatch_pieces()));
}

PlanResult evaluate_plan(const Problem& problem, const Plan& plan, const ProgramSet& programs, const Machine& machine) {
  const Prediction prediction = machine.evaluate(programs);
  const std::vector<RankReport>& ranks = prediction.report.ranks;
  const int devices = plan.mesh.ranks();
  check(!ranks.empty() && devices % static_cast<int>(ranks.size()) == 0, "a report of {} ranks for {} devices",
        ranks.size(), devices);

  PlanResult r{.plan = plan, .mapping = prediction.mapping};
  double exposed = 0, bubble = 0, executed = 0;
  for (const RankReport& rank : ranks) {
    exposed += rank.exposed_comm.value;
    bubble += rank.bubble.value;
    executed += static_cast<double>(rank.executed_flops.value);
    if (rank.peak_bytes.value <= r.peak_memory_bytes) continue;
    r.peak_memory_bytes = rank.peak_bytes.value;
    r.largest_stage = rank.rank.pp;
    r.memory_bytes = rank.bytes_by_class;
  }
  const auto reported = static_cast<double>(ranks.size());
  r.step_time_s = prediction.report.step_time.value;
  r.exposed_comm_s = exposed / reported;
  r.bubble_fraction = bubble / reported / r.step_time_s;
  r.executed_flops = executed * (devices / reported);  // the ranks of a report stand for equally many devices each
  r.model_flops = model_flops(problem.model, problem.shape.tokens, problem.shape.sequences);
  r.tokens_per_s = static_cast<double>(problem.shape.sequences * problem.shape.tokens) / r.step_time_s;
  const double possible_flops = r.step_time_s * devices * machine.peak.value;
  r.mfu = r.model_flops / possible_flops;
  r.hfu = r.executed_flops / possible_flops;
  for (const Program& stage : programs.stages) r.stage_layers.push_back(stage.layers);
  if (machine.refuse)
    if (auto why = machine.refuse(programs)) {
      r.runnable = false;
      r.not_runnable = std::move(*why);
    }
  return r;
}

}  // namespace meshwright
