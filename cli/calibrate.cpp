// meshwright calibrate: measures this machine, for --system local.
#include "executor/calibrate.h"

#include <fmt/format.h>

#include <memory>

#include "cli/inputs.h"
#include "executor/data/cache.h"
#include "executor/data/regular_file.h"
#include "executor/launch/launcher.h"
#include "executor/launch/mpi_session.h"
#include "executor/launch/output.h"
#include "reports/figures.h"

namespace meshwright {
namespace {

struct Options {
  std::string write_to;  // set for the ranks that measure
  bool json = false;
};

// On every rank that measures.
int measure(const std::filesystem::path& file) {
  const MpiSession mpi;
  const nlohmann::ordered_json system =
      calibrate(mpi.world(), [](const std::string& what) { log_info("measuring: " + what); });
  if (mpi.rank() != 0) return kDone;
  write_atomically(file, system.dump(2) + '\n');
  return kDone;
}

int run(const Options& options, const Invocation& invocation) {
  if (!options.write_to.empty()) return measure(options.write_to);
  if (is_started_rank()) {
    expect_writable(calibration_file(), kCalibrationBytes);
    return measure(calibration_file());
  }
  if (const int code = calibrate_machine(invocation); code != kDone) return code;
  const std::filesystem::path file = calibration_file();
  const System system = load_system_file(file);
  if (options.json) {
    print(RegularFile(file, "the calibration just made", "").all());
  } else {
    const auto* measured = std::get_if<MeasuredCompute>(&system.compute);
    const std::string memory =
        measured && measured->memory_bandwidth
            ? fmt::format("{}B/s of memory copied (read plus written), ", rate_text(measured->memory_bandwidth->value))
            : "";
    print(fmt::format("{} x {}: {}FLOP/s of f32 multiply-adds, {}{} GiB usable each\n{}\n", system.devices(),
                      system.device, rate_text(system.peak(DType::kF32).value), memory, gib(system.usable_memory),
                      file.string()));
  }
  return kDone;
}

}  // namespace

void add_calibrate(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("calibrate", "Measure this machine (at most 30 s) for --system local");
  const auto options = std::make_shared<Options>();
  command->add_flag("--json", options->json, "The measured system on stdout, in the form of configs/systems");
  command->add_option("--write-to", options->write_to, "")->group("");  // of the ranks that this command starts
  command->footer(
      "The result is kept in $XDG_CACHE_HOME/meshwright, or ~/.cache/meshwright; --system local reads it there, and\n"
      "measures by itself where there is none.\n"
      "Examples:\n"
      "  meshwright calibrate\n"
      "  meshwright calibrate --json > my-machine.json");
  command->callback([=, &invocation] { invocation.run = [=, &invocation] { return run(*options, invocation); }; });
}

}  // namespace meshwright
