#include "reports/text.h"

#include <algorithm>
#include <cstddef>

#include "model/program/check.h"

namespace meshwright {
namespace {

// The code point at `at`, which moves behind it.
char32_t next_code_point(std::string_view text, std::size_t& at) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(at++);
  const int following = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : lead >= 0xc0 ? 1 : 0;
  if (following == 0 || at + following > text.size()) return lead;
  char32_t point = lead & (0x3f >> following);
  for (int i = 0; i < following; ++i) {
    if ((byte(at + i) & 0xc0) != 0x80) return lead;
    point = point << 6 | (byte(at + i) & 0x3f);
  }
  at += following;
  return point;
}

bool is_combining(char32_t c) {
  return (c >= 0x300 && c <= 0x36f) || (c >= 0x200b && c <= 0x200f) || (c >= 0xfe00 && c <= 0xfe0f);
}
bool is_wide(char32_t c) {
  return (c >= 0x1100 && c <= 0x115f) || (c >= 0x2e80 && c <= 0xa4cf) || (c >= 0xac00 && c <= 0xd7a3) ||
         (c >= 0xf900 && c <= 0xfaff) || (c >= 0xfe30 && c <= 0xfe6f) || (c >= 0xff00 && c <= 0xff60) ||
         (c >= 0xffe0 && c <= 0xffe6) || (c >= 0x1f300 && c <= 0x1faff) || (c >= 0x20000 && c <= 0x3fffd);
}
int width_of(char32_t c) { return is_combining(c) ? 0 : is_wide(c) ? 2 : 1; }

// How many bytes of the beginning fit: whole characters, each with the combining marks behind it.
std::size_t fitting(std::string_view text, int columns) {
  int width = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t begin = at;
    width += width_of(next_code_point(text, at));
    if (width > columns) return begin;
  }
  return text.size();
}

// Where to break a word of which `most` bytes fit: behind the last sign that parts it, if there is one in its second half.
std::size_t break_in_word(std::string_view word, std::size_t most) {
  const std::size_t sign = word.substr(0, most).find_last_of(",./_:;=");
  return sign != std::string_view::npos && sign >= most / 2 ? sign + 1 : most;
}

}  // namespace

int display_width(std::string_view text) {
  int width = 0;
  for (std::size_t at = 0; at < text.size();) width += width_of(next_code_point(text, at));
  return width;
}

std::string truncated(std::string_view text, int columns) {
  if (columns <= 0) return "";
  if (display_width(text) <= columns) return std::string(text);
  return std::string(text.substr(0, fitting(text, columns - 1))) + "…";
}

std::vector<std::string> wrapped(std::string_view text, int columns, int hanging) {
  check(columns >= 1, "text wrapped into {} columns", columns);
  const std::string margin(static_cast<std::size_t>(std::clamp(hanging, 0, std::max(0, columns / 2 - 1))), ' ');
  std::vector<std::string> lines(1);
  bool empty = true;  // the last line, but for its margin
  const auto new_line = [&] {
    lines.back().erase(lines.back().find_last_not_of(' ') + 1);
    lines.push_back(margin);
    empty = true;
  };
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t word_at = std::min(text.find_first_not_of(' ', at), text.size());
    const std::size_t end = std::min(text.find(' ', word_at), text.size());
    std::string_view spaces = text.substr(at, word_at - at), word = text.substr(word_at, end - word_at);
    at = end;
    if (word.empty()) break;  // spaces at the end
    const auto used = [&] { return display_width(lines.back()); };
    if (!empty && used() + static_cast<int>(spaces.size()) + display_width(word) > columns) {
      new_line();
      spaces = {};
    }
    if (used() + static_cast<int>(spaces.size()) < columns) lines.back() += spaces;
    while (used() + display_width(word) > columns) {
      const std::size_t most = fitting(word, columns - used());
      std::size_t part = break_in_word(word, most);
      if (part == 0) {  // a wide character in a line of one column
        std::size_t one = 0;
        next_code_point(word, one);
        part = one;
      }
      lines.back() += word.substr(0, part);
      word.remove_prefix(part);
      if (word.empty()) break;
      new_line();
    }
    lines.back() += word;
    empty = false;
  }
  return lines;
}

std::string paragraph(std::string_view text, int columns, int hanging) {
  std::string lines;
  for (const std::string& line : wrapped(text, columns, hanging)) lines += line + '\n';
  return lines;
}

}  // namespace meshwright
