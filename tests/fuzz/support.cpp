#include "tests/fuzz/support.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>

namespace meshwright::fuzz {

bool is_printable(std::string_view text) {
  return std::ranges::all_of(text, [](unsigned char c) { return c >= 0x20 && c != 0x7f; });
}

void require_readable(const InputError& error) {
  const std::vector<Diagnostic>& diagnostics = error.diagnostics();
  require(!diagnostics.empty(), "a refusal without a reason");
  for (const Diagnostic& d : diagnostics) {
    require(!d.source.empty(), "a fault without its source: {}", to_string(d));
    require(!d.allowed.empty(), "a fault that doesn't say what is allowed: {}", to_string(d));
    require(is_printable(to_string(d)), "a fault with control bytes: {}", to_string(d));
  }
}

ScratchFolder::ScratchFolder()
    : path_(std::filesystem::temp_directory_path() / fmt::format("meshwright_fuzz_{}", ::getpid())) {
  std::filesystem::create_directories(path_);
}

ScratchFolder::~ScratchFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::filesystem::path ScratchFolder::write(const std::string& name, std::string_view bytes) const {
  const std::filesystem::path file = path_ / name;
  std::ofstream out(file, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!out.flush()) throw std::runtime_error("can't write " + file.string());
  return file;
}

}  // namespace meshwright::fuzz
