#include "planner/evaluate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "model/accounting.h"
#include "model/input/diagnostics.h"
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
    if (rank.arena_bytes.value <= r.peak_memory_bytes) continue;
    r.peak_memory_bytes = rank.arena_bytes.value;
    r.largest_stage = rank.rank.pp;
    r.memory_bytes = rank.live.at_peak;
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
  check_figures(r);
  return r;
}

void check_figures(const PlanResult& r) {
  constexpr double kRounding = 1e-9, kAnything = std::numeric_limits<double>::max();
  const auto within = [](double value, double low, double high) {
    return std::isfinite(value) && value >= low && value <= high + kRounding * std::abs(high);
  };
  const auto expect = [&](std::string_view name, double value, double low, double high) {
    check(within(value, low, high), "{} of {} is {}, out of {} to {}", name, to_text(r.plan), value, low, high);
  };
  constexpr double kLeast = std::numeric_limits<double>::min();
  expect("step_time_s", r.step_time_s, kLeast, kAnything);
  expect("tokens_per_s", r.tokens_per_s, kLeast, kAnything);
  expect("exposed_comm_s", r.exposed_comm_s, 0, r.step_time_s);
  expect("bubble_fraction", r.bubble_fraction, 0, 1);
  expect("model_flops", r.model_flops, 0, kAnything);
  expect("executed_flops", r.executed_flops, 0, kAnything);
  expect("peak_memory_bytes", static_cast<double>(r.peak_memory_bytes), 0, kAnything);
  for (const std::int64_t bytes : r.memory_bytes) expect("bytes of memory", static_cast<double>(bytes), 0, kAnything);

  std::vector<Diagnostic> faults;
  const auto utilisation = [&](std::string_view name, double value, double high) {
    if (within(value, 0, high)) return;
    faults.push_back({"prediction", std::string(name), fmt::format("{:.4g}", value), fmt::format("0 to {:.4g}", high),
                      "the system's peak is lower than the FLOP/s that its products reach: correct its file, or "
                      "calibrate again"});
  };
  utilisation("hfu", r.hfu, 1);
  utilisation("mfu", r.mfu, r.executed_flops > 0 ? std::max(1.0, r.model_flops / r.executed_flops) : kAnything);
  if (!faults.empty()) throw InputError(std::move(faults));
}

}  // namespace meshwright
