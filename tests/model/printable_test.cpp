#include "model/input/printable.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <nlohmann/json.hpp>

namespace meshwright {
namespace {

TEST(Printable, TextOfEveryScriptStaysAsItIs) {
  for (const std::string text : {"", "v4:2x4x4", "C:\\n", "Größe, 日本語, עברית, 🙂", "a ~ b"})
    EXPECT_EQ(printable(text), text);
}

TEST(Printable, WhatATerminalObeysIsWrittenOut) {
  EXPECT_EQ(printable("a\x1b[31mb"), "a\\x1b[31mb");
  EXPECT_EQ(printable(std::string("a\0b", 3)), "a\\x00b");
  EXPECT_EQ(printable("a\nb\tc\rd\x7f"), "a\\nb\\tc\\x0dd\\x7f");
  EXPECT_EQ(printable("\xc2\x9b"
                      "2J"),
            "\\x9b2J");  // CSI of C1
  EXPECT_EQ(printable("\xe2\x80\xae"
                      "x\xe2\x81\xa9"),
            "\\u202ex\\u2069");                     // right-to-left override, end of an isolate
  EXPECT_EQ(printable("\xe2\x80\xa8"), "\\u2028");  // line separator
}

TEST(Printable, BytesThatAreNoUtf8AreWrittenOutOneByOne) {
  EXPECT_EQ(printable("a\xff"), "a\\xff");
  EXPECT_EQ(printable("\xc3"), "\\xc3");                             // cut off
  EXPECT_EQ(printable("\xc0\x9b"), "\\xc0\\x9b");                    // the escape character in two bytes
  EXPECT_EQ(printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");           // a surrogate
  EXPECT_EQ(printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");  // above U+10FFFF
  EXPECT_EQ(printable("\x9b"), "\\x9b");                             // C1 as a terminal of 8 bits reads it
}

RC_GTEST_PROP(Printable, AnyBytesBecomeUtf8WithoutControlCharactersThatPrintsAsItself, (const std::string& bytes)) {
  const std::string shown = printable(bytes);
  for (const char c : shown) RC_ASSERT(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f);
  nlohmann::json(shown).dump();  // throws where it is no UTF-8
  RC_ASSERT(printable(shown) == shown);
}

}  // namespace
}  // namespace meshwright
