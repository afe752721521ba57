// Text as it must be to be trained on.
#pragma once

#include <string>
#include <string_view>

namespace meshwright {

// Throws InputError about `source` if the text is not UTF-8 or holds a NUL byte: with the line and the byte where it is first
// wrong, what stands there, and, where the bytes say it, what the file is instead.
void require_utf8(std::string_view text, const std::string& source);

// The first character of a UTF-8 text, which is shortened by it. 0xFFFFFFFF where the text does not begin with a whole and
// legal one (it is then shortened by at least a byte). Precondition: the text is not empty.
char32_t next_character(std::string_view& text);
constexpr char32_t kNoCharacter = 0xFFFFFFFF;

}  // namespace meshwright
