// Text as a terminal shows it: how wide it is, and how it is made to fit.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace meshwright {

// Columns of a terminal that UTF-8 text takes: one a code point, none for combining marks, two for wide East Asian ones.
// Bytes that are no UTF-8 take one each.
int display_width(std::string_view text);

// The text, or so much of its beginning as fits in `columns` with a "…" behind it. Of 0 columns or fewer: nothing.
std::string truncated(std::string_view text, int columns);

// Lines of at most `columns` columns: broken at spaces, inside words that are longer than a line behind one of , . / _ : ; =
// or, where there is none, anywhere between characters. Lines after the first begin with `hanging` spaces (fewer where
// these would leave no room). Precondition: columns >= 1; a character of two columns in a line of one stands out.
std::vector<std::string> wrapped(std::string_view text, int columns, int hanging = 0);
// The same as one text, with a line break after each line.
std::string paragraph(std::string_view text, int columns, int hanging = 0);

}  // namespace meshwright
