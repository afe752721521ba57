// What a run leaves behind, and what it says before, while and after it trains.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <thread>

#include "tests/cli/binary.h"
#include "tests/json_schema.h"

namespace meshwright {
namespace {

using Json = nlohmann::json;
using testing::HasSubstr;
using testing::IsEmpty;

const std::string kTwoCores = std::string(TEST_DATA) + "/two_cores.json";

std::string some_text() {
  std::string text;
  for (int i = 0; i < 3000; ++i)
    text += "the quick brown fox " + std::to_string(i * 7919 % 1000) + " jumps over the lazy dog\n";
  return text;
}

// One rank, a model of two layers.
std::vector<std::string> small_run(const std::string& data, const std::vector<std::string>& more,
                                   const std::string& system = kTwoCores) {
  return with({"run", kSmall, "--system", system + ":1", "--plan", "1x1x1,microbatches=4", "--data", data, "--set",
               "model_config.blocks=1", "--set", "model_config.layers_per_block=2", "--set", "model_config.T=32",
               "--set", "data_config.T=32", "--set", "model_config.vocab_size=512"},
              more);
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

std::vector<std::string> on_two_ranks(std::vector<std::string> words) {
  std::ranges::replace(words, kTwoCores + ":1", kTwoCores);
  std::ranges::replace(words, std::string("1x1x1,microbatches=4"), std::string("2x1x1,microbatches=2,fsdp=3"));
  return words;
}

using Path = std::filesystem::path;

TEST(Record, EachRunHasAFolderOfItsOwnAndOverwritesNone) {
  const TemporaryFolder folder;
  const std::string data = folder.write("text.txt", some_text());
  const Outcome first = meshwright(small_run(data, {"--steps", "3", "--json"}), &folder);
  ASSERT_EQ(first.code, 0) << first.err;
  const Path one = folder.path() / "runs/moe-small/0001", two = folder.path() / "runs/moe-small/0002";
  EXPECT_THAT(first.err, HasSubstr("runs/moe-small/0001"));

  // config.json is the resolved configuration, metrics.jsonl what --json prints, summary.json the last line of it and more.
  EXPECT_EQ(text_of(one / "config.json"), meshwright(small_run(data, {"--print-config"})).out);
  const std::vector<std::string> printed = lines_of(first.out), kept = lines_of(text_of(one / "metrics.jsonl"));
  ASSERT_EQ(printed.size(), 4u);
  EXPECT_EQ(kept, std::vector<std::string>(printed.begin(), printed.begin() + 3));
  const Json summary = Json::parse(text_of(one / "summary.json")), last = Json::parse(printed.back());
  EXPECT_EQ(summary.at("predicted"), last.at("predicted"));
  EXPECT_EQ(summary.at("counted"), last.at("counted"));
  EXPECT_EQ(summary.at("steps"), 3);
  EXPECT_EQ(summary.at("last_loss"), Json::parse(printed[2]).at("loss"));
  const Json plan = Json::parse(text_of(one / "plan.json"));
  EXPECT_EQ(plan.at("system"), "two-cores:1");
  EXPECT_THAT(plan.at("plan").get<std::string>(), HasSubstr("1x1x1"));
  const JsonSchema schema(Json::parse(text_of(std::string(REPOSITORY) + "/configs/schema/plan.schema.json")));
  EXPECT_THAT(schema.faults(plan), IsEmpty());

  const std::string before = text_of(one / "metrics.jsonl");
  ASSERT_EQ(meshwright(small_run(data, {"--steps", "1", "--seed", "9"}), &folder).code, 0);
  EXPECT_EQ(text_of(one / "metrics.jsonl"), before);
  EXPECT_EQ(lines_of(text_of(two / "metrics.jsonl")).size(), 1u);
  EXPECT_EQ(Json::parse(text_of(two / "config.json")).at("seed"), 9);
}

TEST(Record, ItsCommandRepeatsTheRun) {
  const TemporaryFolder folder;
  const std::string data = folder.write("it's a text.txt", some_text());
  ASSERT_EQ(meshwright(small_run(data, {"--steps", "2", "--set", "name=a.b"}), &folder).code, 0);
  const Path runs = folder.path() / "runs/a.b";
  EXPECT_THAT(text_of(runs / "0001/command.txt"), HasSubstr("# commit "));
  const std::string line = "cd / && MESHWRIGHT_CACHE=" + (folder.path() / "cache").string() + " sh " +
                           (runs / "0001/command.txt").string() + " >/dev/null 2>&1";
  ASSERT_EQ(std::system(line.c_str()), 0);
  const auto losses = [&](const char* run) {
    std::vector<double> all;
    for (const std::string& step : lines_of(text_of(runs / run / "metrics.jsonl")))
      all.push_back(Json::parse(step).at("loss"));
    return all;
  };
  EXPECT_EQ(losses("0001").size(), 2u);
  EXPECT_EQ(losses("0001"), losses("0002"));
}

TEST(Record, RunsAtTheSameTimeDoNotShareAFolder) {
  const TemporaryFolder shared;
  const std::string data = shared.write("text.txt", some_text());
  const std::string output = "output_dir=\"" + shared.path().string() + "/runs\"";
  std::vector<int> codes(2, -1);
  std::vector<std::thread> runs;
  for (int i = 0; i < 2; ++i)
    runs.emplace_back([&, i] {
      codes[i] = meshwright(small_run(data, {"--steps", "2", "--seed", std::to_string(i), "--set", output})).code;
    });
  for (std::thread& run : runs) run.join();
  EXPECT_EQ(codes, (std::vector<int>{0, 0}));
  std::set<int> seeds;
  for (const char* number : {"0001", "0002"}) {
    const Path run = shared.path() / "runs/moe-small" / number;
    seeds.insert(Json::parse(text_of(run / "config.json")).at("seed").get<int>());
    EXPECT_EQ(lines_of(text_of(run / "metrics.jsonl")).size(), 2u);
    EXPECT_TRUE(std::filesystem::exists(run / "summary.json"));
  }
  EXPECT_EQ(seeds, (std::set<int>{0, 1}));
}

TEST(Record, RehearsalsKeepNone) {
  const TemporaryFolder folder;
  const std::string data = folder.write("text.txt", some_text());
  ASSERT_EQ(meshwright(small_run(data, {"--steps", "1", "--rehearse"}), &folder).code, 0);
  EXPECT_FALSE(std::filesystem::exists(folder.path() / "runs"));
}

TEST(Record, AnOutputFolderThatCannotBeIsRefusedBeforeAnyRankStarts) {
  const TemporaryFolder folder;
  const std::string data = folder.write("text.txt", some_text());
  const Outcome outcome = meshwright(small_run(data, {"--steps", "1", "--set", "output_dir=" + data}), &folder);
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, HasSubstr("output_dir"));
  EXPECT_EQ(outcome.out, "");
}

TEST(StepLines, FitEightyColumnsAndSayMfuAndTimeLeft) {
  const TemporaryFolder folder;
  const Outcome outcome = meshwright(small_run(folder.write("text.txt", some_text()), {"--steps", "2"}), &folder);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  std::size_t heading = 0;
  const std::vector<std::string> lines = lines_of(outcome.out);
  while (heading < lines.size() && lines[heading].find("MFU %") == std::string::npos) ++heading;
  ASSERT_LT(heading + 2, lines.size()) << outcome.out;
  EXPECT_THAT(lines[heading], HasSubstr("left"));
  for (std::size_t i = heading; i <= heading + 2; ++i) EXPECT_LE(lines[i].size(), 80u) << lines[i];
  const Json step = Json::parse(lines_of(text_of(folder.path() / "runs/moe-small/0001/metrics.jsonl")).front());
  EXPECT_GT(step.at("mfu"), 0);
  EXPECT_LT(step.at("mfu"), 1);
  EXPECT_NEAR(step.at("time_left_s"), step.at("step_time_s"), 1e-9);  // of one more step at this pace
}

TEST(Duration, OfAStepThatTakesMinutesIsSaidBeforeItStarts) {
  const TemporaryFolder folder;
  Json slow = Json::parse(text_of(kTwoCores));
  for (auto& [kind, costs] : slow["compute"]["kinds"].items()) costs["overhead_us"]["value"] = 1e6;  // hundreds of them
  const Outcome outcome = meshwright(
      small_run(folder.write("text.txt", some_text()), {"--steps", "1"}, folder.write("slow.json", slow.dump())),
      &folder);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("a step is predicted to take"));
  EXPECT_THAT(outcome.err, HasSubstr(" min"));
}

TEST(Apart, SaysWhatTheMachineDoesNowWhereItWasCalibratedSlower) {
  const TemporaryFolder folder;
  Json slow = Json::parse(text_of(kTwoCores));
  for (auto& [kind, costs] : slow["compute"]["kinds"].items())
    if (costs.contains("flops_per_s"))
      for (Json& point : costs["flops_per_s"]["f32"]["points"])
        point["flops_per_s"] = point["flops_per_s"].get<double>() * 1e-4;
  const Outcome outcome = meshwright(small_run(folder.write("text.txt", some_text()), {"--steps", "3", "--json"},
                                               folder.write("slow.json", slow.dump())),
                                     &folder);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json last = Json::parse(lines_of(outcome.out).back());
  ASSERT_TRUE(last.contains("why_apart")) << last;
  EXPECT_THAT(last.at("why_apart").dump(), HasSubstr("calibrated at 0 GFLOP/s of matrix products a rank, "));
  EXPECT_THAT(last.at("why_apart").dump(), HasSubstr(" now"));
}

// A machine like kTwoCores that multiplies bf16, too.
std::string with_bf16(const TemporaryFolder& folder) {
  Json system = Json::parse(text_of(kTwoCores));
  Json& compute = system["compute"];
  compute["peak_flops_per_s"]["bf16"] = compute["peak_flops_per_s"]["f32"];
  for (Json& kind : compute["kinds"])
    if (kind.contains("flops_per_s")) kind["flops_per_s"]["bf16"] = kind["flops_per_s"]["f32"];
  return folder.write("bf16.json", system.dump());
}

TEST(Run, InBf16CountsWhatWasPredictedAndSaysWhereTheTimeOfAStepGoes) {
  const TemporaryFolder folder;
  const std::string data = folder.write("text.txt", some_text()), system = with_bf16(folder);
  const Outcome wide = meshwright(small_run(data, {"--steps", "3", "--json"}, system), &folder);
  const Outcome outcome = meshwright(small_run(data, {"--steps", "3", "--json", "--dtype", "bf16"}, system), &folder);
  ASSERT_EQ(wide.code, 0) << wide.err;
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json last = Json::parse(lines_of(outcome.out).back()), in_f32 = Json::parse(lines_of(wide.out).back());
  const Json &predicted = last.at("predicted"), &counted = last.at("counted");
  for (const char* name : {"flops", "peak_bytes", "bytes"}) EXPECT_EQ(predicted.at(name), counted.at(name)) << name;
  EXPECT_NE(counted.at("peak_bytes"), in_f32.at("counted").at("peak_bytes"));
  const double step = counted.at("step_time_s"), compute = counted.at("compute_s");
  EXPECT_GT(compute, 0);
  EXPECT_LE(compute, 3 * step);  // medians, each by itself
  EXPECT_GE(counted.at("exposed_comm_s"), 0);
  EXPECT_GE(counted.at("bubble_s"), 0);
  const double loss = Json::parse(lines_of(outcome.out)[0]).at("loss"),
               loss_in_f32 = Json::parse(lines_of(wide.out)[0]).at("loss");
  EXPECT_NEAR(loss, loss_in_f32, 0.02 * loss_in_f32);
  EXPECT_NE(loss, loss_in_f32);
  const Json config = Json::parse(text_of(folder.path() / "runs/moe-small/0002/config.json"));
  EXPECT_EQ(config.at("model_config").at("model_dtype"), "bfloat16");
}

TEST(Run, WhatCantBeRunIsSearchedAndSimulatedAndSaidToBeSo) {
  const TemporaryFolder folder;
  Json system = Json::parse(text_of(kTwoCores));
  system["compute"]["peak_flops_per_s"]["f16"] = system["compute"]["peak_flops_per_s"]["f32"];
  for (Json& kind : system["compute"]["kinds"])
    if (kind.contains("flops_per_s")) kind["flops_per_s"]["f16"] = kind["flops_per_s"]["f32"];
  const std::string file = folder.write("f16.json", system.dump());
  const auto call = [&](std::vector<std::string> arguments, const std::vector<std::string>& more) {
    arguments.insert(arguments.end(), {kSmall, "--system", file});
    return meshwright(with(arguments, more), &folder);
  };
  const Outcome table = call({"search"}, {"--dtype", "f16"});
  ASSERT_EQ(table.code, 0) << table.err;
  EXPECT_THAT(table.out, HasSubstr("× not runnable yet: f16, whose gradients need a scale"));
  const Json found = Json::parse(call({"search"}, {"--dtype", "f16", "--json"}).out);
  ASSERT_GT(found.at("plans").size(), 1u);
  for (const Json& plan : found.at("plans")) {
    EXPECT_EQ(plan.at("runnable"), false);
    EXPECT_THAT(plan.at("not_runnable").get<std::string>(), HasSubstr("--dtype bf16"));
  }
  const Json runnable = Json::parse(call({"search"}, {"--dtype", "f32", "--json"}).out);
  for (const Json& plan : runnable.at("plans"))
    EXPECT_EQ(plan.at("runnable"), true);

  const std::vector<std::string> one_plan{"--plan", "2x1x1,microbatches=2"};
  const Outcome simulated = call({"simulate"}, with(one_plan, {"--dtype", "f16"}));
  EXPECT_EQ(simulated.code, 0) << simulated.err;
  EXPECT_THAT(simulated.out, HasSubstr("Not runnable yet: f16"));
  EXPECT_THAT(call({"simulate"}, one_plan).out, testing::Not(HasSubstr("unnable")));
}

TEST(Run, ReportsTheLossOfHeldOutTokensEveryFewStepsAndAtTheEndAndTrainsAsItWouldWithout) {
  const TemporaryFolder folder;
  const std::string data = folder.write("text.txt", some_text());
  std::vector<double> validation;
  for (const bool two : {false, true}) {
    auto without = small_run(data, {"--steps", "5", "--json"}),
         with_evaluation = small_run(data, {"--steps", "5", "--json", "--eval-every", "2", "--eval-steps", "2"});
    if (two) {
      without = on_two_ranks(without);
      with_evaluation = on_two_ranks(with_evaluation);
    }
    const Outcome plain = meshwright(without, &folder), outcome = meshwright(with_evaluation, &folder);
    ASSERT_EQ(plain.code, 0) << plain.err;
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr("the last 5 % of the data"));
    EXPECT_THAT(outcome.err, HasSubstr("an evaluation takes 2 of their"));
    const std::vector<std::string> expected = lines_of(plain.out), lines = lines_of(outcome.out);
    ASSERT_EQ(lines.size(), 6u);
    ASSERT_EQ(expected.size(), 6u);
    for (std::size_t i = 0; i < 5; ++i) {
      const Json step = Json::parse(lines[i]);
      EXPECT_EQ(step.at("loss"), Json::parse(expected[i]).at("loss"));
      EXPECT_EQ(step.at("gradient_norm"), Json::parse(expected[i]).at("gradient_norm"));
      EXPECT_EQ(step.contains("validation_loss"), i == 1 || i == 3 || i == 4) << lines[i];
      if (!step.contains("validation_loss")) continue;
      validation.push_back(step.at("validation_loss"));
      EXPECT_NEAR(
          step.at("validation_loss"),
          step.at("validation_cross_entropy").get<double>() + 0.01 * step.at("validation_balance_loss").get<double>(),
          1e-9);
      EXPECT_GT(step.at("validation_time_s"), 0);
    }
    const Json last = Json::parse(lines.back());
    EXPECT_EQ(last.at("validation_loss"), validation.back());
    for (const char* name : {"flops", "peak_bytes", "bytes"})
      EXPECT_EQ(last.at("predicted").at(name), last.at("counted").at(name)) << name;
    EXPECT_FALSE(Json::parse(expected.back()).contains("validation_loss"));
    const Path record = folder.path() / "runs/moe-small" / (two ? "0004" : "0002");
    EXPECT_EQ(Json::parse(text_of(record / "summary.json")).at("validation_loss"), validation.back());
    EXPECT_EQ(lines_of(text_of(record / "metrics.jsonl")), std::vector<std::string>(lines.begin(), lines.end() - 1));
  }
  // Training lowers it, and it is the same on one rank and on two.
  ASSERT_EQ(validation.size(), 6u);
  EXPECT_LT(validation[2], validation[0]);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_NEAR(validation[i], validation[3 + i], 1e-4 * validation[i]);
}

TEST(Run, ValidationStandsBelowItsStepAndInTheSummary) {
  const TemporaryFolder folder;
  const Outcome outcome =
      meshwright(small_run(folder.write("text.txt", some_text()), {"--steps", "3", "--eval-every", "2"}), &folder);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const std::vector<std::string> lines = lines_of(outcome.out);
  std::vector<std::size_t> at;
  for (std::size_t i = 0; i < lines.size(); ++i)
    if (lines[i].starts_with("  validation loss ")) at.push_back(i);
  ASSERT_EQ(at.size(), 2u) << outcome.out;
  EXPECT_EQ(at[0] + 2, at[1]);
  EXPECT_THAT(lines[at[0] - 1], HasSubstr("2/3"));
  EXPECT_LE(lines[at[0]].size(), 80u);
  EXPECT_THAT(outcome.out, HasSubstr("in 3 steps; validation "));
  const Outcome rehearsal = meshwright(
      small_run(folder.write("text.txt", some_text()), {"--rehearse", "--eval-every", "1", "--json"}), &folder);
  ASSERT_EQ(rehearsal.code, 0) << rehearsal.err;
  EXPECT_TRUE(Json::parse(lines_of(rehearsal.out)[0]).contains("validation_loss"));
}

TEST(Run, AnEvaluationThatCantBeIsRefusedBeforeAnyRankStarts) {
  const TemporaryFolder folder;
  const std::string data = folder.write("text.txt", some_text());
  const auto expect_refused = [&](const std::vector<std::string>& more, const std::vector<std::string>& said) {
    const Outcome outcome = meshwright(on_two_ranks(small_run(data, more)), &folder);
    EXPECT_EQ(outcome.code, 2) << outcome.err;
    EXPECT_EQ(outcome.out, "");
    for (const std::string& text : said) EXPECT_THAT(outcome.err, HasSubstr(text));
  };
  expect_refused({"--eval-steps", "3"}, {"--eval-steps", "beside --eval-every"});
  expect_refused({"--eval-every", "0"}, {"--eval-every"});
  expect_refused({"--eval-every", "1", "--eval-steps", "100000"},
                 {"tokens held out", "--eval-steps 100000", "or less"});
  expect_refused({"--eval-every", "1", "--set", "data_config.val_batch_size=4096"},
                 {"tokens held out", "a batch of 8192 sequences of 32 tokens"});
  expect_refused(
      {"--eval-every", "1", "--set", "device_config.n_device_axis=[1,1,1]", "--set", "data_config.val_batch_size=3"},
      {"data_config.val_batch_size", "a batch that dp 2 divides", "data_config.val_batch_size=6"});
  EXPECT_FALSE(std::filesystem::exists(folder.path() / "runs"));
}

TEST(Run, OfATypeThatCantBeRunOrPredictedIsRefusedByName) {
  const TemporaryFolder folder;
  const std::string data = folder.write("text.txt", some_text());
  const auto refusal = [&](const std::vector<std::string>& more, const std::string& system) {
    const Outcome outcome = meshwright(small_run(data, more, system), &folder);
    EXPECT_EQ(outcome.code, 2) << outcome.err;
    return outcome.err;
  };
  const std::string half = refusal({"--set", "model_config.model_dtype=float16"}, with_bf16(folder));
  EXPECT_THAT(half, HasSubstr("not runnable yet: f16"));
  EXPECT_THAT(half, HasSubstr("--dtype bf16"));
  EXPECT_THAT(refusal({"--dtype", "bf16"}, kTwoCores), HasSubstr("compute.peak_flops_per_s = bf16"));
  EXPECT_THAT(refusal({"--dtype", "f16"}, kTwoCores), HasSubstr("not runnable yet: f16"));
  EXPECT_THAT(refusal({"--dtype", "int8"}, kTwoCores), HasSubstr("--dtype"));
}

}  // namespace
}  // namespace meshwright
