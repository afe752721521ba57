// Every input of tests/fuzz/corpus/, run without a fuzzer.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <ostream>
#include <vector>

#include "tests/fuzz/targets.h"

namespace meshwright::fuzz {

void PrintTo(const Target& target, std::ostream* out) { *out << target.name; }

namespace {

std::string bytes_of(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class Corpus : public ::testing::TestWithParam<Target> {};

TEST_P(Corpus, KeepsEveryPromise) {
  const Target& target = GetParam();
  std::vector<std::filesystem::path> files;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(REPOSITORY) / "tests/fuzz/corpus" / target.name))
    files.push_back(entry.path());
  std::ranges::sort(files);
  ASSERT_FALSE(files.empty());
  for (const std::filesystem::path& file : files) {
    try {
      target.run(bytes_of(file));
    } catch (const std::exception& error) {
      ADD_FAILURE() << file.string() << ": " << error.what();
    }
  }
}

// A mutation of what was mutated is still one: each gave something of the target's form. A change of the form that this
// test is not told of would turn the mutators into idle ones unseen.
TEST_P(Corpus, StaysOfItsFormUnderMutation) {
  const Target& target = GetParam();
  if (target.mutate == nullptr) GTEST_SKIP() << "mutated as bytes";
  std::string text = bytes_of(std::filesystem::path(REPOSITORY) / "tests/fuzz/corpus" / target.name / "accepted");
  std::mt19937 random(1);
  int changes = 0;
  for (int i = 0; i < 50; ++i) {
    std::string mutated = target.mutate(text, random);
    changes += mutated != text;
    text = std::move(mutated);
  }
  EXPECT_GT(changes, 25);
}

INSTANTIATE_TEST_SUITE_P(Fuzz, Corpus, ::testing::ValuesIn(kTargets),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace meshwright::fuzz
