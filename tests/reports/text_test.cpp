#include "reports/text.h"

#include <gtest/gtest.h>

namespace meshwright {
namespace {

using Lines = std::vector<std::string>;

TEST(Truncated, KeepsWhatFitsAndSaysThatSomethingIsMissing) {
  EXPECT_EQ(truncated("12 of 1,340 plans", 17), "12 of 1,340 plans");
  EXPECT_EQ(truncated("12 of 1,340 plans", 16), "12 of 1,340 pla…");
  EXPECT_EQ(truncated("abc", 1), "…");
  EXPECT_EQ(truncated("abc", 0), "");
  EXPECT_EQ(truncated("模型模型", 6), "模型…");  // the third sign would be half in the sixth column
}

TEST(Wrapped, BreaksAtSpacesAndIndentsWhatFollows) {
  EXPECT_EQ(wrapped("one two three four", 9), (Lines{"one two", "three", "four"}));
  EXPECT_EQ(wrapped("one two three four", 9, 2), (Lines{"one two", "  three", "  four"}));
  EXPECT_EQ(wrapped("  indented  text", 80), (Lines{"  indented  text"}));
  EXPECT_EQ(wrapped("", 10), (Lines{""}));
}

TEST(Wrapped, AWordMovesToTheNextLineWholeAndIsBrokenOnlyIfItIsLongerThanALine) {
  EXPECT_EQ(wrapped("plan 8x2x2,fsdp=3", 14, 2), (Lines{"plan", "  8x2x2,fsdp=3"}));
  EXPECT_EQ(wrapped("plan 8x2x2,fsdp=3", 11), (Lines{"plan", "8x2x2,fsdp=", "3"}));
  EXPECT_EQ(wrapped("abcdefghij", 4), (Lines{"abcd", "efgh", "ij"}));
  EXPECT_EQ(wrapped("模型模型", 5), (Lines{"模型", "模型"}));
  EXPECT_EQ(wrapped("e\u0301e\u0301e\u0301", 2), (Lines{"e\u0301e\u0301", "e\u0301"}));  // marks stay with their letter
}

TEST(Wrapped, EndsInAnyWidthAndLosesNothingButSpaces) {
  const std::string text = "moe1B on v4: 8x2x2,schedule=gpipe 模型の名前 \xff\xfe e\u0301";
  const auto without_spaces = [](std::string s) {
    std::erase(s, ' ');
    return s;
  };
  for (int columns = 1; columns < 70; ++columns)
    for (const int hanging : {0, 2}) {
      std::string all;
      for (const std::string& line : wrapped(text, columns, hanging)) {
        if (columns > 1) {
          EXPECT_LE(display_width(line), columns) << line;
        }
        all += line;
      }
      EXPECT_EQ(without_spaces(all), without_spaces(text)) << columns;
    }
}

TEST(Paragraph, EndsEveryLine) { EXPECT_EQ(paragraph("one two", 4), "one\ntwo\n"); }

}  // namespace
}  // namespace meshwright
