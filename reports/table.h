// Text tables for terminals: columns aligned, two spaces apart, headers above a rule.
//
//   mesh   step ms
//   ──────────────
//   8x2x2    812.4
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace meshwright {

enum class Align : std::uint8_t { kLeft, kRight };  // numbers stand on the right

struct Column {
  std::string header;  // may have several lines; all headers end on the last one
  Align align = Align::kRight;
};

class Table {
 public:
  explicit Table(std::vector<Column> columns);

  // One cell a column, each a single line.
  void add_row(std::vector<std::string> cells);
  // A line across, as below the headers.
  void add_rule();

  // Every line ends with a line break and has no spaces at its end; `indent` spaces before each.
  std::string render(int indent = 0) const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;  // empty: a rule
};

// Columns of a terminal that UTF-8 text takes: one a code point, none for combining marks, two for wide East Asian ones.
// Bytes that are no UTF-8 take one each.
int display_width(std::string_view text);

}  // namespace meshwright
