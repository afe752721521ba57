#include "reports/table.h"

#include <gtest/gtest.h>

#include "reports/figures.h"

namespace meshwright {
namespace {

TEST(Table, NumbersStandOnTheRightAndTextOnTheLeft) {
  Table table({{"mesh", Align::kLeft}, {"step ms"}});
  table.add_row({"8x2x2", "812.4"});
  table.add_row({"32x1x1", "9.1"});
  EXPECT_EQ(table.render(),
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
  EXPECT_EQ(table.render(),
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
  EXPECT_EQ(table.render(2),
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
  EXPECT_EQ(milliseconds({0.8124}), "812.4");
  EXPECT_EQ(milliseconds({0.0012345}), "1.234");  // the double lies below the half
  EXPECT_EQ(percent(0.4129), "41.3");
  EXPECT_EQ(seconds_text(0.25), "250 ms");
  EXPECT_EQ(seconds_text(125), "2 min 5 s");
  EXPECT_EQ(flops_text(1.5e15), "1.5 PFLOP");
  EXPECT_EQ(flops_text(999.9e9), "1 TFLOP");
}

}  // namespace
}  // namespace meshwright
