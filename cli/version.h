// Which program this is.
#pragma once

#include <string>

namespace meshwright {

// The linker's hash over everything in this executable (ELF note NT_GNU_BUILD_ID), in hexadecimal: equal for equal code, so
// that an answer kept by other code is known as such. Asserts that the note is there.
std::string build_id();

}  // namespace meshwright
