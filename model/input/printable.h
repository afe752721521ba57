// Text that was written by others, as a terminal may see it.
#pragma once

#include <string>
#include <string_view>

namespace meshwright {

// `text` on one line, without anything that a terminal obeys instead of showing: control characters (C0, DEL, C1), line and
// paragraph separators, marks that change the direction of writing, and bytes that are no UTF-8 are written as \n, \t,
// \x1b or \u202e. Everything else, backslashes too, stays as it is: for reading, not for reading back.
std::string printable(std::string_view text);

}  // namespace meshwright
