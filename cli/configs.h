// The configurations that come with the program: systems, schemas, examples.
#pragma once

#include <filesystem>

namespace meshwright {

// $MESHWRIGHT_CONFIGS where that is set; else share/meshwright/configs of the prefix that the running executable is
// installed in, wherever that was moved to; else, for an executable in its build folder, configs/ of the sources. Where none
// of them is there: the second.
std::filesystem::path configs_folder();

}  // namespace meshwright
