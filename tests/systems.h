// The systems of configs/ by name, as tests ask for them.
#pragma once

#include <string>

#include "sim/system.h"

namespace meshwright {

inline System load_system(const std::string& spec) { return load_system(spec, REPOSITORY "/configs"); }

}  // namespace meshwright
