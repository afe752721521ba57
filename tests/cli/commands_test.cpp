// What the commands print where all is well.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <tuple>

#include "planner/sqlite.h"
#include "tests/cli/binary.h"

namespace meshwright {
namespace {

using Json = nlohmann::json;

// A machine for few plans and a model of few layers: searches in a moment.
const std::vector<std::string> kSmallSearch{"search", kSmall, "--system", "v4:2x2x1"};

void expect_plan_fields(const Json& plan) {
  for (const char* name :
       {"dp", "pp", "tp", "fsdp", "microbatches", "schedule", "recompute", "runnable", "step_time_s", "tokens_per_s",
        "mfu", "hfu", "peak_memory_bytes", "exposed_comm_s", "bubble_fraction", "model_flops", "executed_flops"})
    EXPECT_TRUE(plan.contains(name)) << name;
}

TEST(Help, EveryCommandHasExamplesAndTheExitCodesAreDocumented) {
  const Outcome all = meshwright({"--help"});
  EXPECT_EQ(all.code, 0);
  for (const char* text :
       {"Exit codes", "2 bad input", "3 nothing feasible", "params", "search", "simulate", "calibrate", "run"})
    EXPECT_NE(all.out.find(text), std::string::npos) << text;
  for (const char* command : {"params", "search", "simulate", "calibrate", "run"}) {
    const Outcome help = meshwright({command, "--help"});
    EXPECT_EQ(help.code, 0);
    EXPECT_NE(help.out.find("Examples:"), std::string::npos) << command;
    EXPECT_NE(help.out.find("--json"), std::string::npos) << command;
    EXPECT_EQ(help.out.find("--write-to"), std::string::npos);
  }
}

TEST(Params, PublishedConfigurationHasItsCounts) {
  const Outcome text = meshwright({"params", kPublished});
  EXPECT_EQ(text.code, 0);
  EXPECT_NE(text.out.find("949,248,384 parameters, 343,321,728 of them active"), std::string::npos) << text.out;
  const Json json = Json::parse(meshwright({"params", kPublished, "--json"}).out);
  EXPECT_EQ(json.at("total_parameters"), 949'248'384);
  EXPECT_EQ(json.at("active_parameters"), 343'321'728);
}

TEST(Params, FieldsThatPointElsewhereAreNamedOnceOnStderr) {
  const Outcome outcome = meshwright({"params", kPublished});
  for (const char* field : {"output_dir", "data_config.bucket_name", "wandb"}) {
    const std::size_t at = outcome.err.find(field);
    ASSERT_NE(at, std::string::npos) << field;
    EXPECT_EQ(outcome.err.find(field, at + 1), std::string::npos) << field;
  }
}

TEST(PrintConfig, IsTheResolvedConfigurationAndReadsBackAsItself) {
  const TemporaryFolder folder;
  const Outcome first =
      meshwright({"params", kPublished, "--set", "lr.max_lr=1e-3", "--set", "name=other", "--print-config"});
  EXPECT_EQ(first.code, 0);
  EXPECT_EQ(Json::parse(first.out).at("lr").at("max_lr"), 1e-3);
  EXPECT_EQ(Json::parse(first.out).at("name"), "other");
  EXPECT_EQ(meshwright({"params", folder.write("c.json", first.out), "--print-config"}).out, first.out);
}

TEST(Search, JsonHasTheDocumentedNamesAndPlansBestFirst) {
  const Outcome outcome = meshwright(with(kSmallSearch, {"--json"}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json json = Json::parse(outcome.out);
  ASSERT_FALSE(json.at("plans").empty());
  double last = 0;
  for (const Json& plan : json.at("plans")) {
    expect_plan_fields(plan);
    EXPECT_GE(plan.at("step_time_s"), last);
    EXPECT_EQ(plan.at("dp").get<int>() * plan.at("pp").get<int>() * plan.at("tp").get<int>(), 4);
    last = plan.at("step_time_s");
  }
  EXPECT_TRUE(json.at("evaluated").is_number_integer());
  EXPECT_TRUE(json.at("rejected").is_object());
  EXPECT_GT(json.at("elapsed_s"), 0);
}

TEST(Search, TwiceTheSameIsTheSameButForTheTimeItTook) {
  Json a = Json::parse(meshwright(with(kSmallSearch, {"--json"})).out),
       b = Json::parse(meshwright(with(kSmallSearch, {"--json"})).out);
  a.erase("elapsed_s");
  b.erase("elapsed_s");
  EXPECT_EQ(a, b);
}

TEST(Search, ThePublishedPlanIsMarkedInTheTable) {
  const Outcome outcome = meshwright(
      {"search", kSmall, "--system", "v4:2x2x1", "--set", "device_config.n_device_axis=[2,2,1]", "--top", "3"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("as published, in our layout"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("x the fastest plan's"), std::string::npos);
}

TEST(Search, APublishedMeshOfAnotherSizeIsNamed) {
  const Outcome outcome = meshwright(kSmallSearch);  // 2x1x1 on four chips
  EXPECT_NE(outcome.out.find("is for 2 devices;"), std::string::npos) << outcome.out;
}

TEST(Search, NothingThatFitsIsExitCode3WithHowMuchIsMissing) {
  const TemporaryFolder folder;
  auto system = Json::parse(text_of(std::string(REPOSITORY) + "/configs/systems/tpu-v4.json"));
  system["memory"]["usable_bytes"]["value"] = 1 << 20;
  const Outcome outcome =
      meshwright({"search", kSmall, "--system", folder.write("tiny.json", system.dump()) + ":2x2x1"});
  EXPECT_EQ(outcome.code, 3) << outcome.err;
  EXPECT_NE(outcome.out.find("No plan fits"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("does not fit in memory"), std::string::npos);
  EXPECT_NE(outcome.out.find("the nearest by"), std::string::npos);
}

TEST(Simulate, ByPlanByIdByMeshAndBestAgree) {
  const TemporaryFolder folder;
  const Json best = Json::parse(meshwright(with(kSmallSearch, {"--json"}), &folder).out).at("plans").at(0);
  const std::string plan = best.at("plan"), id = best.at("id"), mesh = plan.substr(0, plan.find(','));
  EXPECT_EQ(id.size(), 8u);
  std::vector<Json> answers;
  for (const std::string& choice : {std::string("best"), id, id.substr(0, 6), mesh, plan}) {
    const Outcome outcome =
        meshwright({"simulate", kSmall, "--system", "v4:2x2x1", "--plan", choice, "--json"}, &folder);
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    answers.push_back(Json::parse(outcome.out));
    expect_plan_fields(answers.back());
    EXPECT_EQ(answers.back(), answers.front()) << choice;
  }
  EXPECT_EQ(answers[0].at("id"), id);
  EXPECT_EQ(answers[0].at("step_time_s"), best.at("step_time_s"));
  EXPECT_EQ(answers[0].at("peak_memory_bytes"), best.at("peak_memory_bytes"));
}

TEST(Simulate, AMeshAloneIsTheBestPlanOnItAndWithAChoiceIsAPlanWithDefaults) {
  const TemporaryFolder folder;
  const Json found = Json::parse(meshwright(with(kSmallSearch, {"--json"}), &folder).out);
  const auto simulated = [&](const std::string& plan) {
    return Json::parse(meshwright({"simulate", kSmall, "--system", "v4:2x2x1", "--plan", plan, "--json"}, &folder).out);
  };
  for (const auto& [mesh, dp, pp, tp] : std::vector<std::tuple<std::string, int, int, int>>{
           {"2x2x1", 2, 2, 1}, {"1x1x4", 1, 1, 4}, {"1x4x1", 1, 4, 1}}) {
    const auto first = std::find_if(found.at("plans").begin(), found.at("plans").end(), [&](const Json& plan) {
      return plan.at("dp") == dp && plan.at("pp") == pp && plan.at("tp") == tp;
    });
    ASSERT_NE(first, found.at("plans").end());
    EXPECT_EQ(simulated(mesh).at("id"), first->at("id")) << mesh;
    // As the search has it: a plan of several stages gets the same layers, and so the same id and time.
    const std::string defaults = mesh + ",schedule=1f1b,microbatches=1,fsdp=0,recompute=none";
    const auto searched = std::find_if(found.at("plans").begin(), found.at("plans").end(), [&](const Json& plan) {
      const std::string text = plan.at("plan");
      return text == defaults || text.starts_with(defaults + ",layers=");
    });
    ASSERT_NE(searched, found.at("plans").end());
    const Json typed = simulated(mesh + ",microbatches=1");
    for (const char* key : {"plan", "id", "step_time_s"}) EXPECT_EQ(typed.at(key), searched->at(key)) << mesh;
  }
}

TEST(Simulate, AnIdMeansItsPlanWithoutADatabase) {
  const Json plan = Json::parse(
      meshwright({"simulate", kSmall, "--system", "v4:2x2x1", "--plan", "4x1x1,microbatches=2,fsdp=3", "--json"}).out);
  const Outcome by_id = meshwright({"simulate", kSmall, "--system", "v4:2x2x1", "--plan", plan.at("id"), "--json"});
  ASSERT_EQ(by_id.code, 0) << by_id.err;
  EXPECT_EQ(Json::parse(by_id.out), plan);
}

TEST(Simulate, AnIdOfAnotherSystemIsRefusedForWhatIsWrongWithItHere) {
  const TemporaryFolder folder;
  const Json best = Json::parse(meshwright(with(kSmallSearch, {"--json"}), &folder).out).at("plans").at(0);
  const Outcome outcome = meshwright({"simulate", kSmall, "--system", "v4:2x2x2", "--plan", best.at("id")}, &folder);
  EXPECT_EQ(outcome.code, 2);
  EXPECT_NE(outcome.err.find("a mesh of 8 ranks, the devices of v4:2x2x2"), std::string::npos) << outcome.err;
}

TEST(Simulate, DigitsThatBeginSeveralIdsAreRefusedWithAllOfThem) {
  // 65,536 beginnings of four digits: among the plans of 8 chips' sequences some share one.
  const std::vector<std::string> question{kSmall, "--system", "v4:2x2x2", "--set", "data_config.train_batch_size=256"};
  const TemporaryFolder folder;
  const Json plans = Json::parse(meshwright(with({"search", "--json"}, question), &folder).out).at("plans");
  std::map<std::string, std::vector<std::string>> by_beginning;
  for (const Json& plan : plans) by_beginning[plan.at("id").get<std::string>().substr(0, 4)].push_back(plan.at("id"));
  const auto shared =
      std::find_if(by_beginning.begin(), by_beginning.end(), [](const auto& e) { return e.second.size() > 1; });
  ASSERT_NE(shared, by_beginning.end()) << "of " << plans.size() << " plans";
  const Outcome outcome = meshwright(with(with({"simulate"}, question), {"--plan", shared->first}), &folder);
  EXPECT_EQ(outcome.code, 2);
  for (const std::string& id : shared->second) EXPECT_NE(outcome.err.find(id), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("one more digit"), std::string::npos) << outcome.err;
}

std::int64_t rows(const TemporaryFolder& folder, const std::string& from) {
  const sqlite::Database database(folder.path() / "meshwright.db", sqlite::Access::kRead);
  sqlite::Statement s(database, "SELECT COUNT(*) FROM " + from);
  return s.step() ? s.integer() : -1;
}

TEST(Search, RepeatedItAddsNothingToTheDatabase) {
  const TemporaryFolder folder;
  const Outcome first = meshwright(kSmallSearch, &folder);
  const std::int64_t plans = rows(folder, "plans");
  EXPECT_GT(plans, 0);
  const Outcome second = meshwright(kSmallSearch, &folder);
  ASSERT_EQ(second.code, 0) << second.err;
  EXPECT_EQ(rows(folder, "plans"), plans);
  EXPECT_EQ(rows(folder, "searches"), 1);
  EXPECT_EQ(first.err, second.err);  // the best plan has the same name both times
  EXPECT_EQ(rows(folder, "plans WHERE length(plan_id) = 8"), plans);
}

TEST(Search, BestIsNeverTakenFromASearchThatOtherCodeMade) {
  const TemporaryFolder folder;
  ASSERT_EQ(meshwright(kSmallSearch, &folder).code, 0);
  const std::vector<std::string> best{"simulate", kSmall, "--system", "v4:2x2x1", "--plan", "best"};
  EXPECT_EQ(meshwright(best, &folder).err.find("searching first"), std::string::npos);
  sqlite::Database(folder.path() / "meshwright.db", sqlite::Access::kWrite).run("UPDATE searches SET build = 'other'");
  EXPECT_NE(meshwright(best, &folder).err.find("searching first"), std::string::npos);
  EXPECT_EQ(rows(folder, "searches"), 2);
  EXPECT_EQ(meshwright(best, &folder).err.find("searching first"), std::string::npos);
}

TEST(Simulate, AScheduleWithTooManyMicrobatchesIsRefusedWithHowManyMayBe) {
  const Outcome outcome = meshwright({"simulate", kSmall, "--system", "v4:2x2x1", "--set",
                                      "data_config.train_batch_size=524288", "--plan", "1x4x1,microbatches=524288"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_NE(outcome.err.find("524288 microbatches on 4 stages; hint: at most 65536"), std::string::npos) << outcome.err;
}

TEST(Simulate, TraceReadsBackNestsAndHasBothEndsOfEveryArrow) {
  const TemporaryFolder folder;
  const Outcome outcome = meshwright(
      {"simulate", kSmall, "--system", "v4:2x2x1", "--plan", "2x2x1,microbatches=4", "--trace", "t.json", "--json"},
      &folder);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json trace = Json::parse(text_of(folder.path() / "t.json"));
  std::map<std::pair<int, int>, std::vector<std::pair<std::int64_t, std::int64_t>>> tracks;
  std::map<int, std::multiset<std::string>> arrows;
  std::set<int> named;
  std::map<int, double> compute_us;
  for (const Json& e : trace.at("traceEvents")) {
    const std::string phase = e.at("ph");
    if (phase == "M") named.insert(e.at("pid").get<int>());
    if (phase == "s" || phase == "f") arrows[e.at("id")].insert(phase);
    if (phase != "X" || !e.at("args").contains("op"))
      continue;  // what encloses operations: tests/reports/trace_test.cpp
    const auto begin = std::llround(e.at("ts").get<double>() * 1e3),
               end = begin + std::llround(e.at("dur").get<double>() * 1e3);
    EXPECT_LT(begin, end);
    tracks[{e.at("pid"), e.at("tid")}].push_back({begin, end});
    if (e.at("tid") == 0) compute_us[e.at("pid")] += e.at("dur").get<double>();
  }
  for (auto& [track, events] : tracks) {
    EXPECT_TRUE(named.contains(track.first));
    std::sort(events.begin(), events.end());
    for (std::size_t i = 1; i < events.size(); ++i) EXPECT_GE(events[i].first, events[i - 1].second);
  }
  EXPECT_EQ(arrows.size(), 2u * 4u);  // an activation and a gradient for each of four microbatches
  for (const auto& [id, ends] : arrows) EXPECT_EQ(ends, (std::multiset<std::string>{"f", "s"})) << id;
  // The sum of durations is the simulator's, but for the rounding of each event to a nanosecond.
  const Json stages = Json::parse(outcome.out).at("stages");
  ASSERT_EQ(compute_us.size(), stages.size());
  std::size_t stage = 0;
  for (const auto& [pid, us] : compute_us)
    EXPECT_NEAR(us, stages.at(stage++).at("compute_s").get<double>() * 1e6, 1e-3 * 2000);
}

TEST(Simulate, ShardingsListEveryParameterAndRank) {
  const Outcome outcome = meshwright(
      {"simulate", kSmall, "--system", "v4:2x2x1", "--plan", "2x1x2,microbatches=4,fsdp=3", "--shardings", "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json json = Json::parse(outcome.out);
  EXPECT_EQ(json.at("ranks").size(), 4u);
  std::set<std::string> names;
  for (const Json& tensor : json.at("tensors")) names.insert(tensor.at("name"));
  EXPECT_TRUE(names.contains("embedding.embedding"));
  EXPECT_TRUE(names.contains("layers.5.moe.expert.0.kernel"));
}

TEST(Simulate, APlanThatDoesNotFitIsExitCode3AndStillReported) {
  const TemporaryFolder folder;
  auto system = Json::parse(text_of(std::string(REPOSITORY) + "/configs/systems/tpu-v4.json"));
  system["memory"]["usable_bytes"]["value"] = 1 << 20;
  const Outcome outcome =
      meshwright({"simulate", kSmall, "--system", folder.write("tiny.json", system.dump()) + ":2x2x1", "--plan",
                  "4x1x1,microbatches=1", "--json"});
  EXPECT_EQ(outcome.code, 3);
  EXPECT_EQ(Json::parse(outcome.out).at("fits"), false);
}

TEST(Run, RehearsalCountsWhatWasPredicted) {
  const TemporaryFolder folder;
  std::string text;
  for (int i = 0; i < 4000; ++i)
    text += "the quick brown fox " + std::to_string(i * 7919 % 1000) + " jumps over the lazy dog\n";
  const Outcome outcome =
      meshwright({"run", kSmall, "--system", "v4:2x2x1", "--plan", "1x2x2,microbatches=2,recompute=full", "--rehearse",
                  "--data", folder.write("text.txt", text), "--json"},
                 &folder);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  std::istringstream lines(outcome.out);
  std::string line;
  for (int step = 1; step <= 3; ++step) {
    ASSERT_TRUE(std::getline(lines, line));
    const Json json = Json::parse(line);
    EXPECT_EQ(json.at("step"), step);
    for (const char* name : {"loss", "cross_entropy", "balance_loss", "gradient_norm", "learning_rate", "tokens_per_s",
                             "predicted_step_time_s", "step_time_s", "peak_memory_bytes"})
      EXPECT_TRUE(json.at(name).is_number()) << name;
  }
  ASSERT_TRUE(std::getline(lines, line));
  const Json json = Json::parse(line);
  for (const char* name : {"flops", "peak_bytes", "bytes"})
    EXPECT_EQ(json.at("predicted").at(name), json.at("counted").at(name)) << name;
}

// On four ranks.
Outcome rehearse(const std::vector<std::string>& overrides, const TemporaryFolder& folder) {
  std::string text;
  for (int i = 0; i < 4000; ++i)
    text += "the quick brown fox " + std::to_string(i * 7919 % 1000) + " jumps over the lazy dog\n";
  std::vector<std::string> words{"run",        kSmall,   "--system",
                                 "v4:2x2x1",   "--plan", "1x2x2,microbatches=2",
                                 "--rehearse", "--data", folder.write("text.txt", text),
                                 "--json"};
  for (const std::string& assignment : overrides) {
    words.push_back("--set");
    words.push_back(assignment);
  }
  return meshwright(words, &folder);
}

std::size_t times_in(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

TEST(Run, DivergenceIsExitCode4AndSaysWhatHappenedAndWhatToTryOnce) {
  const TemporaryFolder folder;
  // The largest rate and weight of the balance loss that a configuration may have: after one step neither of two experts
  // has a score above 1e-38 for some token, and the balance loss divides by their sum.
  const Outcome outcome = rehearse(
      {"lr.max_lr=10", "lr.min_lr=10", "lr.end_lr=10", "alpha=1e6", "model_config.n_experts=2", "model_config.k=1"},
      folder);
  EXPECT_EQ(outcome.code, 4) << outcome.err;
  EXPECT_EQ(times_in(outcome.err, "training diverged in step 2: "), 1u) << outcome.err;
  for (const char* part :
       {"the gradient of embedding.embedding is not finite (on rank 0, stage 0; the first of ",
        "the update was not made", "the loss of step 1 was", "lower lr.max_lr (now 10)", "alpha (now 1000000)"})
    EXPECT_NE(outcome.err.find(part), std::string::npos) << part << "\n" << outcome.err;
  EXPECT_EQ(times_in(outcome.out, "\"step\":"), 1u) << outcome.out;  // the step before is there, whole
  EXPECT_NE(meshwright({"--help"}).out.find("4 diverged"), std::string::npos);
}

TEST(Run, ALossThatGrowsMuchIsWarnedOfOnce) {
  const TemporaryFolder folder;
  const Outcome outcome = rehearse({"lr.max_lr=10", "lr.min_lr=10", "lr.end_lr=10"}, folder);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(times_in(outcome.err, "Training may be diverging"), 1u) << outcome.err;
}

}  // namespace
}  // namespace meshwright
