#include "reports/table.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "model/program/check.h"
#include "reports/text.h"

namespace meshwright {
namespace {

constexpr int kGap = 2;

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

int width_of_lines(const std::string& text) {
  int width = 0;
  for (const std::string& line : lines_of(text)) width = std::max(width, display_width(line));
  return width;
}

std::string without_trailing_spaces(std::string line) {
  line.erase(line.find_last_not_of(' ') + 1);
  return line;
}

}  // namespace

// The columns that are shown, left to right.
struct Table::Layout {
  std::vector<std::size_t> column;
  std::vector<int> width;
  bool narrow = false;  // headers

  int total() const {
    return std::accumulate(width.begin(), width.end(), 0) + kGap * (static_cast<int>(width.size()) - 1);
  }
};

Table::Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

void Table::add_row(std::vector<std::string> cells) {
  check(cells.size() == columns_.size(), "a row of {} cells in a table of {} columns", cells.size(), columns_.size());
  rows_.push_back(std::move(cells));
}

void Table::add_rule() { rows_.emplace_back(); }

Table::Layout Table::layout(int room) const {
  std::vector<int> cells(columns_.size(), 0);
  for (const auto& row : rows_)
    for (std::size_t i = 0; i < row.size(); ++i) cells[i] = std::max(cells[i], display_width(row[i]));
  Layout out;
  std::vector<int> least;  // of each shown column, with narrow headers
  const auto take = [&](bool narrow, int highest_priority) {
    out = {{}, {}, narrow};
    least.clear();
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      const Column& c = columns_[i];
      const int header = width_of_lines(narrow && !c.narrow_header.empty() ? c.narrow_header : c.header);
      if (c.priority > highest_priority || std::max(header, cells[i]) == 0) continue;
      out.column.push_back(i);
      out.width.push_back(std::max(header, cells[i]));
      least.push_back(c.wraps_to > 0 ? std::max(header, std::min(cells[i], c.wraps_to)) : out.width.back());
    }
  };
  const auto least_total = [&] {
    return std::accumulate(least.begin(), least.end(), 0) + out.total() -
           std::accumulate(out.width.begin(), out.width.end(), 0);
  };

  int priority = 0;
  for (const Column& c : columns_) priority = std::max(priority, c.priority);
  take(false, priority);
  if (out.total() <= room) return out;
  take(true, priority);
  while (least_total() > room && priority > 0) take(true, --priority);
  // The widest gives way first, of those that may; where none may, of all.
  while (out.total() > room) {
    std::size_t widest = out.width.size();
    for (const bool any : {false, true}) {
      for (std::size_t i = 0; i < out.width.size(); ++i)
        if (out.width[i] > (any ? 1 : least[i]) && (widest == out.width.size() || out.width[i] > out.width[widest]))
          widest = i;
      if (widest < out.width.size()) break;
    }
    if (widest == out.width.size()) break;
    --out.width[widest];
  }
  return out;
}

std::string Table::render_within(int columns, int indent) const {
  const Layout shown = layout(columns - indent);
  const std::string margin(static_cast<std::size_t>(indent), ' ');
  std::string text;
  // Cells of several lines each: those of a header end on the same line, those of a row begin there.
  const auto write = [&](const std::vector<std::vector<std::string>>& cells, bool at_the_end) {
    std::size_t height = 0;
    for (const auto& cell : cells) height = std::max(height, cell.size());
    for (std::size_t y = 0; y < height; ++y) {
      std::string line = margin;
      for (std::size_t i = 0; i < cells.size(); ++i) {
        if (i > 0) line.append(kGap, ' ');
        const std::size_t above = at_the_end ? height - cells[i].size() : 0;
        const std::string part = y < above || y - above >= cells[i].size() ? "" : cells[i][y - above];
        const std::string space(static_cast<std::size_t>(std::max(0, shown.width[i] - display_width(part))), ' ');
        line += columns_[shown.column[i]].align == Align::kRight ? space + part : part + space;
      }
      text += without_trailing_spaces(std::move(line)) + '\n';
    }
  };
  const auto rule = [&] {
    text += margin;
    for (int i = 0; i < shown.total(); ++i) text += "─";
    text += '\n';
  };
  // Lines that fit; what a cell's first line is indented by, its further lines are by two more.
  const auto lines = [&](const std::string& cell, int width) -> std::vector<std::string> {
    if (display_width(cell) <= width) return {cell};
    const std::size_t spaces = std::min(cell.find_first_not_of(' '), cell.size());
    return wrapped(cell, width, spaces == 0 ? 0 : static_cast<int>(spaces) + 2);
  };

  std::vector<std::vector<std::string>> headers;
  for (std::size_t i = 0; i < shown.column.size(); ++i) {
    const Column& c = columns_[shown.column[i]];
    headers.emplace_back();
    for (const std::string& line : lines_of(shown.narrow && !c.narrow_header.empty() ? c.narrow_header : c.header))
      for (std::string& part : lines(line, shown.width[i])) headers.back().push_back(std::move(part));
  }
  write(headers, true);
  rule();
  for (const auto& row : rows_) {
    if (row.empty()) {
      rule();
      continue;
    }
    std::vector<std::vector<std::string>> cells;
    for (std::size_t i = 0; i < shown.column.size(); ++i) cells.push_back(lines(row[shown.column[i]], shown.width[i]));
    write(cells, false);
  }
  return text;
}

}  // namespace meshwright
