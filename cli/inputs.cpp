#include "cli/inputs.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdio>
#include <system_error>
#include <utility>

#include "cli/command_line.h"
#include "cli/configs.h"
#include "cli/interrupt.h"
#include "cli/terminal.h"
#include "cli/version.h"
#include "executor/data/cache.h"
#include "executor/launch/launcher.h"
#include "executor/launch/output.h"
#include "executor/limits.h"
#include "model/input/content_key.h"
#include "model/input/printable.h"
#include "model/program/op.h"
#include "planner/system_evaluator.h"
#include "reports/figures.h"
#include "reports/text.h"

namespace meshwright {

// ---- options -----------------------------------------------------------------------------------------------------------

void add_config_options(CLI::App& command, Invocation& invocation, ConfigOptions& options) {
  command
      .add_option("CONFIG", options.file,
                  "A training configuration (JSON, JAXformer's schema), or a model's own file: a Hugging Face\n"
                  "config.json as published, or a decoder in our words")
      ->required();
  add_integer_option(
      command, invocation, "--batch", {1, std::int64_t{1} << 30},
      [&options](std::int64_t n) { options.shortcuts.batch = n; }, "Sequences of a step, whatever the mesh")
      ->type_name("N");
  add_integer_option(
      command, invocation, "--tokens", {1, std::int64_t{1} << 20},
      [&options](std::int64_t n) { options.shortcuts.tokens = n; }, "Tokens of a sequence")
      ->type_name("N");
  command.add_option("--dtype", options.shortcuts.dtype, "Of activations and products: bfloat16, float16 or float32")
      ->type_name("TYPE")
      ->transform(CLI::Transformer(std::map<std::string, std::string>{
          {"bf16", "bfloat16"}, {"f16", "float16"}, {"fp16", "float16"}, {"f32", "float32"}, {"fp32", "float32"}}));
  command
      .add_option("--set", options.overrides, "Override a key of the configuration, such as lr.max_lr=1e-3; repeatable")
      ->type_name("KEY=VALUE")
      ->take_all()
      ->expected(1);
  command.add_flag("--print-config", options.print, "Print the configuration with all overrides as JSON, and stop");
  command.add_flag("--json", options.json, "Data as JSON on stdout");
}

void add_system_options(CLI::App& command, Invocation& invocation, SystemOptions& options) {
  command.add_option("--system", options.system, "Machine: a name and slice (v4:2x4x4), local, or a JSON file")
      ->type_name("SYSTEM")
      ->required();
  command.add_option("--db", options.database, "Database of searches and runs")
      ->type_name("FILE")
      ->capture_default_str();
  add_number_option(
      command, invocation, "--headroom", {.min = 0, .max = 1, .min_open = true},
      [&options](double share) { options.headroom = share; },
      "Of the usable memory: a plan that needs more gives way to a roomier one within 1 %")
      ->type_name("SHARE")
      ->default_str(fmt::format("{}", options.headroom));
}

void add_plan_option(CLI::App& command, std::string& plan, const std::string& meaning) {
  command.add_option("--plan", plan, meaning)->type_name("PLAN")->capture_default_str();
}

// ---- the log -----------------------------------------------------------------------------------------------------------

void log_info(const std::string& line) { spdlog::info("{}", printable(line)); }
void log_warning(const std::string& line) { spdlog::warn("{}", printable(line)); }

ProgressLine::ProgressLine() : visible_(is_interactive(STDERR_FILENO)) {}

ProgressLine::~ProgressLine() {
  if (visible_) std::fputs("\r\x1b[K", stderr);
}

void ProgressLine::show(const std::string& text) {
  if (!visible_) return;
  std::fprintf(stderr, "\r\x1b[K%s", truncated(text, overwritable_columns(STDERR_FILENO)).c_str());
  std::fflush(stderr);
}

// ---- inputs ------------------------------------------------------------------------------------------------------------

namespace {

// False only where there is nothing: what can't be looked at is for its reader to refuse, by name.
bool may_exist(const std::filesystem::path& file) {
  std::error_code error;
  return std::filesystem::status(file, error).type() != std::filesystem::file_type::not_found;
}

}  // namespace

TrainingConfig load_config(const ConfigOptions& options, bool quiet) {
  TrainingConfig config = read_config(options.file, options.overrides, options.shortcuts);
  if (!quiet && !options.print)
    for (const std::string& note : config.notes) log_warning(note);
  return config;
}

bool print_config(const ConfigOptions& options, const TrainingConfig& config) {
  if (options.print) print(to_json(config).dump(2) + '\n');
  return options.print;
}

std::filesystem::path calibration_file() {
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  // Of the whole machine: a rank that is bound to one core must find the same file. Another quota is another machine, and a
  // program with other kinds of operations measures anew.
  std::string machine = fmt::format("{}, {} processors, quota {:.2f}", host.data(), sysconf(_SC_NPROCESSORS_ONLN),
                                    cpu_quota().value_or(0));
  for (int kind = 0; kind < kOpKinds; ++kind) machine += fmt::format(" {}", kind_name(static_cast<OpKind>(kind)));
  return default_cache_folder() / fmt::format("local-{}.json", content_key(machine));
}

int calibrate_machine(const Invocation& invocation) {
  refuse_foreign_launcher();
  const std::filesystem::path file = calibration_file();
  expect_writable(file, kCalibrationBytes);
  const int cores = available_cores();
  log_info(fmt::format("measuring this machine on {} {}, at most 30 s", cores, cores == 1 ? "core" : "cores"));
  return run_ranks(cores, {invocation.command.front(), "calibrate", "--write-to", file.string()});
}

System load_any_system(const std::string& spec, const Invocation& invocation) {
  constexpr std::string_view kLocal = "local";
  if (spec != kLocal && !spec.starts_with("local:")) return load_system(spec, configs_folder(), {std::string(kLocal)});
  const std::filesystem::path file = calibration_file();
  const auto of_an_older_program = [&] { return !load_system_file(file).computes(DType::kBF16); };
  if (!may_exist(file) || (!is_started_rank() && of_an_older_program())) {
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
  const DType own = config.model_dtype == "float32"   ? DType::kF32
                    : config.model_dtype == "float16" ? DType::kF16
                                                      : DType::kBF16;
  if (system.computes(own)) return own;
  if (own != DType::kF32 && (system.computes(DType::kBF16) || system.computes(DType::kF16))) {
    const std::string_view other = own == DType::kF16 ? "bfloat16" : "float16";
    throw InputError(
        Diagnostic{config.name, "model_config.model_dtype", fmt::format("\"{}\"", config.model_dtype),
                   fmt::format("{}{} on {}", other, system.computes(DType::kF32) ? " or float32" : "", system.name),
                   fmt::format("the system's file has no peak of {} products, and TPUs have no fp16: --set "
                               "model_config.model_dtype={}",
                               name(own), other)});
  }
  require_dtype(system, DType::kF32);
  return DType::kF32;
}

Problem make_problem(const TrainingConfig& config, const System& system, DType compute) {
  AdamSpec adam = config.adam;
  adam.clip_norm = config.grad_clip_norm;
  return {config.model,
          {.sequences = config.sequences, .tokens = config.sequence_length, .compute = compute, .adam = adam},
          system.devices()};
}

Machine machine_here(const System& system, DType compute) {
  return machine(system, compute, [](const ProgramSet& programs) { return why_not_runnable(programs); });
}

// ---- searches and plans ------------------------------------------------------------------------------------------------

SearchKey search_key(const TrainingConfig& config, const System& system) {
  return {to_json(config).dump(), system.name, describe(system), build_id()};
}

SearchResult search_plans(const TrainingConfig& config, const System& system) {
  const DType compute = compute_type(config, system);
  const Problem problem = make_problem(config, system, compute);
  std::int64_t total = 0;
  SearchResult result;
  {
    ProgressLine line;
    const Interruption interruption;
    result = search(
        problem, machine_here(system, compute),
        {.workers = available_cores(),
         .progress =
             [&](const SearchProgress& p) {
               total = p.total;
               line.show(fmt::format(
                   "{} of {} plans, {} too large{}", with_commas(p.evaluated), with_commas(p.total),
                   with_commas(p.too_large),
                   p.best ? fmt::format("; best {}: {}", seconds_text(p.best->step_time_s), to_text(p.best->plan))
                          : ""));
             },
         .stop = [] { return interrupting_signal() != 0; }});
  }
  if (!result.complete)
    log_warning(fmt::format("interrupted after {} of {} plans: the best may be among the others",
                            with_commas(result.evaluated), with_commas(total)));
  return result;
}

namespace {

// Whether there is something to read. An empty file becomes a database when the first search is stored.
bool is_there(const std::filesystem::path& database) {
  std::error_code unknown;
  return may_exist(database) && (std::filesystem::file_size(database, unknown) != 0 || unknown);
}

// What this program finds for this question: stored, or else searched for now.
SearchResult answer(const TrainingConfig& config, const System& system, const std::filesystem::path& database) {
  Store store(database, Store::Access::kWriteIfPossible);
  const SearchKey key = search_key(config, system);
  if (const auto id = store.latest(key))
    if (auto stored = store.search(*id)) return std::move(stored->result);
  log_info(fmt::format("no search of {} on {} by this program is stored: searching first", config.name, system.name));
  SearchResult result = search_plans(config, system);
  try {
    store.save(key, result);
  } catch (const InputError& error) {  // its answer is good all the same
    log_warning(fmt::format("the search is not stored: {}", error.what()));
  }
  if (!result.complete) throw Interrupted{128 + interrupting_signal()};
  return result;
}

ChosenPlan best_plan(const std::optional<MeshShape>& mesh, bool runnable_only, const TrainingConfig& config,
                     const System& system, const std::filesystem::path& database, double headroom) {
  const SearchResult found = answer(config, system, database);
  const PlanResult* best = preferred(found, system.usable_memory, headroom, false, mesh);
  const PlanResult* chosen = runnable_only ? preferred(found, system.usable_memory, headroom, true, mesh) : best;
  if (!chosen && best)
    throw InputError(Diagnostic{
        "--plan", "", to_text(best->plan),
        fmt::format("a plan that can be run{}; none that fits can", mesh ? " on the mesh " + to_string(*mesh) : ""),
        "not runnable yet: " + best->not_runnable});
  if (!chosen) {
    if (mesh) log_warning(fmt::format("no plan on the mesh {} fits", to_string(*mesh)));
    return {.none_fits = true};
  }
  if (chosen->plan != best->plan) {
    log_warning(fmt::format("passed over {} ({} a step): {}", to_text(best->plan), seconds_text(best->step_time_s),
                            best->not_runnable));
  }
  return {chosen->plan};
}

// With the layers of its stages, as a search writes it, so that one plan has one text and one id wherever it comes from.
Plan with_layers(Plan plan, const TrainingConfig& config, const System& system) {
  if (plan.mesh.pp == 1 || !plan.layers.empty()) return plan;
  const DType compute = compute_type(config, system);
  const Problem problem = make_problem(config, system, compute);
  Lowering lowering(problem.model, problem.shape, plan);
  plan.layers = balanced_stages(lowering, machine_here(system, compute));
  return plan;
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

// ---- what --plan says --------------------------------------------------------------------------------------------------

constexpr std::string_view kPlanForms = "best, published, a mesh as 8x2x2, the id of a plan, or a plan";
constexpr std::string_view kPlanExample = "such as 8x2x2,schedule=1f1b,microbatches=8,fsdp=3,recompute=full";

bool all_of(const std::string& text, int (*is)(int)) {
  return std::all_of(text.begin(), text.end(), [is](unsigned char c) { return is(c) != 0; });
}

InputError no_such_plan(const std::string& text, std::string allowed, std::string hint) {
  return InputError(Diagnostic{"--plan", "", fmt::format("\"{}\"", text), std::move(allowed), std::move(hint)});
}

Plan published(const TrainingConfig& config) {
  if (!config.has_plan)
    throw no_such_plan("published", "best, a mesh as 8x2x2, the id of a plan, or a plan",
                       "a model's own file names none: --plan best");
  return published_plan(config);
}

// Among the plans of the search of this question, or else all that the database holds: an id that was read elsewhere then
// meets the rule that the plan breaks here.
Plan named_plan(const std::string& text, const TrainingConfig& config, const System& system,
                const std::filesystem::path& database) {
  constexpr std::size_t kFewest = 4, kMost = 8, kMostShown = 10;
  if (text.size() < kFewest || text.size() > kMost)
    throw no_such_plan(text, fmt::format("{} to {} digits of a plan's id, or {}", kFewest, kMost, kPlanForms),
                       "`meshwright search` shows the ids");
  std::string prefix = text;
  for (char& c : prefix) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));

  std::vector<Plan> stored, here;
  const auto look_at = [&](const Plan& plan) {
    if (plan_id(plan).starts_with(prefix)) here.push_back(plan);
  };
  const SearchResult found = answer(config, system, database);
  for (const PlanResult& result : found.plans) look_at(result.plan);
  for (const TooLarge& large : found.too_large) look_at(large.plan);
  if (here.empty() && is_there(database)) stored = Store(database, Store::Access::kRead).named(prefix);

  const std::vector<Plan>& named = here.empty() ? stored : here;
  if (named.empty())
    throw no_such_plan(
        text,
        fmt::format("the id of a plan for {} on {}, or of one in {}", config.name, system.name, database.string()),
        "`meshwright search` shows the ids");
  if (named.size() == 1) return named.front();
  std::string all;
  for (std::size_t i = 0; i < std::min(named.size(), kMostShown); ++i)
    all += fmt::format("{}{} ({})", i ? ", " : "", plan_id(named[i]), to_text(named[i]));
  if (named.size() > kMostShown) all += fmt::format(" and {} more", named.size() - kMostShown);
  throw no_such_plan(text, "the digits of one plan; these begin " + all, "write one more digit, or the plan itself");
}

}  // namespace

ChosenPlan choose_plan(const std::string& text, bool runnable_only, const TrainingConfig& config, const System& system,
                       const std::filesystem::path& database, double headroom) {
  if (text == "best") return best_plan(std::nullopt, runnable_only, config, system, database, headroom);
  const bool is_id = !text.empty() && all_of(text, std::isxdigit);
  if (!is_id && text != "published" &&
      std::none_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; })) {
    throw no_such_plan(text, std::string(kPlanForms),
                       did_you_mean(text, std::array{"best", "published"}, std::string(kPlanExample)));
  }
  const Plan plan = is_id                 ? named_plan(text, config, system, database)
                    : text == "published" ? published(config)
                                          : parse_plan(text);
  refuse_illegal(plan, config, system);
  const bool is_mesh = text == to_string(plan.mesh);
  if (is_mesh) return best_plan(plan.mesh, runnable_only, config, system, database, headroom);
  return {with_layers(plan, config, system)};
}

std::optional<std::int64_t> row_of(const Plan& plan, const TrainingConfig& config, const System& system,
                                   const std::filesystem::path& database) {
  if (!is_there(database)) return std::nullopt;
  const auto found = Store(database, Store::Access::kRead).find(search_key(config, system), plan);
  return found ? std::optional(found->id) : std::nullopt;
}

}  // namespace meshwright
