// Text tables for terminals: columns aligned, two spaces apart, headers above a rule.
//
//   mesh   step ms
//   ──────────────
//   8x2x2    812.4
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace meshwright {

enum class Align : std::uint8_t { kLeft, kRight };  // numbers stand on the right

struct Column {
  std::string header;  // may have several lines; all headers end on the last one
  Align align = Align::kRight;
  // How the column gives way in a terminal that is narrower than the table:
  std::string narrow_header = "";  // instead of `header`; empty: that one
  int wraps_to = 0;                // its cells may be wrapped into as few columns as this; 0: they stay whole
  int priority = 0;                // 0: stays; else it may be left out, the highest number first
};

class Table {
 public:
  explicit Table(std::vector<Column> columns);

  // One cell a column, each a single line.
  void add_row(std::vector<std::string> cells);
  // A line across, as below the headers.
  void add_rule();

  // Every line ends with a line break and has no spaces at its end; `indent` spaces before each. No line is wider than
  // `columns`, if that is at least 3 for each of the table's columns, beside the indent. What gives way, in this order,
  // until the table fits: headers become narrow_headers; cells are wrapped where they may be; columns with a priority are
  // left out. Where that isn't enough, the widest column is wrapped wherever it is. A column with nothing in it is left out.
  std::string render_within(int columns, int indent = 0) const;

 private:
  struct Layout;
  Layout layout(int room) const;

  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;  // empty: a rule
};

}  // namespace meshwright
