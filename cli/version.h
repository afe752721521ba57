// Which program this is.
#pragma once

#include <string>

namespace meshwright {

// The linker's hash over everything in this executable (ELF note NT_GNU_BUILD_ID), in hexadecimal: equal for equal code, so
// that an answer kept by other code is known as such. Asserts that the note is there.
std::string build_id();

// Three lines: "meshwright 0.1.0", "commit 1a2b3c4", "build Release, GNU 12.2.0, 5d6e7f8a9b0c". The commit is that of the
// sources when they were built, with -dirty if they differed from it, or "unknown"; the last word is build_id()'s begin.
std::string version_text();

}  // namespace meshwright
