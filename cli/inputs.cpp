#include "cli/inputs.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <iostream>

#include "cli/interrupt.h"
#include "executor/data/cache.h"
#include "executor/launch/launcher.h"
#include "model/input/content_key.h"
#include "planner/system_evaluator.h"
#include "reports/figures.h"

namespace meshwright {

// ---- options -----------------------------------------------------------------------------------------------------------

void add_config_options(CLI::App& command, ConfigOptions& options) {
  command.add_option("CONFIG", options.file, "Training configuration (JSON, JAXformer's schema)")->required();
  command
      .add_option("--set", options.overrides, "Override a key of the configuration, such as lr.max_lr=1e-3; repeatable")
      ->type_name("KEY=VALUE")
      ->take_all()
      ->expected(1);
  command.add_flag("--print-config", options.print, "Print the configuration with all overrides as JSON, and stop");
  command.add_flag("--json", options.json, "Data as JSON on stdout");
}

void add_system_options(CLI::App& command, SystemOptions& options) {
  command.add_option("--system", options.system, "Machine: a name and slice (v4:2x4x4), local, or a JSON file")
      ->type_name("SYSTEM")
      ->required();
  command.add_option("--db", options.database, "Database of searches and runs")
      ->type_name("FILE")
      ->capture_default_str();
}

void add_plan_option(CLI::App& command, std::string& plan, const std::string& meaning) {
  command.add_option("--plan", plan, meaning)->type_name("PLAN")->capture_default_str();
}

// ---- the log -----------------------------------------------------------------------------------------------------------

void log_info(const std::string& line) { spdlog::info("{}", line); }
void log_warning(const std::string& line) { spdlog::warn("{}", line); }

ProgressLine::ProgressLine() : visible_(isatty(STDERR_FILENO) != 0) {}

ProgressLine::~ProgressLine() {
  if (visible_) std::fputs("\r\x1b[K", stderr);
}

void ProgressLine::show(const std::string& text) {
  if (!visible_) return;
  std::fprintf(stderr, "\r\x1b[K%s", text.c_str());
  std::fflush(stderr);
}

// ---- inputs ------------------------------------------------------------------------------------------------------------

TrainingConfig load_config(const ConfigOptions& options, bool quiet) {
  TrainingConfig config = read_config(options.file, options.overrides);
  if (!quiet && !options.print)
    for (const std::string& note : config.notes) log_warning(note);
  return config;
}

bool print_config(const ConfigOptions& options, const TrainingConfig& config) {
  if (options.print) std::cout << to_json(config).dump(2) << '\n';
  return options.print;
}

std::filesystem::path calibration_file() {
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  // Of the whole machine: a rank that is bound to one core must find the same file.
  const std::string machine = fmt::format("{}, {} processors", host.data(), sysconf(_SC_NPROCESSORS_ONLN));
  return default_cache_folder() / fmt::format("local-{}.json", content_key(machine));
}

int calibrate_machine(const Invocation& invocation) {
  const int cores = available_cores();
  log_info(fmt::format("measuring this machine on {} {}, at most 30 s", cores, cores == 1 ? "core" : "cores"));
  return run_ranks(cores, {invocation.command.front(), "calibrate", "--write-to", calibration_file().string()});
}

System load_any_system(const std::string& spec, const Invocation& invocation) {
  constexpr std::string_view kLocal = "local";
  if (spec != kLocal && !spec.starts_with("local:")) return load_system(spec);
  const std::filesystem::path file = calibration_file();
  if (!std::filesystem::exists(file)) {
    if (is_started_rank())
      throw InputError(Diagnostic{"--system", "", "\"local\"", "a machine that was measured",
                                  "run `meshwright calibrate` once, without mpirun"});
    const int code = calibrate_machine(invocation);
    if (code > 128) throw Interrupted{code};
    if (code != kDone) throw std::runtime_error(fmt::format("the calibration ended with exit code {}", code));
  }
  return load_system_file(file, spec == kLocal ? "" : spec.substr(kLocal.size() + 1));
}

DType compute_type(const TrainingConfig& config, const System& system) {
  const DType own = config.model_dtype == "float32" ? DType::kF32 : DType::kBF16;  // both short types take 2 bytes
  if (system.computes(own)) return own;
  require_dtype(system, DType::kF32);
  return DType::kF32;
}

Problem make_problem(const TrainingConfig& config, const System& system, DType compute) {
  if (const auto missing = not_lowerable(config.model))
    throw InputError(Diagnostic{config.name, "model_config", "", "a model of latent attention",
                                fmt::format("{} can't be planned yet", *missing)});
  return {config.model,
          {.sequences = config.sequences_per_step(), .tokens = config.sequence_length, .compute = compute},
          system.devices()};
}

// ---- searches and plans ------------------------------------------------------------------------------------------------

SearchKey search_key(const TrainingConfig& config, const System& system) {
  return {to_json(config).dump(), system.name, describe(system)};
}

std::int64_t search_and_store(const TrainingConfig& config, const System& system, Store& store, SearchResult& result) {
  const DType compute = compute_type(config, system);
  const Problem problem = make_problem(config, system, compute);
  std::int64_t total = 0;
  {
    ProgressLine line;
    const Interruption interruption;
    result = search(
        problem, machine(system, compute),
        {.progress =
             [&](const SearchProgress& p) {
               total = p.total;
               line.show(fmt::format(
                   "{} of {} plans, {} too large{}", p.evaluated, p.total, p.too_large,
                   p.best ? fmt::format("; best {} ms: {}", milliseconds({p.best->step_time_s}), to_text(p.best->plan))
                          : ""));
             },
         .stop = [] { return interrupting_signal() != 0; }});
  }
  if (!result.complete)
    log_warning(
        fmt::format("interrupted after {} of {} plans: the best may be among the others", result.evaluated, total));
  return store.save(search_key(config, system), result);
}

namespace {

ChosenPlan best_plan(bool runnable_only, const TrainingConfig& config, const System& system, Store& store) {
  std::optional<std::int64_t> search = store.latest(search_key(config, system));
  if (!search) {
    log_info(fmt::format("no search of {} on {} is stored: searching first", config.name, system.name));
    SearchResult result;
    search = search_and_store(config, system, store, result);
    if (!result.complete) throw Interrupted{128 + interrupting_signal()};
  }
  const auto best = store.best(*search);
  const auto chosen = runnable_only ? store.best_runnable(*search) : best;
  if (!chosen) return {.none_fits = true};
  if (chosen->id != best->id) {
    log_warning(fmt::format("passed over {} ({} ms a step): {}", to_text(best->result.plan),
                            milliseconds({best->result.step_time_s}), best->result.not_runnable));
  }
  return {chosen->result.plan, chosen->id};
}

ChosenPlan stored_plan(std::int64_t id, const TrainingConfig& config, const System& system,
                       const std::filesystem::path& database) {
  std::optional<Store> store;
  if (std::filesystem::exists(database)) store.emplace(database, Store::Access::kRead);
  const auto stored = store ? store->plan(id) : std::nullopt;
  if (!stored) {
    throw InputError(Diagnostic{"--plan", "", fmt::format("{}", id),
                                fmt::format("the id of a plan in {}", database.string()),
                                "`meshwright search` stores plans and prints the id of the best"});
  }
  const auto search = store->search(stored->search);
  if (!search || search->key != search_key(config, system)) {
    throw InputError(Diagnostic{"--plan", "", fmt::format("{}", id),
                                "a plan that was found for this configuration and system",
                                fmt::format("it was found for another one on {}; give the plan itself: {}",
                                            search ? search->key.system : "?", to_text(stored->result.plan))});
  }
  return {stored->result.plan, id};
}

void refuse_illegal(const Plan& plan, const TrainingConfig& config, const System& system) {
  std::vector<Diagnostic> faults;
  const std::string text = to_text(plan);
  if (plan.mesh.ranks() != system.devices()) {
    faults.push_back({"--plan", "mesh", to_string(plan.mesh),
                      fmt::format("a mesh of {} ranks, the devices of {}", system.devices(), system.name),
                      fmt::format("this one has {}", plan.mesh.ranks())});
  }
  const Problem problem = make_problem(config, system, compute_type(config, system));
  for (const Illegality& why : illegalities(problem.model, problem.shape, plan))
    faults.push_back({"--plan", why.reason, text, why.detail, why.hint});
  if (!faults.empty()) throw InputError(std::move(faults));
}

}  // namespace

ChosenPlan choose_plan(const std::string& text, bool runnable_only, const TrainingConfig& config, const System& system,
                       const std::filesystem::path& database) {
  if (text == "best") {
    Store store(database);
    return best_plan(runnable_only, config, system, store);
  }
  const bool is_id = !text.empty() && text.size() <= 18 &&
                     std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (is_id) return stored_plan(std::stoll(text), config, system, database);
  const Plan plan = text == "published" ? published_plan(config) : parse_plan(text);
  refuse_illegal(plan, config, system);
  ChosenPlan chosen{plan, std::nullopt};
  if (std::filesystem::exists(database)) {
    const Store store(database, Store::Access::kRead);
    if (const auto search = store.latest(search_key(config, system)))
      if (const auto found = store.find(*search, plan)) chosen.id = found->id;
  }
  return chosen;
}

}  // namespace meshwright
