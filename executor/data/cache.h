// Files that are made once and kept between runs: tokenizers, token arrays, calibrations.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace meshwright {

// $MESHWRIGHT_CACHE, else $XDG_CACHE_HOME/meshwright, else ~/.cache/meshwright; without a home, a folder
// under the system's temporary one. Not created here.
std::filesystem::path default_cache_folder();

// Calls write(temporary name) in the folder of `path`, which is made if need be, and renames the result to
// `path`: whoever reads `path`, in whatever process, sees a whole file or none. The temporary file is removed
// if write throws. Throws InputError, naming the folder, where nothing can be written.
void write_atomically(const std::filesystem::path& path,
                      const std::function<void(const std::filesystem::path& temporary)>& write);

}  // namespace meshwright
