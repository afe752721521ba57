// Files that are made once and kept between runs: tokenizers, token arrays, calibrations.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace meshwright {

// $MESHWRIGHT_CACHE, else $XDG_CACHE_HOME/meshwright, else ~/.cache/meshwright, where without $HOME the home is the one of
// the user's account. Not created here. An account without a home has a folder of its own under the system's temporary one,
// which is made here, for nobody else to read or write; throws InputError if that name is a link, or somebody else's.
std::filesystem::path default_cache_folder();

// Replaces `path` by a file that holds exactly `content`, or leaves it as it is: whoever reads it, in whatever process and
// also after a loss of power, sees the old file or the whole new one. The folder is made if need be. What is written has a
// name that nobody can foresee until it is complete, so that no link is followed, and permissions by the umask.
// Throws InputError, naming the folder and the cause, where that fails; nothing is then left behind.
void write_atomically(const std::filesystem::path& path, std::string_view content);

// Throws what write_atomically would throw for `bytes` bytes, and leaves nothing but the folder: for work that takes long and
// is lost where its result can't be kept.
void expect_writable(const std::filesystem::path& path, std::int64_t bytes);

// Content under names, each file with a hash over its name and content: what was altered or damaged is never used.
class Cache {
 public:
  // warn: told of files that are not used. Neither need exist.
  Cache(std::filesystem::path folder, std::function<void(const std::string&)> warn = {});  // a folder is a cache

  // What was kept under this name. None: nothing was, or, after a warning, it is not what was kept.
  std::optional<std::string> find(const std::string& name) const;
  // Throws InputError as write_atomically does.
  void keep(const std::string& name, std::string content) const;
  // Says why what find() gave is made anew nevertheless.
  void warn(const std::string& name, const std::string& why) const;

 private:
  std::filesystem::path folder_;
  std::function<void(const std::string&)> warn_;
};

}  // namespace meshwright
