#include "reports/table.h"

#include <gtest/gtest.h>

#include <limits>
#include <sstream>

#include "reports/figures.h"
#include "reports/text.h"

namespace meshwright {
namespace {

TEST(Table, NumbersStandOnTheRightAndTextOnTheLeft) {
  Table table({{"mesh", Align::kLeft}, {"step ms"}});
  table.add_row({"8x2x2", "812.4"});
  table.add_row({"32x1x1", "9.1"});
  EXPECT_EQ(table.render_within(80),
            "mesh    step ms\n"
            "───────────────\n"
            "8x2x2     812.4\n"
            "32x1x1      9.1\n");
}

TEST(Table, AlignsTextByWhatATerminalShowsAndNotByItsBytes) {
  Table table({{"name", Align::kLeft}, {"n"}});
  table.add_row({"größe", "1"});
  table.add_row({"模型", "2"});       // two wide signs: four columns
  table.add_row({"e\u0301te", "3"});  // e with a combining accent: three columns
  EXPECT_EQ(table.render_within(80),
            "name   n\n"
            "────────\n"
            "größe  1\n"
            "模型   2\n"
            "e\u0301te    3\n");
}

TEST(Table, HeadersOfSeveralLinesEndOnTheLastOne) {
  Table table({{"plan", Align::kLeft}, {"peak\nGiB"}});
  table.add_row({"a", "1.00"});
  table.add_rule();
  table.add_row({"b", "2.00"});
  EXPECT_EQ(table.render_within(80, 2),
            "        peak\n"
            "  plan   GiB\n"
            "  ──────────\n"
            "  a     1.00\n"
            "  ──────────\n"
            "  b     2.00\n");
}

TEST(Table, ARowOfAnotherLengthIsOurMistake) {
  Table table({{"a"}});
  EXPECT_THROW(table.add_row({"1", "2"}), std::logic_error);
}

// The table of the tests below, 33 columns wide in full: name 16, count 13.
Table four_columns() {
  Table table({{"name", Align::kLeft, "", 8},
               {"number of\nthem all", Align::kRight, "n", 0, 1},
               {"share", Align::kRight, "", 0, 2}});
  table.add_row({"a name in words", "1,000,000", "0.50"});
  table.add_row({"b", "2", "0.25"});
  return table;
}

TEST(Table, WithRoomEnoughNothingGivesWay) {
  EXPECT_EQ(four_columns().render_within(33),
            "                 number of\n"
            "name              them all  share\n"
            "─────────────────────────────────\n"
            "a name in words  1,000,000   0.50\n"
            "b                        2   0.25\n");
}

TEST(Table, HeadersAreShortenedThenCellsWrappedThenColumnsLeftOutTheLastPriorityFirst) {
  EXPECT_EQ(four_columns().render_within(32),
            "name                    n  share\n"
            "────────────────────────────────\n"
            "a name in       1,000,000   0.50\n"
            "words\n"
            "b                       2   0.25\n");
  EXPECT_EQ(four_columns().render_within(25),  // name 14 + 2 + n 9, as name 8 + 2 + n 9 + 2 + share 5 is 26
            "name                    n\n"
            "─────────────────────────\n"
            "a name in       1,000,000\n"
            "words\n"
            "b                       2\n");
  EXPECT_EQ(four_columns().render_within(15),
            "name\n"
            "───────────────\n"
            "a name in words\n"
            "b\n");
}

TEST(Table, WhereNothingMayGiveWayTheWidestCellsAreBroken) {
  Table table({{"key"}, {"number"}});
  table.add_row({"a", "1,234,567,890"});
  EXPECT_EQ(table.render_within(12),
            "key   number\n"
            "────────────\n"
            "  a   1,234,\n"
            "     567,890\n");
}

TEST(Table, ColumnsInWhichNothingStandsTakeNoRoom) {
  Table table({{"", Align::kLeft}, {"a"}, {""}, {"b"}});
  table.add_row({"", "1", "", "2"});
  EXPECT_EQ(table.render_within(80), "a  b\n────\n1  2\n");
}

TEST(Table, NoLineIsWiderThanTheTerminalWhateverStandsInIt) {
  for (const int columns : {20, 33, 40, 57, 80, 120})
    for (const std::string& word :
         {std::string(300, 'x'), std::string("模型の名前がとても長いので端末に入らない"),
          std::string("a b c d e f g h i j k l m n o p"), std::string("e\u0301\u0301 \xff\xfe")}) {
      Table table({{"name", Align::kLeft, "", 8},
                   {"mesh\n" + word, Align::kLeft, "", 0, 1},
                   {"n"},
                   {word, Align::kRight, "h"}});
      table.add_row({word, word, "123,456,789", word});
      table.add_row({"  " + word, "8x2x2", "1", "2"});
      table.add_rule();
      for (const int indent : {0, 2}) {
        std::istringstream lines(table.render_within(columns, indent));
        for (std::string line; std::getline(lines, line);) EXPECT_LE(display_width(line), columns) << line;
      }
    }
}

TEST(DisplayWidth, BytesThatAreNoUtf8TakeAColumnEach) {
  EXPECT_EQ(display_width("\xff\xfe"), 2);
  EXPECT_EQ(display_width("\xe6\xa8"), 2);  // a cut sequence
  EXPECT_EQ(display_width(""), 0);
}

TEST(Figures, AreWrittenWithTheirUnits) {
  EXPECT_EQ(with_commas(949248384), "949,248,384");
  EXPECT_EQ(with_commas(-1000), "-1,000");
  EXPECT_EQ(with_commas(0), "0");
  EXPECT_EQ(gib({kGiB / 2}), "0.50");
  EXPECT_EQ(bytes_text({512}), "512 B");
  EXPECT_EQ(bytes_text({3 * kGiB / 2}), "1.50 GiB");
  EXPECT_EQ(percent(0.4129), "41.3");
  EXPECT_EQ(flops_text(1.5e15), "1.5 PFLOP");
  EXPECT_EQ(flops_text(999.9e9), "1 TFLOP");
}

TEST(Figures, TimesAreSaidAsPeopleSayThem) {
  EXPECT_EQ(seconds_text(0), "0 ms");
  EXPECT_EQ(seconds_text(0.0074321), "7.432 ms");
  EXPECT_EQ(seconds_text(0.2017), "201.7 ms");
  EXPECT_EQ(seconds_text(0.99996), "1 s");  // not 1000 ms
  EXPECT_EQ(seconds_text(3.2149), "3.21 s");
  EXPECT_EQ(seconds_text(59.96), "1.0 min");  // not 60 s
  EXPECT_EQ(seconds_text(125), "2.1 min");
  EXPECT_EQ(seconds_text(5076.9197), "85 min");
  EXPECT_EQ(seconds_text(2 * 3600), "2.0 h");
  EXPECT_EQ(seconds_text(26100 * 0.2017), "88 min");
  EXPECT_EQ(seconds_text(47 * 3600), "47 h");
  EXPECT_EQ(seconds_text(47.9 * 3600), "2.0 d");
  EXPECT_EQ(seconds_text(106.75 * 86400), "107 d");
  EXPECT_EQ(seconds_text(std::numeric_limits<double>::infinity()), "inf d");
}

TEST(Figures, AColumnOfTimesHasOneUnitThatOfItsMedian) {
  const TimeScale ms = time_scale({0.2, 0, 1.2017, 0.0074});
  EXPECT_EQ(ms.unit, "ms");
  EXPECT_EQ(ms.text(0.2), "200.0");
  EXPECT_EQ(ms.text(1.2017), "1,201.7");
  EXPECT_EQ(ms.text(0.0074), "7.4");
  EXPECT_EQ(ms.text(0), "0.0");
  const TimeScale min = time_scale({5076.9, 300, 9000});
  EXPECT_EQ(min.unit, "min");
  EXPECT_EQ(min.text(5076.9), "84.6");
  EXPECT_EQ(min.text(300), "5.0");
  EXPECT_EQ(time_scale({1.5}).text(1.5), "1.50");  // s
  EXPECT_EQ(time_scale({0.0005}).text(0.0005), "0.500");
  EXPECT_EQ(time_scale({}).unit, "ms");
}

TEST(Figures, NoTimeOtherThanZeroReadsAsZeroInAColumn) {
  const TimeScale ms = time_scale({0.2, 0.3, 0.000'021});
  EXPECT_EQ(ms.text(0.2), "200.00");
  EXPECT_EQ(ms.text(0.000'021), "0.02");
  const TimeScale mixed = time_scale({9 * 86400.0, 0, 8 * 86400.0, 12.3, 0.0045});  // days, a slow link's
  EXPECT_EQ(mixed.heading("step", "\n"), "step");
  EXPECT_EQ(mixed.text(9 * 86400.0), "9.0 d");
  EXPECT_EQ(mixed.text(12.3), "12.3 s");
  EXPECT_EQ(mixed.text(0.0045), "4.5 ms");
  EXPECT_EQ(mixed.text(0), "0");
  EXPECT_EQ(time_scale({600, 500}).heading("step", "\n"), "step\nmin");
  EXPECT_EQ(time_scale({2, 0.02}, 2).text(0.02), "0.02");  // the unit and digits of what is called the main one
  EXPECT_EQ(time_scale({2, 0.02, 0.02}).text(2), "2,000.0");
}

}  // namespace
}  // namespace meshwright
