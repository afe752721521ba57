// Slots by name, for messages and listings.
#pragma once

#include <string>

#include "model/program/program.h"

namespace meshwright {

// "F0", "B3", "send F0", "recv B1"; "begin", "reduce", "norm", "update" outside the schedule.
std::string slot_name(const Slot& slot);

}  // namespace meshwright
