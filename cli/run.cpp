// meshwright run: executes a plan's program on real tensors, over MPI.
//
// The process that the user calls chooses the plan (searching first where it must) and starts one rank per device, which
// are this same command under mpirun with the plan written out. Under a user's own mpirun, rank 0 chooses for all.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <memory>
#include <optional>

#include "cli/command_line.h"
#include "cli/inputs.h"
#include "cli/rehearsal.h"
#include "cli/run_record.h"
#include "cli/terminal.h"
#include "executor/calibrate.h"
#include "executor/checkpoint/weights.h"
#include "executor/comm/rank_0_first.h"
#include "executor/data/batches.h"
#include "executor/data/cache.h"
#include "executor/data/token_source.h"
#include "executor/diverged.h"
#include "executor/launch/launcher.h"
#include "executor/launch/mpi_session.h"
#include "executor/launch/output.h"
#include "executor/limits.h"
#include "executor/train.h"
#include "model/accounting.h"
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
  std::string weights, save_weights;  // a file or folder to start from, a folder for what was trained
  std::optional<std::int64_t> steps;
  std::optional<std::int64_t> eval_every, eval_steps;
  bool rehearse = false;
  double hang_timeout_s = 60;
  bool started = false;                     // a rank that this command started
  std::optional<std::int64_t> stored_plan;  // the plan's row in the database, if it is stored
  std::string record;                       // the folder of the run's record, if it keeps one
  int cores = 0;  // that the ranks share, which one that is bound to a core does not see; 0: unknown

  std::int64_t steps_of(const TrainingConfig& training) const {
    constexpr std::int64_t kRehearsalSteps = 3;
    return steps.value_or(rehearse ? kRehearsalSteps : training.training_steps);
  }
};

TrainingConfig read(const Options& options, bool quiet) { return load_config(options.config, quiet); }

// What a run computes in; state is f32. Throws InputError for what can't be run, or predicted on this system.
DType run_type(const TrainingConfig& config, const System& system) {
  const DType dtype = config.model_dtype == "bfloat16"  ? DType::kBF16
                      : config.model_dtype == "float16" ? DType::kF16
                                                        : DType::kF32;
  if (const auto why = why_not_runnable(dtype))
    throw InputError(Diagnostic{config.name, config.has_plan ? "model_config.model_dtype" : "training.dtype",
                                fmt::format("\"{}\"", config.model_dtype), "a type that can be run",
                                "not runnable yet: " + *why});
  require_dtype(system, dtype);
  return dtype;
}

// The plan by which batches of config.evaluation_sequences() are evaluated: that of the training, with as few microbatches as are
// no larger than a step's. Throws InputError where dp does not divide such a batch.
Plan evaluation_plan(const TrainingConfig& config, const Plan& plan) {
  const std::int64_t sequences = config.evaluation_sequences();
  if (sequences % plan.mesh.dp)
    throw InputError(Diagnostic{
        config.name, "data_config.val_batch_size", fmt::format("{}", config.val_batch_size),
        fmt::format("a batch that dp {} divides: it is val_batch_size * dp of the configuration = {} sequences",
                    plan.mesh.dp, sequences),
        "--set data_config.val_batch_size=" + fmt::format("{}", config.val_batch_size * plan.mesh.dp)});
  const std::int64_t of_shard = sequences / plan.mesh.dp;
  Plan evaluation = plan;
  evaluation.microbatches = evaluation_microbatches(of_shard, config.sequences / plan.mesh.dp / plan.microbatches);
  if (const auto too_many = unschedulable(plan.mesh.pp, evaluation.microbatches))
    throw InputError(Diagnostic{config.name, "data_config.val_batch_size", fmt::format("{}", config.val_batch_size),
                                fmt::format("{} microbatches", too_many->hint), too_many->detail});
  return evaluation;
}

ProgramSet lower_evaluation(const TrainingConfig& config, const Problem& problem, const Plan& plan,
                            const ProgramSet& trained) {
  TrainingShape shape = problem.shape;
  shape.sequences = config.evaluation_sequences();
  return lower_evaluation(problem.model, shape, evaluation_plan(config, plan), trained);
}

struct RunData {
  Batches training;
  std::optional<Batches> validation;
  std::int64_t validation_batches = 0;  // of an evaluation
};

// Of 20 tokens of the data the last is held out where a run evaluates, and never trained on. (5 %, as in the causal language
// modelling examples of Hugging Face's transformers.)
constexpr std::int64_t kOneOf = 20;

// The data of a plan's steps and evaluations. Throws InputError for what can be known before they are used: too few, or, if
// `check`, a token anywhere that is none.
RunData open_data(const Options& options, const TrainingConfig& config, const Plan& plan, bool check, bool warn) {
  const Cache cache(default_cache_folder(), warn ? log_warning : std::function<void(const std::string&)>());
  TokenSource tokens = open_tokens(options.data, static_cast<int>(config.model.vocab()), cache);
  const auto shape = [&](std::int64_t sequences, int microbatches) {
    return BatchShape{.microbatches = microbatches,
                      .dp = plan.mesh.dp,
                      .batch = sequences / microbatches / plan.mesh.dp,
                      .tokens = config.sequence_length};
  };
  std::optional<Batches> validation;
  std::int64_t batches = 0;
  if (options.eval_every) {
    const Plan evaluation = evaluation_plan(config, plan);
    const std::int64_t sequences = config.evaluation_sequences(), batch = sequences * config.sequence_length,
                       held_out = tokens.all_tokens() / kOneOf;
    const auto too_short = [&](std::string allowed, std::string hint) {
      return InputError(
          Diagnostic{"--eval-every", "",
                     fmt::format("{} tokens held out, the last {} % of --data", with_commas(held_out), 100 / kOneOf),
                     std::move(allowed), std::move(hint)});
    };
    if (held_out < batch + 1)
      throw too_short(fmt::format("{} or more: a batch of {} sequences of {} tokens, and the target of the last",
                                  with_commas(batch + 1), sequences, config.sequence_length),
                      "give more data, or evaluate fewer or shorter sequences at once");
    validation.emplace(tokens.split_off(held_out), shape(sequences, evaluation.microbatches));
    const std::int64_t there = validation->steps_per_epoch();
    if (options.eval_steps.value_or(0) > there)
      throw too_short(fmt::format("enough for --eval-steps {}: they have {} batches of {} tokens", *options.eval_steps,
                                  there, with_commas(batch)),
                      fmt::format("give more data, or --eval-steps {} or less", there));
    batches = options.eval_steps.value_or(std::min(config.eval_steps, there));
    if (check)
      log_info(
          fmt::format("the last {} % of the data, {} tokens, are held out: an evaluation takes {} of their {} "
                      "batches of {} sequences",
                      100 / kOneOf, with_commas(held_out), batches, there, sequences));
  }
  Batches training(std::move(tokens), shape(config.sequences, plan.microbatches));
  ProgressLine line;
  if (check) {
    const auto progress = [&](int shard) {
      line.show(fmt::format("checking shard {} of {}", shard + 1, training.shards()));
    };
    training.check(progress);
    if (validation) validation->check();
  }
  return {std::move(training), std::move(validation), batches};
}

// Whether the plan's programs fit on the system's devices and, all ranks together, on this machine. Says why not. Throws
// InputError for a program that can't be run at all.
bool fits(const Options& options, const TrainingConfig& config, const System& system, const Plan& plan) {
  const DType dtype = run_type(config, system);
  const Problem problem = make_problem(config, system, dtype);
  std::vector<ProgramSet> sets{lower(problem.model, problem.shape, plan)};
  if (const auto why = why_not_runnable(sets.front()))
    throw InputError(Diagnostic{"--plan", "", to_text(plan), "a plan that can be run", "not runnable yet: " + *why});
  if (options.eval_every) sets.push_back(lower_evaluation(config, problem, plan, sets.front()));
  // A rank keeps the state once; what programs have beside it takes the same memory in turn.
  Bytes needed, all;
  for (const ProgramSet& set : sets) needed = std::max(needed, memory_needed(set));
  if (needed > system.usable_memory) {
    log_warning(fmt::format("{} needs {} GiB on a device in {}, {} has {} GiB usable", to_text(plan), gib(needed),
                            name(dtype), system.name, gib(system.usable_memory)));
    return false;
  }
  for (std::size_t stage = 0; stage < sets.front().stages.size(); ++stage) {
    Bytes most;
    for (const ProgramSet& set : sets) most = std::max(most, Bytes{set.stages[stage].arena_bytes});
    all += most * (plan.mesh.dp * plan.mesh.tp);
  }
  if (const Bytes here{available_memory()}; all > here) {
    log_warning(
        fmt::format("the {} ranks of {} need {} GiB together, this machine has {}: --rehearse runs the same program at "
                    "reduced size",
                    plan.mesh.ranks(), to_text(plan), gib(all), gib(here)));
    return false;
  }
  return true;
}

// ---- weights -------------------------------------------------------------------------------------------------------------

// How files hold the model's weights. Throws InputError for a model that none do, and in a rehearsal, whose model is another.
WeightMap map_of_weights(std::string_view flag, const Options& options, const TrainingConfig& config) {
  const auto refuse = [&](std::string found, std::string allowed, std::string hint) {
    throw InputError(Diagnostic{std::string(flag), "", std::move(found), std::move(allowed), std::move(hint)});
  };
  if (options.rehearse)
    refuse("--rehearse", "a run at full size", "a rehearsal's model is smaller than the one of the weights");
  if (config.family.empty())
    refuse(options.config.file, "a Hugging Face configuration (config.json)",
           "weights are read and written by the names of such a model's tensors; this configuration's have none");
  return weight_map(config.family, config.model);
}

// The weights that --weights names, their header read and checked against the model: all names and shapes. Null without it.
// Throws InputError with all that does not fit.
std::shared_ptr<WeightsFile> open_weights(const Options& options, const TrainingConfig& config) {
  if (options.weights.empty()) return nullptr;
  return std::make_shared<WeightsFile>(options.weights, map_of_weights("--weights", options, config));
}

// Throws InputError if trained weights can't be written where --save-weights says: known before they are trained.
void expect_weights_can_be_saved(const Options& options, const TrainingConfig& config) {
  if (options.save_weights.empty()) return;
  const WeightMap map = map_of_weights("--save-weights", options, config);
  const std::filesystem::path file = weights_file_in(options.save_weights);
  std::error_code unknown;
  if (std::filesystem::exists(file, unknown))
    throw InputError(Diagnostic{"--save-weights", "", options.save_weights, "a folder without weights",
                                file.string() + " is there, and is not written over"});
  expect_writable(file, 1);
  std::int64_t bytes = 0;
  for (const CheckpointTensor& tensor : map.tensors) bytes += elements(tensor.shape) * size_of(DType::kF32);
  const auto space = std::filesystem::space(options.save_weights, unknown);
  if (!unknown && space.available < static_cast<std::uintmax_t>(bytes))
    throw InputError(Diagnostic{
        "--save-weights", "", options.save_weights, fmt::format("a folder with room for {} GiB", gib({bytes})),
        fmt::format("its disk has {} GiB left", gib({static_cast<std::int64_t>(space.available)}))});
}

// What can be known before ranks work, by the process that the user calls or, under the user's own mpirun, by rank 0. False:
// the plan does not fit, which is said. Throws InputError for what can't be read or written.
bool can_run(const Options& options, const TrainingConfig& config, const System& system, const Plan& plan) {
  if (!options.rehearse && !fits(options, config, system, plan)) return false;
  if (const int ranks = plan.mesh.ranks(), cores = available_cores(); ranks > cores && options.cores == 0)
    log_warning(fmt::format("{} ranks share {} cores: step times say nothing about {}", ranks, cores, system.name));
  if (!options.rehearse && row_of(plan, config, system, options.system.database))
    Store(options.system.database);  // refused now, if it can't be written at the end
  open_weights(options, config);
  expect_weights_can_be_saved(options, config);
  if (!options.trace.empty()) {
    std::error_code unknown;
    const bool was_there = std::filesystem::exists(options.trace, unknown);
    if (!std::ofstream(options.trace, std::ios::app))
      throw InputError(Diagnostic{"--trace", "", options.trace, "a file that can be written", "make its folder first"});
    if (!was_there) std::filesystem::remove(options.trace, unknown);
  }
  return true;
}

// ---- the process that the user calls -----------------------------------------------------------------------------------

int start_ranks(const Options& options, const TrainingConfig& config, const System& system, const ChosenPlan& chosen,
                const Invocation& invocation) {
  const Plan& plan = chosen.plan;
  const int ranks = plan.mesh.ranks(), cores = available_cores();
  log_info(fmt::format("{}{} on {} ranks", options.rehearse ? "rehearsing " : "", to_text(plan), ranks));
  // Each value in one word with its flag, and the file by a path that has a folder: nothing that the user wrote can be
  // taken for an option, or for mpirun's separator ":".
  std::vector<std::string> command{invocation.command.front(), "run", "--started"};
  const auto add = [&](std::string_view flag, const std::string& value) {
    command.push_back(fmt::format("{}={}", flag, value));
  };
  command.push_back((std::filesystem::path(".") / options.config.file).string());
  add("--system", options.system.system);
  add("--plan", to_text(plan));
  add("--db", options.system.database);
  add("--hang-timeout", fmt::format("{}", options.hang_timeout_s));
  for (const std::string& assignment : options.config.overrides) add("--set", assignment);
  if (!options.data.empty()) add("--data", options.data);
  if (!options.trace.empty()) add("--trace", options.trace);
  if (!options.weights.empty()) add("--weights", options.weights);
  if (!options.save_weights.empty()) add("--save-weights", options.save_weights);
  if (options.steps) add("--steps", fmt::format("{}", *options.steps));
  if (options.eval_every) add("--eval-every", fmt::format("{}", *options.eval_every));
  if (options.eval_steps) add("--eval-steps", fmt::format("{}", *options.eval_steps));
  const Shortcuts& shortcuts = options.config.shortcuts;
  if (shortcuts.batch) add("--batch", fmt::format("{}", *shortcuts.batch));
  if (shortcuts.tokens) add("--tokens", fmt::format("{}", *shortcuts.tokens));
  if (!shortcuts.dtype.empty()) add("--dtype", shortcuts.dtype);
  if (shortcuts.seed) add("--seed", fmt::format("{}", *shortcuts.seed));
  if (options.rehearse) command.emplace_back("--rehearse");
  if (options.config.json) command.emplace_back("--json");
  if (!options.rehearse) {
    const RunRecord record(config, plan, system.name, invocation.command);
    log_info(fmt::format("configuration, plan, command and metrics are kept in {}", record.folder().string()));
    add("--record", record.folder().string());
  }
  add("--cores", fmt::format("{}", cores));
  // The ranks write into mpirun's pipes, and don't see the window.
  setenv("COLUMNS", fmt::format("{}", columns(STDOUT_FILENO)).c_str(), 1);
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

// Stores a run's figures. Until they are, whatever ends the wait for the database, they are kept in a file of the run's
// record, and where even that can't be made, said in the log. Throws the database's InputError.
void store_run(const Options& options, const Plan& plan, const StoredRun& run) {
  constexpr std::chrono::seconds kPatience{30};  // what is lost here has taken long
  const auto figures = [](const RunFigures& f) {
    OrderedJson json;
    visit_fields(f, [&](std::string_view name, const auto& value) { json[std::string(name)] = value; });
    return json;
  };
  const OrderedJson row{{"database", options.system.database},
                        {"plan_id", plan_id(plan)},
                        {"plan", to_text(plan)},
                        {"steps", run.steps},
                        {"predicted", figures(run.predicted)},
                        {"measured", figures(run.measured)}};
  const std::filesystem::path file = std::filesystem::path(options.record) / "not-stored.json";
  bool kept = true;
  try {
    write_atomically(file, row.dump(2) + '\n');
  } catch (const InputError&) {
    kept = false;
  }
  try {
    Store(options.system.database, Store::Access::kWrite, kPatience).save(run);
  } catch (const InputError&) {
    log_warning(fmt::format("the run's figures are not in {}{}", options.system.database,
                            kept ? ", but in " + file.string() : ": " + row.dump()));
    throw;
  }
  std::error_code gone;
  std::filesystem::remove(file, gone);
}

// Of a machine that was measured with this program's own kernels, so that its peak and times are those of runs on it.
bool is_measured(const System& system) { return std::holds_alternative<MeasuredCompute>(system.compute); }

// FLOP/s of products of this size, as calibrated. Precondition: is_measured(system).
double calibrated_rate(const System& system, double smallest_dimension) {
  const auto& kinds = std::get<MeasuredCompute>(system.compute).kinds;
  const auto kind = kinds.find(kind_of(Gemm{}));
  if (kind == kinds.end() || !kind->second.rates.contains(DType::kF32)) return system.peak(DType::kF32).value;
  return kind->second.rates.at(DType::kF32).at(smallest_dimension);
}

// Says so if the run will take long here. On a machine that the system does not describe, only the FLOPs say how long at
// least, if this one was calibrated.
void warn_of_duration(const System& system, DType dtype, const StepTotals& predicted, std::int64_t steps, int ranks) {
  Seconds step = predicted.step_time;
  if (!is_measured(system)) {
    try {
      std::error_code unknown;
      if (!std::filesystem::exists(calibration_file(), unknown)) return;
      const System here = load_system_file(calibration_file());
      const DType known = here.computes(dtype) ? dtype : DType::kF32;
      step = {predicted.flops / (std::min(ranks, here.devices()) * here.peak(known).value)};
    } catch (const InputError&) {  // this run does not need it
      return;
    }
  }
  if (const std::string warning = duration_warning(step, steps, !is_measured(system)); !warning.empty())
    log_warning(warning);
}

// Why predicted and measured step times are far apart; nothing if they aren't. Collective, and the same on every rank but
// for `predicted`, which rank 0 knows.
std::vector<std::string> why_apart(const MpiSession& mpi, int cores, const System& system, Seconds predicted,
                                   const TrainSummary& summary) {
  const Seconds measured{summary.median_step_s};
  const bool apart =
      !mpi.from_rank_0([&] { return std::string(far_apart(predicted, measured) ? "apart" : ""); }).empty();
  if (!apart) return {};
  RunConditions conditions{.predicted_for = system.device,
                           .ran_on = this_device(),
                           .ranks = mpi.ranks(),
                           .cores = cores ? cores : mpi.ranks(),
                           .processor_share = summary.processor_share};
  if (is_measured(system)) {
    const ProductRate now = product_rate(mpi.world());
    conditions.rate_now = now.flops_per_s;
    conditions.calibrated_rate = calibrated_rate(system, now.smallest_dimension);
  }
  return reasons_apart(predicted, measured, conditions);
}

// What rank 0 says after the last step. False if the program that ran is not the one that was predicted.
bool summarise(const Options& options, const TrainingConfig& config, const Plan& plan, const ProgramSet& set,
               std::int64_t steps, StepTotals predicted, const TrainSummary& summary,
               const std::vector<std::string>& why) {
  predicted.flops = flops_of_routed_rows(set, summary.ranks);
  const StepReport report = counted_report(summary);
  const StepTotals counted = totals(report, plan.mesh);
  OrderedJson json{{"predicted", to_json(predicted)}, {"counted", to_json(counted)}};
  if (!why.empty()) json["why_apart"] = why;
  if (summary.last_evaluation) json["validation_loss"] = summary.last_evaluation->loss;
  // Each of these is kept, whatever becomes of the others; the first failure is thrown in the end. The database comes last, as
  // it can be locked.
  std::exception_ptr failure;
  const auto keep = [&failure](const auto& write) {
    try {
      write();
    } catch (const std::exception& error) {
      if (failure) log_warning(error.what());
      if (!failure) failure = std::current_exception();
    }
  };
  keep([&] {
    if (options.save_weights.empty()) return;
    const std::filesystem::path file = weights_file_in(options.save_weights);
    save_weights(file, map_of_weights("--save-weights", options, config), DType::kF32, summary.weights);
    log_info(fmt::format("the trained weights are in {}", file.string()));
  });
  keep([&] {
    if (options.config.json) {
      print(json.dump() + '\n');
      return;
    }
    print(
        fmt::format("\nloss {:.4f} -> {:.4f} ({:+.1f} %) in {} steps{}\n", summary.first_loss, summary.last_loss,
                    (summary.last_loss / summary.first_loss - 1) * 100, steps,
                    summary.last_evaluation ? fmt::format("; validation {:.4f}", summary.last_evaluation->loss) : ""));
    print(
        fmt::format("\nPredicted against counted{}\n{}{} (FLOPs at the rows that were routed; of the "
                    "arena, its size against the highest address touched).\n",
                    options.rehearse ? ", of the program at reduced size" : "",
                    comparison_report(predicted, counted, columns(STDOUT_FILENO),
                                      options.rehearse ? Times::kLeaveOut : Times::kCompare),
                    counts_equal(predicted, counted) ? "All counts are equal" : "The counts differ"));
    for (const std::string& reason : why) print("Predicted and measured part: " + reason + ".\n");
  });
  keep([&] {
    if (options.record.empty()) return;
    json["steps"] = steps;
    json["first_loss"] = summary.first_loss;
    json["last_loss"] = summary.last_loss;
    RunRecord(options.record).finish(json);
  });
  keep([&] {
    if (options.trace.empty()) return;
    write_trace_file(options.trace, report, set, {.title = fmt::format("{}, measured", to_text(plan))});
    log_info(fmt::format("{}: the last step, measured; open it in https://ui.perfetto.dev", options.trace));
  });
  keep([&] {
    if (!options.stored_plan || options.rehearse) return;
    const auto figures = [](const StepTotals& t) {
      return RunFigures{t.step_time.value, t.flops, all_bytes(t.traffic), t.arena_bytes.value};
    };
    store_run(options, plan, {*options.stored_plan, "", steps, figures(predicted), figures(counted)});
  });
  if (failure) std::rethrow_exception(failure);
  if (!counts_equal(predicted, counted)) log_warning("the counts differ from the prediction: this is an error of ours");
  return counts_equal(predicted, counted);
}

int run_rank(Options options, const Invocation& invocation) {
  const MpiSession mpi;
  const Watchdog watchdog(mpi.heartbeat(), mpi.rank(), options.hang_timeout_s);
  const bool first = mpi.rank() == 0;
  const TrainingConfig published = read(options, options.started || !first);
  if (options.config.print) {
    if (first) print_config(options.config, published);
    return kDone;
  }
  const System system = load_any_system(options.system.system, invocation);
  const std::string chosen = mpi.from_rank_0([&]() -> std::string {
    const ChosenPlan plan =
        choose_plan(options.plan, true, published, system, options.system.database, options.system.headroom);
    if (plan.none_fits || (!options.started && !can_run(options, published, system, plan.plan))) return "";
    options.stored_plan = row_of(plan.plan, published, system, options.system.database);
    return to_text(plan.plan);
  });
  if (chosen.empty()) {
    if (first) log_warning(fmt::format("no plan of {} fits on {}", published.name, system.name));
    return kNothingFeasible;
  }
  Plan plan = parse_plan(chosen);
  expect_ranks(mpi.ranks(), plan.mesh.ranks(), chosen);
  mpi.heartbeat().set_mesh(plan.mesh);

  // Stages are those of the full size: the same layers on the same ranks.
  const DType dtype = run_type(published, system);
  const Problem full = make_problem(published, system, dtype);
  if (plan.mesh.pp > 1) plan.layers = stage_layers(full.model, full.shape, plan);
  const TrainingConfig config = options.rehearse ? rehearsal(published, plan) : published;
  const Problem problem = make_problem(config, system, dtype);
  const ProgramSet set = lower(problem.model, problem.shape, plan);
  if (const auto faults = verify(set); !faults.empty())
    check(false, "the program of {} is wrong: {}", chosen, faults.front());

  std::optional<ProgramSet> evaluation;
  if (options.eval_every) {
    evaluation = lower_evaluation(config, problem, plan, set);
    if (const auto faults = verify(*evaluation); !faults.empty())
      check(false, "the evaluation of {} is wrong: {}", chosen, faults.front());
  }

  StepTotals predicted;
  if (first) predicted = totals(simulate(set, SystemCostModel(system, set)), plan.mesh);
  RunData data = rank_0_first(mpi.world(), [&] {
    // Of the ranks that were started for the user, none need look: the process that started them has.
    return open_data(options, config, plan, first && !options.started, first);
  });

  const std::int64_t steps = options.steps_of(config);
  if (first && !options.started && !options.rehearse) {
    options.record = RunRecord(published, plan, system.name, invocation.command).folder().string();
    log_info(fmt::format("configuration, plan, command and metrics are kept in {}", options.record));
  }
  if (first) warn_of_duration(system, dtype, predicted, steps, plan.mesh.ranks());
  const int width = columns(STDOUT_FILENO);
  if (first && !options.config.json) {
    print(fmt::format("{}: {} parameters, {} tokens a step, {} ranks, {}\n{}\n", config.name,
                      with_commas(count_parameters(config.model).total()),
                      with_commas(set.step.sequences * set.step.tokens), plan.mesh.ranks(), name(dtype),
                      step_heading(steps, width)));
  }
  const double flops = model_flops(config.model, set.step.tokens, set.step.sequences);
  double seconds_so_far = 0;  // of all steps but the first, which warms up
  RunSoFar so_far{.steps = steps};
  if (first) mpi.heartbeat().set_run(so_far);
  const auto on_step = [&](const TrainedStep& s) {
    so_far.done = s.step + 1;
    so_far.last_loss = s.result.loss;
    if (s.step == 0) so_far.first_loss = s.result.loss;
    mpi.heartbeat().set_run(so_far);
    if (s.step > 0) seconds_so_far += s.seconds;
    const double pace = s.step > 0 ? seconds_so_far / static_cast<double>(s.step) : s.seconds;
    StepLine line{.step = s.step + 1,
                  .steps = steps,
                  .loss = s.result.loss,
                  .cross_entropy = s.result.cross_entropy,
                  .balance_loss = s.result.balance,
                  .gradient_norm = s.result.gradient_norm,
                  .learning_rate = s.learning_rate,
                  .tokens_per_s = static_cast<double>(set.step.sequences * set.step.tokens) / s.seconds,
                  .predicted_step_time = predicted.step_time,
                  .step_time = {s.seconds},
                  .time_left = {pace * static_cast<double>(steps - s.step - 1)},
                  .peak_memory = {s.peak_bytes}};
    if (s.evaluation)
      line.validation = {
          s.evaluation->loss, s.evaluation->cross_entropy, s.evaluation->balance, {s.evaluation->seconds}};
    if (is_measured(system)) line.mfu = flops / (s.seconds * plan.mesh.ranks() * system.peak(dtype).value);
    if (!options.record.empty()) RunRecord(options.record).add_step(to_json(line));
    print((options.config.json ? to_json(line).dump() : step_text(line, width)) + '\n');
  };
  TrainSummary summary;
  try {
    TrainOptions training{.steps = steps,
                          .timeline = !options.trace.empty(),
                          .warn = log_warning,
                          .keep_weights = !options.save_weights.empty()};
    if (const auto weights = open_weights(options, config))
      training.weights = [weights](int parameter, std::int64_t begin, std::int64_t n, auto* out) {
        weights->read(parameter, begin, n, out);
      };
    if (evaluation)
      training.evaluation = {&*evaluation, &*data.validation, *options.eval_every, data.validation_batches};
    summary = train(set, config.model, config, mpi.world(), data.training, training, on_step);
  } catch (const Diverged& diverged) {  // on all ranks
    if (first && !options.record.empty()) {
      const Diverged::Facts& facts = diverged.facts();
      RunRecord(options.record)
          .finish({{"diverged",
                    {{"step", facts.step + 1},
                     {"tensor", facts.tensor},
                     {"rank", facts.rank},
                     {"stage", facts.stage},
                     {"tensors", facts.tensors},
                     {"of_tensors", facts.of_tensors}}}});
    }
    throw;
  }
  std::vector<std::string> why;
  if (!options.rehearse) why = why_apart(mpi, options.cores, system, predicted.step_time, summary);
  return !first || summarise(options, config, plan, set, steps, predicted, summary, why) ? kDone : kInternalError;
}

int run(const Options& options, const Invocation& invocation) {
  if (options.eval_steps && !options.eval_every)
    throw InputError(Diagnostic{"--eval-steps", "", fmt::format("{}", *options.eval_steps), "beside --eval-every",
                                "a run evaluates where --eval-every N is given"});
  if (is_started_rank()) return run_rank(options, invocation);
  refuse_foreign_launcher();
  const TrainingConfig config = read(options, false);
  if (print_config(options.config, config)) return kDone;
  const System system = load_any_system(options.system.system, invocation);
  run_type(config, system);
  const ChosenPlan chosen =
      choose_plan(options.plan, true, config, system, options.system.database, options.system.headroom);
  if (chosen.none_fits) {
    log_warning(
        fmt::format("no plan of {} fits on {}: `meshwright search` says by how much", config.name, system.name));
    return kNothingFeasible;
  }
  if (!can_run(options, config, system, chosen.plan)) return kNothingFeasible;
  open_data(options, options.rehearse ? rehearsal(config, chosen.plan) : config, chosen.plan, true, true);
  return start_ranks(options, config, system, chosen, invocation);
}

}  // namespace

void add_run(CLI::App& app, Invocation& invocation) {
  CLI::App* command =
      app.add_subcommand("run", "Execute a plan's program over MPI: train, or rehearse at reduced size");
  const auto options = std::make_shared<Options>();
  add_config_options(*command, invocation, options->config);
  add_system_options(*command, invocation, options->system);
  add_plan_option(
      *command, options->plan,
      "best (of those that can be run), a mesh alone as 8x2x2 (its best), an id from a table, published, or a "
      "plan as 8x2x2,schedule=1f1b,microbatches=8,fsdp=3,recompute=full");
  command->add_flag("--rehearse", options->rehearse,
                    "At reduced width, vocabulary, sequence length and batch: same mesh, layers, microbatches and "
                    "collectives; 3 steps");
  command
      ->add_option("--data", options->data,
                   "UTF-8 text, a .npy file of tokens, or a folder of .npy files; without it the World English Bible")
      ->type_name("FILE");
  command
      ->add_option("--weights", options->weights,
                   "Start from these: a .safetensors file, an index of several, or a folder as Hugging Face has it")
      ->type_name("FILE");
  command
      ->add_option("--save-weights", options->save_weights,
                   "Write the trained weights into this folder, by the same names and in float32")
      ->type_name("FOLDER");
  add_integer_option(
      *command, invocation, "--steps", {1, std::int64_t{1} << 40}, [=](std::int64_t n) { options->steps = n; },
      "Steps to run; without it training_steps");
  add_integer_option(
      *command, invocation, "--eval-every", {1, std::int64_t{1} << 40},
      [=](std::int64_t n) { options->eval_every = n; },
      "Hold out the last 5 % of the data, and report the loss on them after every so many steps and the last one");
  add_integer_option(
      *command, invocation, "--eval-steps", {1, std::int64_t{1} << 40},
      [=](std::int64_t n) { options->eval_steps = n; }, "Batches of an evaluation; without it eval_steps");
  add_integer_option(
      *command, invocation, "--seed", {.min = 0}, [=](std::int64_t n) { options->config.shortcuts.seed = n; },
      "Of initial weights and dropout");
  command
      ->add_option("--trace", options->trace,
                   "Write the last step, as measured, as a Chrome trace (.json, or .json.gz)")
      ->type_name("FILE");
  add_number_option(
      *command, invocation, "--hang-timeout", {.min = 0, .max = 1e9},
      [=](double seconds) { options->hang_timeout_s = seconds; },
      "End the run, and say which rank hangs and where, when no rank has finished an operation or a block of one for "
      "so long; 0: wait for ever")
      ->type_name("SECONDS")
      ->default_str(fmt::format("{}", options->hang_timeout_s));
  command->add_flag("--started", options->started, "")->group("");
  command->add_option("--record", options->record, "")->group("");
  command->add_option("--cores", options->cores, "")->group("");
  command->footer(
      "Ranks are started with mpirun, one per device of the plan; under your own mpirun -n N this command is one of "
      "them.\n"
      "Without a stored search of this configuration and system, --plan best searches first. Exit code 3: no plan "
      "fits;\n"
      "4: training diverged, see stderr.\n"
      "With --json: a line per step, then one with predicted and counted.\n"
      "Each run but a rehearsal keeps a folder of its own, OUTPUT_DIR/NAME/0001 and so on: configuration, plan,\n"
      "command line, metrics by step, summary.\n"
      "Ctrl-C ends the ranks and says how far the run came (exit code 130). Standard input is not read.\n"
      "Examples:\n"
      "  meshwright run configs/moe-small.json --system local --plan best\n"
      "  meshwright run configs/moe-small.json --system local --plan 2x1x1,microbatches=2 --steps 50 --data my.txt\n"
      "  meshwright run configs/jaxformer-moe1b.json --system v4:2x4x4 --plan best --rehearse\n"
      "  meshwright run configs/models/gpt2-124m.json --system local --weights gpt2/model.safetensors --save-weights "
      "out\n"
      "  mpirun -n 2 meshwright run configs/moe-small.json --system local --plan 1x2x1,microbatches=4");
  command->callback([=, &invocation] { invocation.run = [=, &invocation] { return run(*options, invocation); }; });
}

}  // namespace meshwright
