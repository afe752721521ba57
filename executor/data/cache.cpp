#include "executor/data/cache.h"

#include <unistd.h>

#include <cstdlib>
#include <system_error>

#include "model/input/diagnostics.h"

namespace meshwright {

std::filesystem::path default_cache_folder() {
  const auto from = [](const char* variable) -> std::filesystem::path {
    const char* value = std::getenv(variable);
    return value ? value : "";
  };
  if (const auto own = from("MESHWRIGHT_CACHE"); !own.empty()) return own;
  if (const auto xdg = from("XDG_CACHE_HOME"); !xdg.empty()) return xdg / "meshwright";
  if (const auto home = from("HOME"); !home.empty()) return home / ".cache" / "meshwright";
  return std::filesystem::temp_directory_path() / "meshwright-cache";
}

void write_atomically(const std::filesystem::path& path,
                      const std::function<void(const std::filesystem::path& temporary)>& write) {
  std::error_code error;
  if (path.has_parent_path()) std::filesystem::create_directories(path.parent_path(), error);
  std::filesystem::path temporary = path;
  temporary += ".tmp" + std::to_string(getpid());
  try {
    if (!error) write(temporary);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
    throw;
  }
  if (!error) std::filesystem::rename(temporary, path, error);
  if (error) {
    throw InputError(Diagnostic{.source = path.parent_path().string(),
                                .path = "",
                                .value = error.message(),
                                .allowed = "a folder in which files can be made",
                                .hint = "set MESHWRIGHT_CACHE to another folder if this is the cache"});
  }
}

}  // namespace meshwright
