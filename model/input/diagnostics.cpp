#include "model/input/diagnostics.h"

#include <fmt/format.h>

#include <cassert>
#include <utility>

#include "model/input/printable.h"

namespace meshwright {

std::string to_string(const Diagnostic& d) {
  std::string line = d.source;
  if (!d.path.empty()) line += (line.empty() ? "" : ": ") + d.path;
  if (!d.value.empty()) line += " = " + d.value;
  if (!d.allowed.empty()) line += ": allowed: " + d.allowed;
  if (!d.hint.empty()) line += "; hint: " + d.hint;
  return printable(line);  // input may hold line breaks and control bytes
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
