// meshwright: which parallel plan to train with, how fast it will be, and running it.
#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cli/command.h"
#include "cli/command_line.h"
#include "executor/launch/launcher.h"
#include "executor/launch/mpi_session.h"
#include "model/input/printable.h"

namespace meshwright {
namespace {

// Ends this process; where it is one of several ranks, all of them. What goes wrong on every rank is said by one of them:
// the others give rank 0 time to end them first.
int fail(int code, const std::string& message) {
  const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
  if (rank && std::string(rank) != "0") std::this_thread::sleep_for(std::chrono::seconds(1));
  std::fputs(message.c_str(), stderr);
  std::fflush(nullptr);
  if (MpiSession::active()) MpiSession::abort(code);
  return code;
}

int main(int argc, char** argv) {
  spdlog::set_default_logger(spdlog::stderr_color_mt("meshwright"));
  spdlog::set_pattern("%^%l%$: %v");

  CLI::App app{"Finds the parallel plan to train a transformer with, says how fast it will be, and runs it.",
               "meshwright"};
  app.require_subcommand(1);
  app.footer(
      "Exit codes: 0 done; 1 internal error; 2 bad input (each fault on stderr with path, value and hint);\n"
      "            3 nothing feasible: no plan fits in memory, or the one that was asked for does not.\n"
      "Data go to stdout, progress and log to stderr.\n"
      "Examples:\n"
      "  meshwright params configs/jaxformer-moe1b.json\n"
      "  meshwright search configs/jaxformer-moe1b.json --system v4:2x4x4\n"
      "  meshwright simulate configs/jaxformer-moe1b.json --system v4:2x4x4 --plan best --trace step.json\n"
      "  meshwright run configs/moe-small.json --system local --plan best\n"
      "`meshwright COMMAND --help` says more about each.");
  Invocation invocation{own_command(argc, argv), {}, {}};
  add_params(app, invocation);
  add_search(app, invocation);
  add_simulate(app, invocation);
  add_calibrate(app, invocation);
  add_run(app, invocation);

  try {
    try {
      app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
      if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) return app.exit(error);  // --help
      for (Diagnostic& fault : command_line_faults(app, error, {argv + 1, argv + argc}))
        invocation.faults.push_back(std::move(fault));
    }
    if (!invocation.faults.empty()) throw InputError(invocation.faults);
    const int code = invocation.run();
    std::cout.flush();
    if (!std::cout) return fail(kInternalError, "internal error: stdout can't be written\n");
    return code;
  } catch (const InputError& error) {
    return fail(kBadInput, fmt::format("{}\n", error.what()));
  } catch (const std::exception& error) {
    return fail(kInternalError, fmt::format("internal error: {}\n", printable(error.what())));
  }
}

}  // namespace
}  // namespace meshwright

int main(int argc, char** argv) { return meshwright::main(argc, argv); }
