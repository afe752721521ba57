#include "cli/configs.h"

#include <cstdlib>
#include <system_error>

namespace meshwright {

std::filesystem::path configs_folder() {
  if (const char* given = std::getenv("MESHWRIGHT_CONFIGS"); given && *given) return given;
  std::error_code error;
  const std::filesystem::path executable = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::filesystem::path beside =
      (executable.parent_path() / MESHWRIGHT_CONFIGS_FROM_EXECUTABLE).lexically_normal();
  if (std::filesystem::exists(beside, error)) return beside;
  if (std::filesystem::equivalent(executable.parent_path(), MESHWRIGHT_BUILD_FOLDER, error))
    return MESHWRIGHT_SOURCE_CONFIGS;
  return beside;
}

}  // namespace meshwright
