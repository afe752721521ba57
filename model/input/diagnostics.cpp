#include "model/input/diagnostics.h"

#include <fmt/format.h>

#include <cassert>
#include <utility>

namespace meshwright {
namespace {

// Input may hold line breaks and control bytes, a terminal shouldn't see them.
std::string on_one_line(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  return text;
}

}  // namespace

std::string to_string(const Diagnostic& d) {
  std::string line = d.source;
  if (!d.path.empty()) line += (line.empty() ? "" : ": ") + d.path;
  if (!d.value.empty()) line += " = " + d.value;
  if (!d.allowed.empty()) line += ": allowed: " + d.allowed;
  if (!d.hint.empty()) line += "; hint: " + d.hint;
  return on_one_line(std::move(line));
}

InputError::InputError(std::vector<Diagnostic> diagnostics) : diagnostics_(std::move(diagnostics)) {
  assert(!diagnostics_.empty());
  constexpr std::size_t kMostLines = 200;
  for (std::size_t i = 0; i < diagnostics_.size() && i < kMostLines; ++i) {
    if (i > 0) text_ += '\n';
    text_ += to_string(diagnostics_[i]);
  }
  if (diagnostics_.size() > kMostLines) text_ += fmt::format("\nand {} more", diagnostics_.size() - kMostLines);
}

InputError::InputError(Diagnostic diagnostic) : InputError(std::vector<Diagnostic>{std::move(diagnostic)}) {}

}  // namespace meshwright
