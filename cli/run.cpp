// meshwright run: executes a plan's program on real tensors, over MPI.
//
// The process that the user calls chooses the plan (searching first where it must) and starts one rank per device, which
// are this same command under mpirun with the plan written out. Under a user's own mpirun, rank 0 chooses for all.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>

#include "cli/command_line.h"
#include "cli/inputs.h"
#include "cli/rehearsal.h"
#include "executor/comm/rank_0_first.h"
#include "executor/data/batches.h"
#include "executor/data/cache.h"
#include "executor/data/token_source.h"
#include "executor/launch/launcher.h"
#include "executor/launch/mpi_session.h"
#include "executor/train.h"
#include "model/program/check.h"
#include "model/program/op_work.h"
#include "model/program/verifier.h"
#include "planner/system_evaluator.h"
#include "reports/figures.h"
#include "reports/run_report.h"
#include "reports/step_totals.h"
#include "reports/trace.h"
#include "sim/simulate.h"
#include "sim/system_cost_model.h"

namespace meshwright {
namespace {

struct Options {
  ConfigOptions config;
  SystemOptions system;
  std::string plan = "best";
  std::string data, trace;
  std::optional<std::int64_t> steps, seed;
  bool rehearse = false;
  bool started = false;                     // a rank that this command started
  std::optional<std::int64_t> stored_plan;  // the plan's row in the database, if it is stored

  std::int64_t steps_of(const TrainingConfig& training) const {
    constexpr std::int64_t kRehearsalSteps = 3;
    return steps.value_or(rehearse ? kRehearsalSteps : training.training_steps);
  }
};

TrainingConfig read(const Options& options, bool quiet) {
  ConfigOptions config = options.config;
  if (options.seed) config.overrides.push_back(fmt::format("seed={}", *options.seed));
  return load_config(config, quiet);
}

// ---- the process that the user calls -----------------------------------------------------------------------------------

// Its configuration and plan, kept with the run: in output_dir, or in runs/ where that is a bucket.
void keep_record(const TrainingConfig& config, const Plan& plan, const std::string& system) {
  const bool bucket = config.output_dir.find("://") != std::string::npos;
  const std::filesystem::path folder = std::filesystem::path(bucket ? "runs" : config.output_dir) / config.name;
  const auto write = [&](const char* name, const OrderedJson& content) {
    write_atomically(folder / name, [&](const std::filesystem::path& temporary) {
      std::ofstream out(temporary);
      out << content.dump(2) << '\n';
      out.close();
      if (!out) {
        throw InputError(Diagnostic{config.name, "output_dir", config.output_dir, "a directory that can be written",
                                    "--set output_dir=runs/"});
      }
    });
  };
  write("config.json", to_json(config));
  write("plan.json", {{"plan", to_text(plan)}, {"system", system}});
  log_info(fmt::format("configuration and plan are kept in {}", folder.string()));
}

int start_ranks(const Options& options, const TrainingConfig& config, const System& system, const ChosenPlan& chosen,
                const Invocation& invocation) {
  const Plan& plan = chosen.plan;
  const int ranks = plan.mesh.ranks(), cores = available_cores();
  log_info(fmt::format("{}{} on {} ranks", options.rehearse ? "rehearsing " : "", to_text(plan), ranks));
  if (ranks > cores)
    log_warning(fmt::format("{} ranks share {} cores: step times say nothing about {}", ranks, cores, system.name));
  std::vector<std::string> command{invocation.command.front(), "run",      options.config.file, "--system",
                                   options.system.system,      "--plan",   to_text(plan),       "--db",
                                   options.system.database,    "--started"};
  const auto add = [&](std::initializer_list<std::string> words) { command.insert(command.end(), words); };
  for (const std::string& assignment : options.config.overrides) add({"--set", assignment});
  if (!options.data.empty()) add({"--data", options.data});
  if (!options.trace.empty()) add({"--trace", options.trace});
  if (options.steps) add({"--steps", fmt::format("{}", *options.steps)});
  if (options.seed) add({"--seed", fmt::format("{}", *options.seed)});
  if (options.rehearse) add({"--rehearse"});
  if (options.config.json) add({"--json"});
  if (!options.rehearse) keep_record(config, plan, system.name);
  return run_ranks(ranks, command);
}

// ---- a rank ------------------------------------------------------------------------------------------------------------

// FLOPs that all ranks must have executed in a step in which so many rows were routed.
double flops_of_routed_rows(const ProgramSet& set, const std::vector<RankCount>& ranks) {
  double sum = 0;
  for (const RankCount& rank : ranks)
    sum += static_cast<double>(
        program_flops(set, set.stages[static_cast<std::size_t>(rank.report.rank.pp)], rank.routed_rows).value);
  return sum;
}

StepReport counted_report(const TrainSummary& summary) {
  StepReport report{{summary.median_step_s}, {}};
  for (const RankCount& rank : summary.ranks) report.ranks.push_back(rank.report);
  return report;
}

std::int64_t all_bytes(const Traffic& traffic) {
  std::int64_t sum = 0;
  for (const auto& [key, bytes] : traffic) sum += bytes.value;
  return sum;
}

// What rank 0 says after the last step. False if the program that ran is not the one that was predicted.
bool summarise(const Options& options, const Plan& plan, const ProgramSet& set, std::int64_t steps,
               StepTotals predicted, const TrainSummary& summary) {
  predicted.flops = flops_of_routed_rows(set, summary.ranks);
  const StepReport report = counted_report(summary);
  const StepTotals counted = totals(report, plan.mesh);
  if (options.config.json) {
    std::cout << OrderedJson{{"predicted", to_json(predicted)}, {"counted", to_json(counted)}}.dump() << '\n';
  } else {
    std::cout << fmt::format("\nloss {:.4f} -> {:.4f} ({:+.1f} %) in {} steps\n", summary.first_loss, summary.last_loss,
                             (summary.last_loss / summary.first_loss - 1) * 100, steps);
    std::cout << fmt::format("\nPredicted against counted{}\n",
                             options.rehearse ? ", of the program at reduced size" : "")
              << comparison_report(predicted, counted, options.rehearse ? Times::kLeaveOut : Times::kCompare)
              << (counts_equal(predicted, counted) ? "All counts are equal" : "The counts differ")
              << " (FLOPs at the rows that were routed).\n";
  }
  if (options.stored_plan && !options.rehearse) {
    const auto figures = [](const StepTotals& t) {
      return RunFigures{t.step_time.value, t.flops, all_bytes(t.traffic), t.peak_bytes.value};
    };
    Store(options.system.database)
        .save(StoredRun{*options.stored_plan, "", steps, figures(predicted), figures(counted)});
  }
  if (!options.trace.empty()) {
    write_trace_file(options.trace, report, {.title = fmt::format("{}, measured", to_text(plan)), .mesh = plan.mesh});
    log_info(fmt::format("{}: the last step, measured; open it in https://ui.perfetto.dev", options.trace));
  }
  if (!counts_equal(predicted, counted)) log_warning("the counts differ from the prediction: this is an error of ours");
  return counts_equal(predicted, counted);
}

int run_rank(Options options, const Invocation& invocation) {
  const MpiSession mpi;
  const bool first = mpi.rank() == 0;
  const TrainingConfig published = read(options, options.started || !first);
  if (options.config.print) {
    if (first) print_config(options.config, published);
    return kDone;
  }
  const System system = load_any_system(options.system.system, invocation);
  const std::string chosen = mpi.from_rank_0([&]() -> std::string {
    const ChosenPlan plan = choose_plan(options.plan, true, published, system, options.system.database);
    if (plan.none_fits) return "";
    options.stored_plan = plan.row;
    return to_text(plan.plan);
  });
  if (chosen.empty()) {
    if (first) log_warning(fmt::format("no plan of {} fits on {}", published.name, system.name));
    return kNothingFeasible;
  }
  const Plan plan = parse_plan(chosen);
  expect_started_ranks(plan.mesh.ranks(), chosen);

  // Stages are those of the full size: the same layers on the same ranks.
  const Problem full = make_problem(published, system, DType::kF32);
  const std::vector<int> stages = balanced_stages(full.model, full.shape, plan.mesh.pp);
  const TrainingConfig config = options.rehearse ? rehearsal(published, plan) : published;
  const Problem problem = make_problem(config, system, DType::kF32);
  const ProgramSet set = lower(problem.model, problem.shape, plan, stages);
  if (const auto faults = verify(set); !faults.empty())
    check(false, "the program of {} is wrong: {}", chosen, faults.front());

  StepTotals predicted;
  if (first) {
    require_dtype(system, DType::kF32);
    predicted = totals(simulate(set, SystemCostModel(system, set)), plan.mesh);
  }
  Batches data = rank_0_first(mpi.world(), [&] {
    return Batches(open_tokens(options.data, static_cast<int>(config.dimensions.vocab_size), default_cache_folder()),
                   {.microbatches = set.step.microbatches,
                    .dp = plan.mesh.dp,
                    .batch = set.step.microbatch,
                    .tokens = set.step.tokens});
  });

  const std::int64_t steps = options.steps_of(config);
  if (first && !options.started && !options.rehearse) keep_record(published, plan, system.name);
  if (first && !options.config.json) {
    std::cout << fmt::format("{}: {} parameters, {} tokens a step, {} ranks, f32\n{}\n", config.name,
                             with_commas(count_parameters(config.model).total()),
                             with_commas(set.step.sequences * set.step.tokens), plan.mesh.ranks(), step_heading());
  }
  const auto on_step = [&](const TrainedStep& s) {
    const StepLine line{.step = s.step + 1,
                        .steps = steps,
                        .loss = s.result.loss,
                        .cross_entropy = s.result.cross_entropy,
                        .balance_loss = s.result.balance,
                        .gradient_norm = s.result.gradient_norm,
                        .learning_rate = s.learning_rate,
                        .tokens_per_s = static_cast<double>(set.step.sequences * set.step.tokens) / s.seconds,
                        .predicted_step_time = predicted.step_time,
                        .step_time = {s.seconds},
                        .peak_memory = {s.peak_bytes}};
    std::cout << (options.config.json ? to_json(line).dump() : step_text(line))
              << std::endl;  // flushed: people watch it
  };
  const TrainSummary summary = train(set, config.model, config, mpi.world(), data,
                                     {.steps = steps, .timeline = !options.trace.empty()}, on_step);
  return !first || summarise(options, plan, set, steps, predicted, summary) ? kDone : kInternalError;
}

// Whether the plan's program, in f32, fits on the system's devices and, all ranks together, on this machine. Says why not.
bool fits(const TrainingConfig& config, const System& system, const Plan& plan) {
  const Problem problem = make_problem(config, system, DType::kF32);
  const ProgramSet set = lower(problem.model, problem.shape, plan);
  const auto gib = [](double bytes) { return bytes / static_cast<double>(kGiB); };
  const double needed = static_cast<double>(memory_needed(set).value),
               usable = static_cast<double>(system.usable_memory.value);
  if (needed > usable) {
    log_warning(fmt::format("{} needs {:.2f} GiB on a device in f32, {} has {:.2f} GiB usable", to_text(plan),
                            gib(needed), system.name, gib(usable)));
    return false;
  }
  double all = 0;
  for (const Program& stage : set.stages) all += static_cast<double>(stage.arena_bytes) * plan.mesh.dp * plan.mesh.tp;
  const double here = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
  if (all > here) {
    log_warning(
        fmt::format("the {} ranks of {} need {:.1f} GiB together, this machine has {:.1f}: --rehearse runs the same "
                    "program at reduced size",
                    plan.mesh.ranks(), to_text(plan), gib(all), gib(here)));
    return false;
  }
  return true;
}

int run(const Options& options, const Invocation& invocation) {
  if (is_started_rank()) return run_rank(options, invocation);
  const TrainingConfig config = read(options, false);
  if (print_config(options.config, config)) return kDone;
  const System system = load_any_system(options.system.system, invocation);
  require_dtype(system, DType::kF32);
  const ChosenPlan chosen = choose_plan(options.plan, true, config, system, options.system.database);
  if (chosen.none_fits) {
    log_warning(
        fmt::format("no plan of {} fits on {}: `meshwright search` says by how much", config.name, system.name));
    return kNothingFeasible;
  }
  if (!options.data.empty() && !std::filesystem::exists(options.data))
    throw InputError(Diagnostic{"--data", "", Json(options.data).dump(-1, ' ', false, Json::error_handler_t::replace),
                                "a text file, a .npy file, or a folder of .npy files",
                                "there is nothing of this name"});
  if (!options.rehearse && !fits(config, system, chosen.plan)) return kNothingFeasible;
  if (!options.trace.empty() && !std::ofstream(options.trace, std::ios::app))
    throw InputError(Diagnostic{"--trace", "", options.trace, "a file that can be written", "make its folder first"});
  return start_ranks(options, config, system, chosen, invocation);
}

}  // namespace

void add_run(CLI::App& app, Invocation& invocation) {
  CLI::App* command =
      app.add_subcommand("run", "Execute a plan's program over MPI: train, or rehearse at reduced size");
  const auto options = std::make_shared<Options>();
  add_config_options(*command, options->config);
  add_system_options(*command, options->system);
  add_plan_option(
      *command, options->plan,
      "best (of those that can be run), a mesh alone as 8x2x2 (its best), an id from a table, published, or a "
      "plan as 8x2x2,schedule=1f1b,microbatches=8,fsdp=3,recompute=full");
  command->add_flag("--rehearse", options->rehearse,
                    "At reduced width, vocabulary, sequence length and batch: same mesh, layers, microbatches and "
                    "collectives; 3 steps");
  command
      ->add_option("--data", options->data,
                   "Text, a .npy file of tokens, or a folder of them; without it the World English Bible")
      ->type_name("FILE");
  add_integer_option(
      *command, invocation, "--steps", {1, std::int64_t{1} << 40}, [=](std::int64_t n) { options->steps = n; },
      "Steps to run; without it training_steps");
  add_integer_option(
      *command, invocation, "--seed", {.min = 0}, [=](std::int64_t n) { options->seed = n; },
      "The same as --set seed=N");
  command
      ->add_option("--trace", options->trace,
                   "Write the last step, as measured, as a Chrome trace (.json, or .json.gz)")
      ->type_name("FILE");
  command->add_flag("--started", options->started, "")->group("");
  command->footer(
      "Ranks are started with mpirun, one per device of the plan; under your own mpirun -n N this command is one of "
      "them.\n"
      "Without a stored search of this configuration and system, --plan best searches first. Exit code 3: no plan "
      "fits.\n"
      "With --json: a line per step, then one with predicted and counted.\n"
      "Examples:\n"
      "  meshwright run configs/moe-small.json --system local --plan best\n"
      "  meshwright run configs/moe-small.json --system local --plan 2x1x1,microbatches=2 --steps 50 --data my.txt\n"
      "  meshwright run configs/jaxformer-moe1b.json --system v4:2x4x4 --plan best --rehearse\n"
      "  mpirun -n 2 meshwright run configs/moe-small.json --system local --plan 1x2x1,microbatches=4");
  command->callback([=, &invocation] { invocation.run = [=, &invocation] { return run(*options, invocation); }; });
}

}  // namespace meshwright
