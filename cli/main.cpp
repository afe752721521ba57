// meshwright: which parallel plan to train with, how fast it will be, and running it.
#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cli/command.h"
#include "cli/command_line.h"
#include "cli/interrupt.h"
#include "cli/terminal.h"
#include "cli/version.h"
#include "executor/diverged.h"
#include "executor/launch/launcher.h"
#include "executor/launch/mpi_session.h"
#include "executor/launch/output.h"
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

// What --help asks for.
int help(const CLI::App& app, const CLI::ParseError& error) {
  std::ostringstream out, log;
  const int code = app.exit(error, out, log);
  try {
    print(out.str());
    close_output();
  } catch (const OutputError& lost) {
    return fail(kInternalError, fmt::format("{}\n", lost.what()));
  }
  return code;
}

int main(int argc, char** argv) {
  keep_standard_streams();
  std::signal(SIGXFSZ, SIG_IGN);  // a write beyond a limit (ulimit -f) then fails, and that can be said
  spdlog::set_default_logger(spdlog::stderr_color_mt(
      "meshwright", wants_colour(STDERR_FILENO) ? spdlog::color_mode::always : spdlog::color_mode::never));
  spdlog::set_pattern("%^%l%$: %v");

  CLI::App app{"Finds the parallel plan to train a transformer with, says how fast it will be, and runs it.",
               "meshwright"};
  app.require_subcommand(1);
  app.footer(
      "Exit codes: 0 done; 1 internal error, or stdout can't be written;\n"
      "            2 bad input (each fault on stderr with path, value and hint);\n"
      "            3 nothing feasible: no plan fits in memory, or the one that was asked for does not;\n"
      "            4 diverged: a loss or gradient was not finite, and training stopped before it reached the weights;\n"
      "            128 + N ended by signal N, so 130 after Ctrl-C, with what is known so far.\n"
      "Data go to stdout, progress and log to stderr.\n"
      "Examples:\n"
      "  meshwright params configs/jaxformer-moe1b.json\n"
      "  meshwright search configs/jaxformer-moe1b.json --system v4:2x4x4\n"
      "  meshwright simulate configs/jaxformer-moe1b.json --system v4:2x4x4 --plan best --trace step.json\n"
      "  meshwright run configs/moe-small.json --system local --plan best\n"
      "`meshwright COMMAND --help` says more about each.");
  app.set_version_flag("--version", version_text, "Version, commit and build of this program");
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
      if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) return help(app, error);
      for (Diagnostic& fault : command_line_faults(app, error, {argv + 1, argv + argc}))
        invocation.faults.push_back(std::move(fault));
    }
    if (!invocation.faults.empty()) throw InputError(invocation.faults);
    const int code = invocation.run();
    close_output();
    return code;
  } catch (const OutputError& error) {
    return fail(kInternalError, fmt::format("{}\n", error.what()));
  } catch (const Interrupted& by) {
    return fail(by.code, "");
  } catch (const InputError& error) {
    return fail(kBadInput, fmt::format("{}\n", error.what()));
  } catch (const Diverged& error) {
    return fail(kDiverged, fmt::format("{}\n", error.what()));
  } catch (const std::exception& error) {
    return fail(kInternalError, fmt::format("internal error: {}\n", printable(error.what())));
  }
}

}  // namespace
}  // namespace meshwright

int main(int argc, char** argv) { return meshwright::main(argc, argv); }
