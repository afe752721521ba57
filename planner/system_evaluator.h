// Where the planner meets the simulator: a system of sim/ as the planner's Machine.
#pragma once

#include <string>

#include "planner/evaluate.h"
#include "sim/system.h"

namespace meshwright {

// The system as a machine for problems that compute in `compute`. Keeps a copy of it.
// Throws InputError if the system has no peak for that type.
Machine machine(const System& system, DType compute, Refuse refuse = {});

// Every number of a system that costs depend on, as text: equal texts, equal predictions. For SearchKey.
std::string describe(const System& system);

}  // namespace meshwright
