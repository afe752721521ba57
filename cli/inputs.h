// What the commands have in common: reading their inputs, the calibration of this machine, stored searches.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/command.h"
#include "model/config.h"
#include "model/input/diagnostics.h"
#include "planner/search.h"
#include "planner/store.h"
#include "sim/system.h"

namespace meshwright {

// ---- options that several commands have --------------------------------------------------------------------------------

struct ConfigOptions {
  std::string file;
  std::vector<std::string> overrides;
  Shortcuts shortcuts;
  bool print = false;  // the resolved configuration, and nothing else
  bool json = false;
};
void add_config_options(CLI::App& command, Invocation& invocation, ConfigOptions& options);

struct SystemOptions {
  std::string system;
  std::string database = "meshwright.db";
  double headroom = kHeadroom;  // see preferred() of planner/search.h
};
void add_system_options(CLI::App& command, Invocation& invocation, SystemOptions& options);
void add_plan_option(CLI::App& command, std::string& plan, const std::string& meaning);

// ---- the log -----------------------------------------------------------------------------------------------------------

// Lines to stderr, one a call, as printable() writes them.
void log_info(const std::string& line);
void log_warning(const std::string& line);

// A line on stderr that is written over and over, cut where it would wrap. Silent unless stderr is a terminal.
class ProgressLine {
 public:
  ProgressLine();
  ~ProgressLine();  // clears the line
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  void show(const std::string& text);

 private:
  bool visible_;
};

// ---- inputs ------------------------------------------------------------------------------------------------------------

// Reads the configuration. Its notes go to the log, except where `quiet` or where only it is printed.
TrainingConfig load_config(const ConfigOptions& options, bool quiet = false);
// If --print-config was given: prints the resolved configuration and returns true.
bool print_config(const ConfigOptions& options, const TrainingConfig& config);

// The file that holds the calibration of this machine, by its name and number of processors and by what this program measures
// (kinds of operations). It need not exist.
std::filesystem::path calibration_file();
constexpr std::int64_t kCalibrationBytes = 1 << 16;  // more than it has
// Measures this machine on one rank per core and writes calibration_file(). Returns kDone, or the exit code of the ranks.
// Throws InputError before it measures if that file can't be written.
int calibrate_machine(const Invocation& invocation);

// NAME[:SLICE], FILE[:SLICE], local or local:DEVICES. `local` is calibrated first if it never was; a process that mpirun
// started throws InputError then, as it has its ranks already.
System load_any_system(const std::string& spec, const Invocation& invocation);

// The element type that a configuration's products have on a system: its own type where the system has such arithmetic,
// f32 where it has none of 16 bits (this machine: training is in f32, with a warning). Throws InputError where it has the
// other 16-bit type only, as fp16 and bf16 are not each other's, and where it has neither.
DType compute_type(const TrainingConfig& config, const System& system);

Problem make_problem(const TrainingConfig& config, const System& system, DType compute);

// ---- searches and plans ------------------------------------------------------------------------------------------------

// The question, and this program as the one that answers it.
SearchKey search_key(const TrainingConfig& config, const System& system);

// The system for the planner, which also learns what this program's executor does not run.
Machine machine_here(const System& system, DType compute);

// Searches with a progress line. Ctrl-C ends it early: the result is then not complete, which is said.
SearchResult search_plans(const TrainingConfig& config, const System& system);

// A plan that was asked for.
struct ChosenPlan {
  Plan plan;
  bool none_fits = false;  // then `plan` means nothing
};

// `text`:
//   best              the plan that preferred() takes, of the stored search of this question by this very program, or of a
//                     new one (with a warning where it can't be stored; where it is interrupted, throws Interrupted)
//   16x1x2            the same among the plans with this mesh
//   a3f1, a3f1c07d    the plan whose plan_id begins with these digits, 4 to 8 of them: of this question's search, stored or
//                     new, else of all in the database
//   published         published_plan() of the configuration
//   16x1x2,fsdp=3     a plan; what is left out has the values of model/plan.h
// A plan of several stages that has no layers gets those that a search writes (balanced_stages() of planner/evaluate.h).
// `runnable_only`: best is the best that can be run; what it passes over is logged.
// Throws InputError: only plans that can't be run, where they should; no or several plans of this id, a plan that is illegal or of another size than the system.
ChosenPlan choose_plan(const std::string& text, bool runnable_only, const TrainingConfig& config, const System& system,
                       const std::filesystem::path& database, double headroom = kHeadroom);

// A plan's row in the database, for the record of its run; none: no search of this question has stored it.
std::optional<std::int64_t> row_of(const Plan& plan, const TrainingConfig& config, const System& system,
                                   const std::filesystem::path& database);

}  // namespace meshwright
