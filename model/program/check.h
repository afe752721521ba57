// Our own mistakes stop the program in every build, with a sentence. Faults in a user's input are InputError
// instead.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <utility>

namespace meshwright {

// Throws std::logic_error with the formatted message unless `holds`.
template <class... Args>
void check(bool holds, fmt::format_string<Args...> format, Args&&... args) {
  if (!holds) throw std::logic_error(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace meshwright
