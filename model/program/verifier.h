// Proves, before anything runs, that a ProgramSet can run: every send meets its receive, every group agrees on the
// order of its collectives, nothing is read before it is written or used after it is freed, nothing lies over anything
// else that is alive, and nothing deadlocks.
#pragma once

#include <string>
#include <vector>

#include "model/program/program.h"

namespace meshwright {

// Empty if the programs are right; else one sentence per fault, naming stage, slot and operation.
// Cost: pieces once, plus slots; not slots x operations, nor ranks.
std::vector<std::string> verify(const ProgramSet& set);

}  // namespace meshwright
