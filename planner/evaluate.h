// The figures of one plan on one machine. What a plan costs is a function that the planner is given: it knows
// no simulator by name (planner/system_evaluator.h joins it with sim/).
#pragma once

#include <array>
#include <concepts>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "model/lowering/lower.h"
#include "model/plan.h"
#include "model/program/program.h"
#include "model/program/step_report.h"
#include "planner/space.h"

namespace meshwright {

// What running a plan's programs would cost.
struct Prediction {
  StepReport report;    // one rank per stage, or every rank
  std::string mapping;  // how the mesh lies on the machine, for people: "tp: x2; dp: y4 z2; pp: z2 (stride 2)"
};
// Pure: equal programs, equal predictions. Called from several threads at once.
using Evaluate = std::function<Prediction(const ProgramSet&)>;

// Why this machine's executor would refuse to run the programs, behind "not runnable yet: "; nullopt: it runs them.
// Pure, called from several threads at once. Which bytes, seconds and FLOPs they cost has nothing to do with
// it.
using Refuse = std::function<std::optional<std::string>(const ProgramSet&)>;

// What the pieces with these indices cost in picoseconds, by index of piece. `programs`: of the plan, its stages cut
// anyhow. Pure, called from several threads at once.
using CostPieces = std::function<std::vector<PieceCost>(const ProgramSet& programs, std::span<const int> pieces)>;

// What the planner knows of a machine.
struct Machine {
  FlopsPerSecond peak;  // of one device, in the compute dtype of the problem
  Bytes usable_memory;  // of one device
  Evaluate evaluate;
  Refuse refuse;           // none: everything runs
  CostPieces cost_pieces;  // none: stages are cut by FLOPs
};

// Layers of each stage: the cut whose costliest stage takes the least time for a microbatch, forward, backward and
// recomputation, with the embedding and the head, as the machine costs their pieces (Lowering::balanced). Leaves the
// stages of `lowering` cut anyhow.
std::vector<int> balanced_stages(Lowering& lowering, const Machine& machine);

// The figures of DESIGN, "Figures, defined once". Bytes by MemoryClass are of the stage that needs the most
// memory.
struct PlanResult {
  Plan plan;
  bool runnable = true;
  std::string not_runnable;  // why not; empty if runnable
  double step_time_s = 0;
  double tokens_per_s = 0;             // of the whole job
  double mfu = 0, hfu = 0;             // model_flops, executed_flops / (step time x devices x peak)
  std::int64_t peak_memory_bytes = 0;  // the largest over devices: of arenas, which is what would be allocated
  double exposed_comm_s = 0;           // mean over devices
  double bubble_fraction = 0;          // mean over devices of the time that one waits for another stage / step time
  double model_flops = 0;              // whole step, all devices; exact up to 2^53
  double executed_flops = 0;           // the same, experts at capacity
  std::vector<int> stage_layers;       // layers of each stage
  int largest_stage = 0;               // the first of those that need peak_memory_bytes
  std::array<std::int64_t, kMemoryClasses> memory_bytes{};  // of it, live at the peak: the rest is lost in placement
  std::string mapping;

  bool operator==(const PlanResult&) const = default;
};

// Calls v(name, field) for every field, those of the plan among them, under its name in JSON and in the store.
template <class Result, class V>
requires std::same_as<std::remove_const_t<Result>, PlanResult>
void visit_fields(Result& r, V&& v) {
  auto& [plan, runnable, not_runnable, step_time_s, tokens_per_s, mfu, hfu, peak_memory_bytes, exposed_comm_s,
         bubble_fraction, model_flops, executed_flops, stage_layers, largest_stage, memory_bytes, mapping] =
      r;  // a new field stops the build: name it below, too
  visit_fields(plan, v);
  v("runnable", runnable);
  v("not_runnable", not_runnable);
  v("step_time_s", step_time_s);
  v("tokens_per_s", tokens_per_s);
  v("mfu", mfu);
  v("hfu", hfu);
  v("peak_memory_bytes", peak_memory_bytes);
  v("exposed_comm_s", exposed_comm_s);
  v("bubble_fraction", bubble_fraction);
  v("model_flops", model_flops);
  v("executed_flops", executed_flops);
  v("stage_layers", stage_layers);
  v("largest_stage", largest_stage);
  for (int c = 0; c < kMemoryClasses; ++c)
    v(std::string(name(static_cast<MemoryClass>(c))) + "_bytes", memory_bytes[static_cast<std::size_t>(c)]);
  v("mapping", mapping);
}

// Bytes of memory that the plan's programs need on the device that needs the most: exact, known before
// anything is simulated, as the arena follows from lifetimes.
Bytes memory_needed(const ProgramSet& programs);

// Throws, naming the figure, its value and its range, if a figure is one that no step has: std::logic_error for times,
// shares of the step, bytes and FLOPs; InputError for a utilisation above 1 (in the source that the machine's numbers
// contradict each other). MFU may exceed 1 only by what model FLOPs exceed those executed, as tokens over an expert's
// capacity are not computed.
void check_figures(const PlanResult& result);

// Runs machine.evaluate on the programs, which are those of `plan` for `problem`. The figures are checked.
PlanResult evaluate_plan(const Problem& problem, const Plan& plan, const ProgramSet& programs, const Machine& machine);

}  // namespace meshwright
