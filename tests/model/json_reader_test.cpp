#include "model/input/json_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <array>
#include <filesystem>
#include <fstream>

namespace meshwright {
namespace {

using ::testing::HasSubstr;

std::vector<Diagnostic> faults_of_text(const std::string& text) {
  try {
    parse_json(text, "f.json");
  } catch (const InputError& error) {
    return error.diagnostics();
  }
  return {};
}

TEST(ParseJson, SyntaxErrorsNameLineAndColumn) {
  const auto faults = faults_of_text("{\n  \"a\": 1,\n  \"b\": }\n");
  ASSERT_EQ(faults.size(), 1u);
  EXPECT_EQ(faults[0].source, "f.json");
  EXPECT_EQ(faults[0].path, "line 3, column 8");
  EXPECT_THAT(faults[0].hint, HasSubstr("syntax error"));
}

TEST(ParseJson, AnEmptyOrCutTextEndsInAnError) {
  for (const std::string text : {"", " ", "{", "{\"a\"", "{\"a\":", "[1,", "\"x", "tru", "-"}) {
    const auto faults = faults_of_text(text);
    ASSERT_EQ(faults.size(), 1u) << text;
    EXPECT_THAT(faults[0].path, HasSubstr("line 1, column"));
  }
}

TEST(ParseJson, NotANumberAndInfinityAreNoJson) {
  for (const std::string text : {"{\"a\": NaN}", "{\"a\": Infinity}", "{\"a\": 1e999}", "{\"a\": -1e999}"}) {
    EXPECT_EQ(faults_of_text(text).size(), 1u) << text;
  }
}

TEST(ParseJson, TextAfterTheValueIsAnError) { EXPECT_EQ(faults_of_text("{} {}").size(), 1u); }

TEST(ParseJson, DuplicateKeysAreNamedByPath) {
  const auto faults = faults_of_text(R"({"a": {"x": 1, "x": 2}, "l": [{}, {"y": 1, "y": 1}], "a": 3})");
  ASSERT_EQ(faults.size(), 3u);
  EXPECT_EQ(faults[0].path, "a.x");
  EXPECT_EQ(faults[1].path, "l[1].y");
  EXPECT_EQ(faults[2].path, "a");
}

TEST(ParseJson, NestingStopsAt64) {
  auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_TRUE(faults_of_text(nested(64)).empty());
  EXPECT_EQ(faults_of_text(nested(65)).size(), 1u);
  EXPECT_EQ(faults_of_text(std::string(1'000'000, '[')).size(), 1u);
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  EXPECT_EQ(faults_of_text(objects).size(), 1u);
}

TEST(ReadJsonFile, MissingDirectoryAndTooLargeAreNamed) {
  const auto folder = std::filesystem::temp_directory_path() / "meshwright_json_reader_test";
  std::filesystem::create_directories(folder);
  auto faults_of_file = [](const std::filesystem::path& file) -> std::vector<Diagnostic> {
    try {
      read_json_file(file);
    } catch (const InputError& error) {
      return error.diagnostics();
    }
    return {};
  };
  EXPECT_EQ(faults_of_file(folder / "none.json").at(0).allowed, "a file that exists");
  EXPECT_THAT(faults_of_file(folder).at(0).hint, HasSubstr("directory"));
  EXPECT_THAT(faults_of_file("/dev/zero").at(0).allowed, HasSubstr("at most 16777216 bytes"));
  EXPECT_THAT(faults_of_file("/dev/null").at(0).path, HasSubstr("line 1"));
  std::ofstream(folder / "good.json") << "{\"a\": [1]}";
  EXPECT_TRUE(faults_of_file(folder / "good.json").empty());
  std::filesystem::remove_all(folder);
}

TEST(JsonReader, ReadsEveryKindOfValue) {
  const JsonDocument document = parse_json(
      R"({"n": 3, "hbm_GiB": 32, "on": true, "word": "b", "axes": [2, 4], "link": {"GBps": 4.5}, "list": [{"i": 0}, {"i": 1}]})",
      "system.json");
  JsonReader reader(document);
  ObjectReader root = reader.root();
  EXPECT_EQ(root.integer("n", {0, 5}), 3);
  EXPECT_EQ(root.number("hbm_GiB", {.min = 0}), 32.0);
  EXPECT_EQ(root.boolean("on"), true);
  EXPECT_EQ(root.one_of("word", {"a", "b"}), "b");
  EXPECT_EQ(root.integers("axes", std::nullopt, {1, 8}), (std::vector<std::int64_t>{2, 4}));
  EXPECT_EQ(root.object("link")->number("GBps", {}), 4.5);
  std::int64_t sum = 0;
  const auto list = root.objects("list");
  for (ObjectReader element : *list) sum += *element.integer("i", {});
  EXPECT_EQ(sum, 1);
  EXPECT_FALSE(root.has("comment"));
  EXPECT_NO_THROW(reader.finish());
}

TEST(JsonReader, FindsEverythingInOnePass) {
  const JsonDocument document = parse_json(
      R"({"n": 9, "hbm_GB": 32, "on": 1, "list": [{"j": 0}, 4], "axes": [2, "4"], "odd key": 1})", "system.json");
  JsonReader reader(document);
  ObjectReader root = reader.root();
  EXPECT_FALSE(root.integer("n", {0, 5}));
  EXPECT_FALSE(root.number("hbm_GiB", {.min = 0}));
  EXPECT_FALSE(root.boolean("on"));
  EXPECT_FALSE(root.objects("list"));
  EXPECT_FALSE(root.integers("axes", 2, {}));
  try {
    reader.finish();
    FAIL() << "nothing was thrown";
  } catch (const InputError& error) {
    EXPECT_STREQ(error.what(),
                 "system.json: n = 9: allowed: an integer from 0 to 5; hint: change it to one in this range\n"
                 "system.json: hbm_GiB = (missing): allowed: a number of at least 0; hint: add it\n"
                 "system.json: on = 1: allowed: true or false; hint: this is an integer\n"
                 "system.json: list = [{\"j\":0},4]: allowed: an array of objects; hint: this is an array\n"
                 "system.json: axes = [2,\"4\"]: allowed: an array of 2 elements, each an integer; hint: "
                 "this is an array\n"
                 "system.json: hbm_GB = 32: allowed: known keys here: n, hbm_GiB, on, list, axes; hint: did "
                 "you mean hbm_GiB?\n"
                 "system.json: [\"odd key\"] = 1: allowed: known keys here: n, hbm_GiB, on, list, axes; "
                 "hint: remove it");
  }
}

TEST(JsonReader, LongValuesAreShortenedBetweenCharacters) {
  std::string long_text;
  for (int i = 0; i < 200; ++i) long_text += "\xC3\xA9";  // e with an acute accent
  const JsonDocument document = parse_json("{\"n\": \"" + long_text + "\"}", "f.json");
  JsonReader reader(document);
  reader.root().integer("n", {});
  try {
    reader.finish();
    FAIL();
  } catch (const InputError& error) {
    const std::string value = error.diagnostics().at(0).value;
    EXPECT_LE(value.size(), 80u);
    EXPECT_NO_THROW((void)Json(value).dump());  // still UTF-8
  }
}

TEST(JsonReader, ADocumentThatIsNoObjectIsRefusedAtOnce) {
  const JsonDocument document = parse_json("[1]", "f.json");
  JsonReader reader(document);
  EXPECT_THROW(reader.root(), InputError);
}

TEST(JsonReader, AWholeNumberWrittenWithAPointOrAnExponentIsAnInteger) {
  const auto read = [](const std::string& number) -> std::optional<std::int64_t> {
    const JsonDocument document = parse_json("{\"n\": " + number + "}", "f.json");
    JsonReader reader(document);
    return reader.root().integer("n", {});
  };
  EXPECT_EQ(read("34300000000.0"), 34'300'000'000);
  EXPECT_EQ(read("3.43e10"), 34'300'000'000);
  EXPECT_EQ(read("-2.0"), -2);
  EXPECT_EQ(read("9007199254740992.0"), std::int64_t{1} << 53);
  for (const char* none : {"2.5", "9007199254740994.0", "1e19", "1e300", "\"2\"", "true", "null"})
    EXPECT_EQ(read(none), std::nullopt) << none;
}

TEST(JsonReader, SaysOfANumberWhereAnObjectBelongsThatItIsANumberAndWhatToWrite) {
  const JsonDocument document = parse_json(R"({"a": 4.5e10, "b": 4.5e10, "c": 2.5})", "f.json");
  JsonReader reader(document);
  ObjectReader root = reader.root();
  EXPECT_EQ(root.value_text("a"), "45000000000.0");
  EXPECT_EQ(root.value_text("d"), "");
  root.object("a", "write one");
  root.object("b");
  root.integer("c", {});
  try {
    reader.finish();
    FAIL() << "nothing was thrown";
  } catch (const InputError& error) {
    EXPECT_STREQ(error.what(),
                 "f.json: a = 45000000000.0: allowed: an object; hint: this is a number: write one\n"
                 "f.json: b = 45000000000.0: allowed: an object; hint: this is a number\n"
                 "f.json: c = 2.5: allowed: an integer; hint: this is a number, but no integer of 64 bits");
  }
}

TEST(OptionalKeys, HaveWhatIsSaidWhereTheyAreMissing) {
  const JsonDocument document =
      parse_json(R"({"i": 3, "n": 0.5, "b": true, "w": "x", "null": null, "l": ["x", "y"]})", "f");
  JsonReader reader(document, NullIs::kMissing);
  ObjectReader root = reader.root();
  EXPECT_EQ(root.integer_or("i", 1, {}), 3);
  EXPECT_EQ(root.number_or("n", 1, {}), 0.5);
  EXPECT_TRUE(root.boolean_or("b", false));
  EXPECT_EQ(root.one_of_or("w", "y", {"x", "y"}), "x");
  EXPECT_EQ(root.words("l", {"x", "y"}), (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(root.integer_or("null", 1, {}), 1);
  EXPECT_EQ(root.number_or("none", 2, {}), 2);
  EXPECT_TRUE(root.boolean_or("none", true));
  EXPECT_EQ(root.one_of_or("none", "y", {"x", "y"}), "y");
  EXPECT_TRUE(root.has("null"));
  EXPECT_FALSE(root.given("null"));
  reader.finish();
}

TEST(OptionalKeys, AreRefusedLikeOthers) {
  const JsonDocument document = parse_json(R"({"i": 3, "null": null, "l": ["x", 1], "odd": 1})", "f");
  JsonReader reader(document);
  ObjectReader root = reader.root();
  EXPECT_EQ(root.integer_or("i", 1, {0, 2}), 1);
  EXPECT_EQ(root.integer_or("null", 1, {}), 1);  // a value, and no integer
  EXPECT_FALSE(root.words("l", {"x"}));
  EXPECT_EQ(root.unknown_keys(), (std::vector<std::string>{"odd"}));
  try {
    reader.finish();
    FAIL() << "nothing was thrown";
  } catch (const InputError& error) {
    ASSERT_EQ(error.diagnostics().size(), 4u);
    EXPECT_EQ(error.diagnostics()[1].value, "null");
    EXPECT_EQ(error.diagnostics()[2].allowed, "an array of strings, each x");
  }
}

TEST(NearestWord, IsSaidAsAHint) {
  const std::array<std::string_view, 2> words{"gpipe", "1f1b"};
  EXPECT_EQ(did_you_mean("gpip", words, "choose"), "did you mean gpipe?");
  EXPECT_EQ(did_you_mean("gpip", words, "choose", ":2x4"), "did you mean gpipe:2x4?");
  EXPECT_EQ(did_you_mean("else", words, "choose"), "choose");
}

TEST(NearestWord, IsFoundWithinAThirdOfTheLetters) {
  const std::vector<std::string> words{"n_head", "k", "model_dimension"};
  EXPECT_EQ(nearest_word("n_heads", words), "n_head");
  EXPECT_EQ(nearest_word("model_dimensoin", words), "model_dimension");
  EXPECT_EQ(nearest_word("wholly_other", words), std::nullopt);
}

RC_GTEST_PROP(ParseJson, AnyBytesGiveADocumentOrAnInputError, (const std::string& bytes)) {
  try {
    parse_json(bytes, "bytes");
  } catch (const InputError& error) {
    RC_ASSERT(!error.diagnostics().empty());
  }
}

}  // namespace
}  // namespace meshwright
