// meshwright simulate: one plan in detail.
#include "sim/simulate.h"

#include <fmt/format.h>
#include <unistd.h>

#include <memory>

#include "cli/inputs.h"
#include "cli/terminal.h"
#include "executor/launch/output.h"
#include "model/program/check.h"
#include "model/program/verifier.h"
#include "planner/system_evaluator.h"
#include "reports/figures.h"
#include "reports/plan_report.h"
#include "reports/shardings.h"
#include "reports/trace.h"
#include "sim/system_cost_model.h"

namespace meshwright {
namespace {

struct Options {
  ConfigOptions config;
  SystemOptions system;
  std::string plan = "published";
  std::string trace;
  bool shardings = false;
};

int run(const Options& options, const Invocation& invocation) {
  const TrainingConfig config = load_config(options.config);
  if (print_config(options.config, config)) return kDone;
  const System system = load_any_system(options.system.system, invocation);
  const ChosenPlan chosen =
      choose_plan(options.plan, false, config, system, options.system.database, options.system.headroom);
  if (chosen.none_fits) {
    log_warning(
        fmt::format("no plan of {} fits on {}: `meshwright search` says by how much", config.name, system.name));
    return kNothingFeasible;
  }
  const DType compute = compute_type(config, system);
  const Problem problem = make_problem(config, system, compute);
  const ProgramSet programs = lower(problem.model, problem.shape, chosen.plan);
  const auto faults = verify(programs);
  check(faults.empty(), "the program of {} is wrong: {}", to_text(chosen.plan), faults.empty() ? "" : faults.front());

  const SystemCostModel cost(system, programs);
  const Prediction prediction{simulate(programs, cost, {.timeline = true}), cost.mapping().describe()};
  Machine with_timeline = machine_here(system, compute);
  with_timeline.evaluate = [&](const ProgramSet&) { return prediction; };
  const PlanResult result = evaluate_plan(problem, chosen.plan, programs, with_timeline);

  const PlanHeading heading{config.name, system.name, system.usable_memory};
  if (!options.trace.empty()) {
    const TraceSize size = write_trace_file(
        options.trace, prediction.report, programs,
        {.title = fmt::format("{} on {}, {}, simulated", config.name, system.name, to_text(chosen.plan)),
         .one_rank_per_stage = true});
    log_info(fmt::format("{}: {} events of {} stages{}; open it in https://ui.perfetto.dev", options.trace,
                         with_commas(size.events), size.ranks,
                         size.ranks_left_out ? fmt::format(", {} left out", size.ranks_left_out) : ""));
  }
  const int width = columns(STDOUT_FILENO);
  if (options.shardings) {
    const Shardings all = shardings(problem.model, problem.shape, chosen.plan, cost.mapping());
    print(options.config.json ? to_json(all).dump(2) + '\n' : shardings_report(all, width));
  } else if (options.config.json) {
    print(plan_json(result, prediction, heading).dump(2) + '\n');
  } else {
    print(plan_report(result, prediction, heading, width));
  }
  if (result.peak_memory_bytes <= system.usable_memory.value) return kDone;
  log_warning(fmt::format("the plan does not fit: {} GiB too many",
                          gib({result.peak_memory_bytes - system.usable_memory.value})));
  return kNothingFeasible;
}

}  // namespace

void add_simulate(CLI::App& app, Invocation& invocation) {
  CLI::App* command =
      app.add_subcommand("simulate", "One plan in detail: time, memory, communication; traces and shardings");
  const auto options = std::make_shared<Options>();
  add_config_options(*command, invocation, options->config);
  add_system_options(*command, invocation, options->system);
  add_plan_option(
      *command, options->plan,
      "best, a mesh alone as 8x2x2 (its best), an id from a table, published (the configuration's own mesh), or "
      "a plan as 8x2x2,schedule=1f1b,microbatches=8,fsdp=3,recompute=full");
  command->add_option("--trace", options->trace, "Write the step as a Chrome trace (.json, or .json.gz)")
      ->type_name("FILE");
  command->add_flag("--shardings", options->shardings,
                    "List how every tensor is cut, and where every rank runs, instead of times and memory");
  command->footer(
      "Exit code 3: the plan does not fit in memory.\n"
      "Examples:\n"
      "  meshwright simulate configs/jaxformer-moe1b.json --system v4:2x4x4\n"
      "  meshwright simulate configs/jaxformer-moe1b.json --system v4:2x4x4 --plan best --trace step.json.gz\n"
      "  meshwright simulate configs/jaxformer-moe1b.json --system v4:2x4x4 --plan 16x1x2,microbatches=4,fsdp=1 "
      "--shardings");
  command->callback([=, &invocation] { invocation.run = [=, &invocation] { return run(*options, invocation); }; });
}

}  // namespace meshwright
