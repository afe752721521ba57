// Runs that start from weights in a file, and that leave theirs in one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/cli/binary.h"

namespace meshwright {
namespace {

using Json = nlohmann::json;
using testing::HasSubstr;
using Path = std::filesystem::path;

const std::string kTwoCores = std::string(TEST_DATA) + "/two_cores.json";
const std::string kModels = std::string(REPOSITORY) + "/configs/models/";

struct Case {
  TemporaryFolder folder;
  std::string data = folder.write("text.txt", [] {
    std::string text;
    for (int i = 0; i < 2000; ++i) text += "twelve drummers drumming " + std::to_string(i * 7919 % 1000) + "\n";
    return text;
  }());

  Outcome run(const std::string& model, const std::string& plan, const std::vector<std::string>& more) const {
    const auto devices = plan.starts_with("1x1x1") ? ":1" : "";
    return meshwright(with({"run", kModels + model + ".json", "--system", kTwoCores + devices, "--plan", plan, "--data",
                            data, "--batch", "4", "--tokens", "32", "--dtype", "f32", "--json"},
                           more),
                      &folder);
  }
  Path at(const std::string& name) const { return folder.path() / name; }
  std::string weights(const std::string& name) const { return text_of(at(name) / "model.safetensors"); }
};

std::vector<double> losses(const Outcome& outcome) {
  std::vector<double> all;
  std::istringstream in(outcome.out);
  for (std::string line; std::getline(in, line);)
    if (const Json json = Json::parse(line); json.contains("loss")) all.push_back(json.at("loss"));
  return all;
}

TEST(Weights, SavedAndLoadedOnAnotherMeshAndSavedAgainHaveTheSameBits) {
  for (const char* model : {"llama-tiny", "gpt2-tiny", "deepseek-v3-tiny", "minigpt-tiny"}) {
    SCOPED_TRACE(model);
    const Case c;
    // One step warms up from a rate of 0: what it is given it leaves as it is.
    const std::vector<std::string> still{
        "--steps", "1", "--set", "training.lr.min_lr=0", "--set", "training.lr.warmup_steps=10"};
    const Outcome trained = c.run(model, "1x1x1", {"--steps", "3", "--save-weights", c.at("trained").string()});
    ASSERT_EQ(trained.code, 0) << trained.err;
    EXPECT_THAT(trained.err, HasSubstr("the trained weights are in"));
    const Outcome drawn = c.run(model, "1x1x1", with(still, {"--save-weights", c.at("drawn").string()}));
    ASSERT_EQ(drawn.code, 0) << drawn.err;
    EXPECT_NE(c.weights("trained"), c.weights("drawn"));

    for (const char* plan : {"2x1x1,fsdp=3", "1x2x1,microbatches=2", "1x1x2"}) {
      SCOPED_TRACE(plan);
      const std::string out = std::string("again-") + std::string(plan, 5);
      const Outcome again = c.run(
          model, plan, with(still, {"--weights", c.at("trained").string(), "--save-weights", c.at(out).string()}));
      ASSERT_EQ(again.code, 0) << again.err;
      EXPECT_EQ(c.weights(out), c.weights("trained"));
    }
  }
}

TEST(Weights, ARunFromThoseThatItWouldHaveDrawnIsTheSameRun) {
  const Case c;
  const std::vector<std::string> three{"--steps", "3", "--set", "training.lr.warmup_steps=0"};
  ASSERT_EQ(c.run("qwen3-tiny", "1x1x1", {"--steps", "1", "--save-weights", c.at("drawn").string()}).code, 0);
  const Outcome drawn = c.run("qwen3-tiny", "1x1x1", three),
                loaded = c.run("qwen3-tiny", "1x1x1",
                               with(three, {"--seed", "9", "--weights", c.at("drawn/model.safetensors").string()})),
                other = c.run("qwen3-tiny", "1x1x1", with(three, {"--seed", "9"}));
  ASSERT_EQ(losses(drawn).size(), 3u) << drawn.err;
  EXPECT_EQ(losses(loaded), losses(drawn));
  EXPECT_NE(losses(other), losses(drawn));
}

TEST(Weights, ThatDoNotFitAreRefusedByFileTensorAndShapesBeforeAnyRankStarts) {
  const Case c;
  ASSERT_EQ(c.run("llama-tiny", "1x1x1", {"--steps", "1", "--save-weights", c.at("llama").string()}).code, 0);
  const auto refusal = [&](const std::string& model, const std::vector<std::string>& more) {
    const Outcome outcome = c.run(model, "1x1x1", more);
    EXPECT_EQ(outcome.code, 2) << outcome.err;
    EXPECT_EQ(outcome.out, "");
    EXPECT_THAT(outcome.err, testing::Not(HasSubstr("on 1 ranks")));
    return outcome.err;
  };
  const std::string file = c.at("llama/model.safetensors").string();
  const std::string narrow = refusal("llama-tiny", {"--weights", file, "--set", "intermediate_size=80"});
  EXPECT_THAT(narrow, HasSubstr(file));
  EXPECT_THAT(narrow, HasSubstr("model.layers.0.mlp.down_proj.weight"));
  EXPECT_THAT(narrow, HasSubstr(", 80)"));  // wanted, beside what is there
  EXPECT_THAT(refusal("gpt2-tiny", {"--weights", file}), HasSubstr(" wte.weight = (missing)"));
  EXPECT_THAT(refusal("llama-tiny", {"--weights", c.at("nowhere").string()}), HasSubstr("nowhere"));
  EXPECT_THAT(refusal("llama-tiny", {"--save-weights", c.at("llama").string()}), HasSubstr("is not written over"));
  EXPECT_THAT(refusal("llama-tiny", {"--weights", file, "--rehearse"}), HasSubstr("--rehearse"));
  const std::string text = text_of(file);
  const std::string cut = c.folder.write("cut.safetensors", text.substr(0, text.size() - 5));
  EXPECT_THAT(refusal("llama-tiny", {"--weights", cut}), HasSubstr("the file was cut"));
}

TEST(Weights, OfAConfigurationWithoutPublishedNamesAreRefused) {
  const Case c;
  for (const char* flag : {"--weights", "--save-weights"}) {
    const Outcome outcome = meshwright(
        {"run", kSmall, "--system", kTwoCores + ":1", "--plan", "1x1x1", "--data", c.data, flag, c.at("w").string()},
        &c.folder);
    EXPECT_EQ(outcome.code, 2);
    EXPECT_THAT(outcome.err, HasSubstr(flag));
    EXPECT_THAT(outcome.err, HasSubstr("a Hugging Face configuration"));
    EXPECT_FALSE(std::filesystem::exists(c.at("w")));
  }
}

}  // namespace
}  // namespace meshwright
