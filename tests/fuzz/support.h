// What the targets have in common.
#pragma once

#include <fmt/format.h>

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/input/diagnostics.h"
#include "tests/fuzz/targets.h"

namespace meshwright::fuzz {

template <class... Args>
void require(bool holds, fmt::format_string<Args...> format, Args&&... args) {
  if (!holds) throw BrokenPromise(fmt::format(format, std::forward<Args>(args)...));
}

// A refusal says what is allowed, one line a fault, and sends no control bytes to a terminal.
void require_readable(const InputError& error);

// True if `read` accepted its input, false if it refused it readably; anything else that it throws passes.
template <class Read>
bool accepts(Read&& read) {
  try {
    read();
    return true;
  } catch (const InputError& error) {
    require_readable(error);
    return false;
  }
}

// No byte of `text` would move a terminal's cursor or change its colours.
bool is_printable(std::string_view text);

// A folder of this process, removed with it.
class ScratchFolder {
 public:
  ScratchFolder();
  ~ScratchFolder();
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  // Writes the bytes as the file of that name, in place of what it held.
  std::filesystem::path write(const std::string& name, std::string_view bytes) const;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// One of several, each as likely.
template <class Container>
const auto& any_of(const Container& all, std::mt19937& random) {
  return all[random() % all.size()];
}

}  // namespace meshwright::fuzz
