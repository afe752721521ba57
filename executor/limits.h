// What programs this executor does not run, though they can be written and simulated. Known from the program alone, before
// anything starts. Memory is no part of it: it depends on the machine.
#pragma once

#include <optional>
#include <string>

#include "model/program/program.h"

namespace meshwright {

// Why nothing that computes in this type is run, for a person, without a full stop; nullopt: it is.
std::optional<std::string> why_not_runnable(DType compute);

// Why the program is not run: its type, or a message or part of a collective with more elements than MPI counts. Pure; the
// planner's Refuse.
std::optional<std::string> why_not_runnable(const ProgramSet& set);

}  // namespace meshwright
