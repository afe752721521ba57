// The commands of `meshwright`. Each adds its options to the application and, when it is the one that was called, does its
// work and returns an exit code. Data go to stdout, everything else to stderr.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "model/input/diagnostics.h"

namespace meshwright {

enum ExitCode : int {
  kDone = 0,
  kInternalError = 1,
  kBadInput = 2,
  kNothingFeasible = 3,  // no plan fits, or the one that was asked for does not
};

// How this process was called, and what is to be done once the command line is read.
struct Invocation {
  std::vector<std::string> command;  // of this process: the executable, and its arguments
  std::function<int()> run;          // set by the command that was called
  std::vector<Diagnostic> faults;    // of options' values; with any, nothing is run
};

void add_params(CLI::App& app, Invocation& invocation);
void add_search(CLI::App& app, Invocation& invocation);
void add_simulate(CLI::App& app, Invocation& invocation);
void add_calibrate(CLI::App& app, Invocation& invocation);
void add_run(CLI::App& app, Invocation& invocation);

}  // namespace meshwright
