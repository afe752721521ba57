#include "reports/table.h"

#include <algorithm>
#include <utility>

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
         (c >= 0xf900 && c <= 0xfaff) || (c >= 0xff00 && c <= 0xff60) || (c >= 0x1f300 && c <= 0x1faff);
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines(1);
  for (const char c : text) {
    if (c == '\n')
      lines.emplace_back();
    else
      lines.back() += c;
  }
  return lines;
}

std::string without_trailing_spaces(std::string line) {
  line.erase(line.find_last_not_of(' ') + 1);
  return line;
}

constexpr int kGap = 2;

}  // namespace

int display_width(std::string_view text) {
  int width = 0;
  for (std::size_t at = 0; at < text.size();) {
    const char32_t c = next_code_point(text, at);
    width += is_combining(c) ? 0 : is_wide(c) ? 2 : 1;
  }
  return width;
}

Table::Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

void Table::add_row(std::vector<std::string> cells) {
  check(cells.size() == columns_.size(), "a row of {} cells in a table of {} columns", cells.size(), columns_.size());
  rows_.push_back(std::move(cells));
}

void Table::add_rule() { rows_.emplace_back(); }

std::string Table::render(int indent) const {
  std::vector<std::vector<std::string>> headers;
  std::vector<int> width;
  std::size_t header_lines = 0;
  for (const Column& column : columns_) {
    headers.push_back(lines_of(column.header));
    header_lines = std::max(header_lines, headers.back().size());
    width.push_back(0);
    for (const std::string& line : headers.back()) width.back() = std::max(width.back(), display_width(line));
  }
  for (const auto& row : rows_)
    for (std::size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], display_width(row[i]));
  int total = columns_.empty() ? 0 : -kGap;
  for (const int w : width) total += w + kGap;

  const std::string margin(static_cast<std::size_t>(indent), ' ');
  std::string text;
  const auto write = [&](const std::vector<std::string>& cells) {
    std::string line = margin;
    for (std::size_t i = 0; i < cells.size(); ++i) {
      if (i > 0) line.append(kGap, ' ');
      const std::string space(static_cast<std::size_t>(width[i] - display_width(cells[i])), ' ');
      line += columns_[i].align == Align::kRight ? space + cells[i] : cells[i] + space;
    }
    text += without_trailing_spaces(std::move(line)) + '\n';
  };
  const auto rule = [&] {
    text += margin;
    for (int i = 0; i < total; ++i) text += "─";
    text += '\n';
  };
  for (std::size_t line = 0; line < header_lines; ++line) {
    std::vector<std::string> cells;
    for (const auto& header : headers) {
      const std::size_t above = header_lines - header.size();
      cells.push_back(line < above ? "" : header[line - above]);
    }
    write(cells);
  }
  rule();
  for (const auto& row : rows_) {
    if (row.empty())
      rule();
    else
      write(row);
  }
  return text;
}

}  // namespace meshwright
