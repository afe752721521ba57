#include "planner/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <iostream>
#include <thread>

#include "model/input/diagnostics.h"
#include "planner/sqlite.h"
#include "tests/other_user.h"

namespace meshwright {
namespace {

using ::testing::HasSubstr;

const SearchKey kKey{R"({"name": "small"})", "v4:2x2x1", "v4, every number\nof it", "1f0e"};

// A question of its own for every number.
SearchKey key_of(int number) {
  SearchKey key = kKey;
  key.config_json += std::to_string(number);
  return key;
}

PlanResult some_result(int i) {
  PlanResult r{.plan = {.mesh = {2, 1 + i % 2, 2},
                        .fsdp = i % 4,
                        .microbatches = 1 + i / 8,
                        .schedule = i % 8 < 4 ? Schedule::k1F1B : Schedule::kGPipe,
                        .recompute = i % 3 ? Recompute::kFull : Recompute::kNone,
                        .layers = i % 2 ? std::vector<int>{30, 18} : std::vector<int>{}},
               .runnable = i > 1,
               .not_runnable = i > 1 ? "" : "can't run yet: something",
               .step_time_s = 0.1 + i / 3.0,
               .tokens_per_s = 1e6 / 7 + i,
               .mfu = 1.0 / 3,
               .hfu = 2.0 / 3,
               .peak_memory_bytes = (std::int64_t{1} << 35) + i,
               .exposed_comm_s = 1e-300,
               .bubble_fraction = 0.125,
               .model_flops = 1e22 / 3,
               .executed_flops = 2e22 / 3,
               .stage_layers = i % 2 ? std::vector<int>{30, 18} : std::vector<int>{48},
               .largest_stage = i % 2,
               .mapping = "tp: x2; dp: y2"};
  for (int c = 0; c < kMemoryClasses; ++c) r.memory_bytes[static_cast<std::size_t>(c)] = i * 100 + c;
  return r;
}

SearchResult some_search(int plans = 20) {
  SearchResult result;
  for (int i = 0; i < plans; ++i) result.plans.push_back(some_result(i));
  result.too_large = {
      {parse_plan("1x4x2,schedule=gpipe,microbatches=8,recompute=full,layers=13-12-12-11"), {1000}, {10}},
      {parse_plan("4x1x2,fsdp=2"), {2000}, {1010}}};
  result.illegal = {{{1, 1, 8}, std::nullopt, {"tp does not divide the heads", "4 heads, tp 8", "tp from 1, 2, 4"}},
                    {{1, 4, 2}, 3, {"FSDP without data parallelism", "fsdp 3, dp 1", "fsdp=0"}}};
  result.evaluated = result.legal = plans + 2;
  result.elapsed_s = 0.75;
  return result;
}

class StoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("meshwright_store_" + std::to_string(::getpid()));
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path file(const std::string& name = "test.db") const { return folder_ / name; }
  void write(const std::string& bytes) const { std::ofstream(file(), std::ios::binary) << bytes; }

  // The diagnostic of what opening the file and reading everything throws.
  Diagnostic refusal(const std::filesystem::path& file, Store::Access access = Store::Access::kWrite) const {
    try {
      Store store(file, access);
      if (!store.faults().empty() || !store.search(1)) ADD_FAILURE() << "opened, but damaged or empty: " << file;
    } catch (const InputError& error) {
      EXPECT_EQ(error.diagnostics().size(), 1u);
      EXPECT_EQ(error.diagnostics()[0].source, "--db");
      EXPECT_EQ(error.diagnostics()[0].path, file.string());
      EXPECT_FALSE(error.diagnostics()[0].hint.empty());
      return error.diagnostics()[0];
    }
    ADD_FAILURE() << "not refused: " << file;
    return {};
  }

  std::filesystem::path folder_;
};

TEST_F(StoreTest, ASearchComesBackAsItWasSavedToTheLastBit) {
  const SearchResult saved = some_search();
  Store store(file());
  const std::int64_t id = store.save(kKey, saved);
  const auto loaded = store.search(id);
  ASSERT_TRUE(loaded);
  EXPECT_EQ(loaded->id, id);
  EXPECT_EQ(loaded->key, kKey);
  EXPECT_EQ(loaded->created.size(), std::string("2025-01-31T12:00:00Z").size());
  EXPECT_EQ(loaded->result.plans, saved.plans);
  EXPECT_EQ(loaded->result.too_large, saved.too_large);
  EXPECT_EQ(loaded->result.evaluated, saved.evaluated);
  EXPECT_EQ(loaded->result.legal, saved.legal);
  EXPECT_EQ(loaded->result.elapsed_s, saved.elapsed_s);
  EXPECT_EQ(loaded->result.rejected(), saved.rejected());
  ASSERT_EQ(loaded->result.illegal.size(), 2u);
  for (int i = 0; i < 2; ++i) {
    const IllegalPart &a = loaded->result.illegal[i], &b = saved.illegal[i];
    EXPECT_EQ(a.mesh, b.mesh);
    EXPECT_EQ(a.fsdp, b.fsdp);
    EXPECT_EQ(a.why.reason, b.why.reason);
    EXPECT_EQ(a.why.detail, b.why.detail);
    EXPECT_EQ(a.why.hint, b.why.hint);
  }
}

TEST_F(StoreTest, PlansAreFoundByIdByRankAndByThemselvesAfterReopening) {
  std::int64_t id = 0;
  {
    Store store(file());
    store.save({"other", "v4:2x2x1", "x", "1f0e"}, some_search(3));
    id = store.save(kKey, some_search());
  }
  const Store store(file(), Store::Access::kRead);
  EXPECT_EQ(store.latest(kKey), id);
  const auto plans = store.plans(id);
  ASSERT_EQ(plans.size(), 20u);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(plans[i].rank, i + 1);
    EXPECT_EQ(plans[i].search, id);
    EXPECT_EQ(plans[i].result, some_result(i));
    EXPECT_EQ(store.plan(plans[i].id), plans[i]);
  }
  EXPECT_EQ(store.plans(id, 10).size(), 10u);
  EXPECT_EQ(store.find(kKey, some_result(7).plan), plans[7]);
  EXPECT_FALSE(store.find(kKey, parse_plan("64x1x1")));
  EXPECT_FALSE(store.plan(999));
  EXPECT_FALSE(store.search(999));
}

TEST_F(StoreTest, TheLatestSearchIsOfExactlyThisQuestionAndThisBuild) {
  Store store(file());
  EXPECT_FALSE(store.latest(kKey));
  const std::int64_t first = store.save(kKey, some_search(1));
  EXPECT_EQ(store.latest(kKey), first);
  for (auto change : {&SearchKey::config_json, &SearchKey::system, &SearchKey::system_description, &SearchKey::build}) {
    SearchKey other = kKey;
    other.*change += " ";
    EXPECT_FALSE(store.latest(other));
    const std::int64_t second = store.save(other, some_search(1));
    EXPECT_LT(first, second);
    EXPECT_EQ(store.latest(kKey), first);
    EXPECT_EQ(store.latest(other), second);
  }
}

TEST_F(StoreTest, AnInterruptedSearchIsKeptAsOneAndAnswersNothing) {
  Store store(file());
  SearchResult interrupted = some_search(3);
  interrupted.complete = false;
  const std::int64_t id = store.save(kKey, interrupted);
  EXPECT_FALSE(store.latest(kKey));
  EXPECT_FALSE(store.search(id)->result.complete);
  EXPECT_EQ(store.plans(id).size(), 3u);
  const std::int64_t whole = store.save(kKey, some_search(2));
  store.save(kKey, interrupted);
  EXPECT_EQ(store.latest(kKey), whole);
  EXPECT_TRUE(store.search(whole)->result.complete);
}

std::int64_t count(const std::filesystem::path& file, const std::string& table) {
  const sqlite::Database raw(file, sqlite::Access::kRead);
  sqlite::Statement s(raw, "SELECT COUNT(*) FROM " + table);
  return s.step() ? s.integer() : -1;
}

TEST_F(StoreTest, TheSameAnswerAgainKeepsItsRowsAndAddsNone) {
  Store store(file());
  const std::int64_t first = store.save(kKey, some_search());
  const StoredPlan plan = store.plans(first)[4];
  SearchResult again = some_search();
  again.elapsed_s = 7;
  EXPECT_EQ(store.save(kKey, again), first);
  EXPECT_EQ(store.plan(plan.id), plan);
  EXPECT_EQ(store.search(first)->result.elapsed_s, 7);
  EXPECT_EQ(count(file(), "searches"), 1);
  EXPECT_EQ(count(file(), "plans"), 20);
  EXPECT_EQ(count(file(), "rejections"), 4);
}

TEST_F(StoreTest, AnotherAnswerToTheSameKeyReplacesAllButThePlansOfRuns) {
  Store store(file());
  const std::int64_t first = store.save(kKey, some_search(20));
  const StoredPlan ran = store.plans(first)[3];
  store.save(StoredRun{.plan = ran.id, .steps = 10, .predicted = {0.5, 1, 2, 3}, .measured = {0.6, 1, 2, 3}});
  const std::int64_t second = store.save(kKey, some_search(5));
  EXPECT_EQ(store.latest(kKey), second);
  EXPECT_EQ(store.search(second)->result.plans.size(), 5u);
  EXPECT_EQ(count(file(), "plans"), 5 + 1);
  EXPECT_EQ(count(file(), "rejections"), 4);
  EXPECT_EQ(store.plan(ran.id), ran);
  EXPECT_EQ(store.runs(ran.id).size(), 1u);
  EXPECT_TRUE(store.faults().empty());
}

TEST_F(StoreTest, AnAnswerThatSomethingElseChangedIsReplaced) {
  Store store(file());
  store.save(kKey, some_search(5));
  sqlite::Database(file(), sqlite::Access::kWrite).run("UPDATE plans SET microbatches = 0 WHERE rank = 2");
  const std::int64_t id = store.save(kKey, some_search(5));
  EXPECT_EQ(store.search(id)->result.plans, some_search(5).plans);
  EXPECT_EQ(count(file(), "plans"), 5);
}

TEST_F(StoreTest, APlanIsFoundInASearchOfThisBuildBeforeOthersAndByItsIdInAll) {
  Store store(file());
  const Plan plan = some_result(3).plan;
  SearchKey other = kKey;
  other.build = "2a2b";
  const std::int64_t by_this = store.save(kKey, some_search(20)), by_other = store.save(other, some_search(19));
  EXPECT_EQ(store.find(kKey, plan)->search, by_this);
  EXPECT_EQ(store.find(other, plan)->search, by_other);
  EXPECT_EQ(store.find(other, some_result(19).plan)->search, by_this);  // only there
  EXPECT_FALSE(store.find(key_of(1), plan));

  const std::string id = plan_id(plan);
  EXPECT_EQ(store.named(id), std::vector<Plan>{plan});
  EXPECT_EQ(store.named(id.substr(0, 6)), std::vector<Plan>{plan});
  EXPECT_EQ(store.named("").size(), 20u);  // each once
  EXPECT_TRUE(store.named("00000000").empty());
}

TEST_F(StoreTest, ASearchInWhichNothingFitsIsKeptToo) {
  Store store(file());
  const std::int64_t id = store.save(kKey, some_search(0));
  EXPECT_EQ(store.latest(kKey), id);
  EXPECT_TRUE(store.plans(id).empty());
  EXPECT_EQ(store.search(id)->result.rejected(), some_search(0).rejected());
}

TEST_F(StoreTest, RunsKeepWhatWasPredictedAndMeasured) {
  Store store(file());
  const std::int64_t plan = store.plans(store.save(kKey, some_search(2))).front().id;
  const StoredRun run{
      .plan = plan, .steps = 300, .predicted = {0.5, 1e12 / 3, 1000, 2000}, .measured = {0.625, 9e11 / 7, 1000, 2000}};
  store.save(run);
  store.save(run);
  const auto runs = store.runs(plan);
  ASSERT_EQ(runs.size(), 2u);
  EXPECT_EQ(runs[0].steps, 300);
  EXPECT_EQ(runs[0].predicted, run.predicted);
  EXPECT_EQ(runs[0].measured, run.measured);
  EXPECT_FALSE(runs[0].created.empty());
  EXPECT_TRUE(store.runs(plan + 1).empty());
}

TEST_F(StoreTest, TheSchemaOfVersion2IsWhatItWas) {
  // A change here needs a new kSchemaVersion and a way to read the old one.
  EXPECT_EQ(kSchemaVersion, 2);
  EXPECT_THAT(schema(), HasSubstr(R"(CREATE TABLE plans (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  search INTEGER NOT NULL REFERENCES searches (id),
  rank INTEGER NOT NULL,
  plan_id TEXT NOT NULL,
  dp INTEGER NOT NULL,
  pp INTEGER NOT NULL,
  tp INTEGER NOT NULL,
  fsdp INTEGER NOT NULL,
  microbatches INTEGER NOT NULL,
  schedule TEXT NOT NULL,
  recompute TEXT NOT NULL,
  layers TEXT NOT NULL,
  runnable INTEGER NOT NULL,
  not_runnable TEXT NOT NULL,
  step_time_s REAL NOT NULL,
  tokens_per_s REAL NOT NULL,
  mfu REAL NOT NULL,
  hfu REAL NOT NULL,
  peak_memory_bytes INTEGER NOT NULL,
  exposed_comm_s REAL NOT NULL,
  bubble_fraction REAL NOT NULL,
  model_flops REAL NOT NULL,
  executed_flops REAL NOT NULL,
  stage_layers TEXT NOT NULL,
  largest_stage INTEGER NOT NULL,
  parameters_bytes INTEGER NOT NULL,
  gradients_bytes INTEGER NOT NULL,
  optimizer_bytes INTEGER NOT NULL,
  activations_bytes INTEGER NOT NULL,
  workspace_bytes INTEGER NOT NULL,
  buffers_bytes INTEGER NOT NULL,
  data_bytes INTEGER NOT NULL,
  mapping TEXT NOT NULL,
  UNIQUE (search, rank)
);)"));
  EXPECT_THAT(
      schema(),
      HasSubstr("  steps INTEGER NOT NULL,\n  predicted_step_time_s REAL NOT NULL,\n  predicted_flops REAL NOT NULL,\n"
                "  predicted_sent_bytes INTEGER NOT NULL,\n  predicted_peak_memory_bytes INTEGER NOT NULL,\n"
                "  measured_step_time_s REAL NOT NULL,\n"));
}

TEST_F(StoreTest, TheFileIsAWriteAheadLogDatabaseWithOurIdAndVersion) {
  Store store(file());
  const sqlite::Database raw(file(), sqlite::Access::kRead);
  EXPECT_EQ(raw.pragma("application_id"), kApplicationId);
  EXPECT_EQ(raw.pragma("user_version"), kSchemaVersion);
  sqlite::Statement journal(raw, "PRAGMA journal_mode");
  ASSERT_TRUE(journal.step());
  EXPECT_EQ(journal.text(), "wal");
}

TEST_F(StoreTest, AFileThatIsNoDatabaseIsRefused) {
  write("this is a text file, and a long one: " + std::string(5000, 'x'));
  EXPECT_EQ(refusal(file()).value, "not an SQLite database");
  EXPECT_EQ(refusal(file(), Store::Access::kRead).value, "not an SQLite database");
}

TEST_F(StoreTest, ADamagedFileIsRefusedAndNeverACrash) {
  { Store(file()).save(kKey, some_search(200)); }
  std::string bytes;
  {
    std::ifstream in(file(), std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(in), {});
  }
  std::filesystem::remove(file("test.db-wal"));
  ASSERT_GT(bytes.size(), 16'384u);
  std::string torn = bytes;  // every page but the first is noise
  for (std::size_t i = 4096; i < torn.size(); ++i) torn[i] = static_cast<char>(i * 7);
  write(torn);
  EXPECT_THAT(refusal(file()).value, HasSubstr("damaged"));
  write(bytes.substr(0, 6000));  // cut off
  EXPECT_THAT(refusal(file()).value, HasSubstr("damaged"));
}

TEST_F(StoreTest, ADatabaseOfAnotherProgramIsRefusedAndLeftAsItIs) {
  { sqlite::Database(file(), sqlite::Access::kWrite).run("CREATE TABLE theirs (x)"); }
  const auto before = std::filesystem::file_size(file());
  EXPECT_EQ(refusal(file()).value, "a database of another program");
  EXPECT_EQ(std::filesystem::file_size(file()), before);
  EXPECT_FALSE(std::filesystem::exists(file("test.db-wal")));
}

TEST_F(StoreTest, AnotherSchemaIsRefusedWithBothVersionsAndWhatToDo) {
  { Store(file()).save(kKey, some_search(1)); }
  const auto refused = [&](int version) {
    sqlite::Database(file(), sqlite::Access::kWrite).run("PRAGMA user_version = " + std::to_string(version));
    const Diagnostic diagnostic = refusal(file());
    EXPECT_EQ(diagnostic.value, "schema version " + std::to_string(version));
    EXPECT_EQ(diagnostic.allowed, "schema version 2");
    return diagnostic.hint;
  };
  EXPECT_THAT(refused(1), HasSubstr("move it away and search again"));
  EXPECT_THAT(refused(3), HasSubstr("a later meshwright made it"));
}

TEST_F(StoreTest, AMissingFolderOrFileIsNamed) {
  EXPECT_EQ(refusal(folder_ / "no" / "such" / "folder.db").value, "can't be opened");
  EXPECT_EQ(refusal(folder_).value, "can't be opened");  // a folder
  EXPECT_EQ(refusal(file(), Store::Access::kRead).value, "can't be opened");
  EXPECT_FALSE(std::filesystem::exists(file()));
  write("");
  EXPECT_EQ(refusal(file(), Store::Access::kRead).value, "an empty database");
}

// Whether f() throws an InputError that says this; in a child process, where no EXPECT is heard.
bool throws(const std::string& text, const std::function<void()>& f) {
  try {
    f();
  } catch (const InputError& error) {
    if (std::string(error.what()).find(text) != std::string::npos) return true;
    std::cerr << error.what() << std::endl;
    return false;
  }
  std::cerr << "nothing was thrown, instead of: " << text << std::endl;
  return false;
}

TEST_F(StoreTest, AFolderThatCannotBeWrittenIsNamed) {
  std::filesystem::permissions(folder_, std::filesystem::perms{0555});
  const int code = as_other_user([&] {
    return throws("can't be opened", [&] { Store{file()}; }) &&
                   throws("can't be opened", [&] { Store(file(), Store::Access::kWriteIfPossible); })
               ? 0
               : 1;
  });
  if (code < 0) GTEST_SKIP() << "only root can become another user";
  EXPECT_EQ(code, 0);
}

TEST_F(StoreTest, ADatabaseThatCannotBeWrittenIsRead) {
  const std::filesystem::path awkward = file("100% of? #1.db");
  { Store(awkward).save(kKey, some_search(20)); }
  const auto reads = [&](Store::Access access) {
    Store store(awkward, access);
    const auto id = store.latest(kKey);
    return id && store.search(*id)->result.plans == some_search(20).plans &&
           throws("can't be written", [&] { store.save(kKey, some_search(1)); });
  };
  const auto all = [&] {
    return reads(Store::Access::kRead) && reads(Store::Access::kWriteIfPossible) &&
                   throws("can't be", [&] { Store{awkward}; })
               ? 0
               : 1;
  };
  std::filesystem::permissions(folder_, std::filesystem::perms{0555});  // no log can be made beside it
  const int code = as_other_user(all);
  if (code < 0) GTEST_SKIP() << "only root can become another user";
  EXPECT_EQ(code, 0);
  std::filesystem::permissions(awkward, std::filesystem::perms{0666});  // the file may be written, but not its folder
  EXPECT_EQ(as_other_user(all), 0);
  std::filesystem::permissions(awkward, std::filesystem::perms{0444});
  std::filesystem::permissions(folder_, std::filesystem::perms{0777});  // the folder may, but not the file
  EXPECT_EQ(as_other_user(all), 0);

  // While its owner writes, what is still in the log counts, too.
  Store owner(awkward);
  owner.save(kKey, some_search(30));
  ASSERT_GT(std::filesystem::file_size(awkward.string() + "-wal"), 0u);
  const auto newest = [&](Store::Access access) {
    const Store store(awkward, access);
    return store.latest(kKey) == 2 && store.plans(2).size() == 30u;
  };
  EXPECT_EQ(
      as_other_user([&] { return newest(Store::Access::kRead) && newest(Store::Access::kWriteIfPossible) ? 0 : 1; }),
      0);
}

TEST_F(StoreTest, WhatCanBeWrittenIsWrittenAndMadeIfNeedBe) {
  Store store(file(), Store::Access::kWriteIfPossible);
  EXPECT_EQ(store.save(kKey, some_search()), 1);
  EXPECT_EQ(Store(file(), Store::Access::kWriteIfPossible).latest(kKey), 1);
}

TEST_F(StoreTest, ALockIsWaitedForAsLongAsWasAskedFor) {
  using namespace std::chrono_literals;
  { Store(file()).save(kKey, some_search(5)); }
  const StoredRun run{.plan = 1, .steps = 10};
  {
    const sqlite::Database other(file(), sqlite::Access::kWrite);
    const sqlite::Transaction lock(other);
    Store impatient(file(), Store::Access::kWrite, 100ms);
    EXPECT_TRUE(throws("locked by another process for 0.1 s", [&] { impatient.save(run); }));
  }
  // Given up by the other within that time: stored.
  std::promise<void> locked;
  std::jthread other([&] {
    const sqlite::Database raw(file(), sqlite::Access::kWrite);
    const sqlite::Transaction lock(raw);
    locked.set_value();
    std::this_thread::sleep_for(300ms);
  });
  locked.get_future().wait();
  Store patient(file(), Store::Access::kWrite, 30s);
  patient.save(run);
  EXPECT_EQ(patient.runs(1).size(), 1u);
}

struct Hostile {
  std::string sql, path, value, allowed;  // of rank 2, whose row is 2; the last three as the fault says them
};

TEST_F(StoreTest, EveryValueOfTheDatabaseIsCheckedLikeOneThatAUserWrites) {
  const std::string kPlan = " WHERE rank = 2", kLarge = " WHERE plan IS NOT NULL", kIllegal = " WHERE fsdp IS NULL";
  const std::vector<Hostile> cases{
      {"UPDATE plans SET microbatches = 0" + kPlan, "plans[2].microbatches", "microbatches=0", "1 to"},
      {"UPDATE plans SET fsdp = -1" + kPlan, "plans[2].fsdp", "-1", "an integer from 0"},
      {"UPDATE plans SET fsdp = 4" + kPlan, "plans[2].fsdp", "fsdp=4", "0, 1, 2 or 3"},
      {"UPDATE plans SET dp = 0" + kPlan, "plans[2].dp", "0x2x2", "positive"},
      {"UPDATE plans SET tp = 4294967298" + kPlan, "plans[2].tp", "4294967298", "2147483647"},
      {"UPDATE plans SET dp = 1000000, pp = 1000000" + kPlan, "plans[2].dp", "1000000x1000000x2", "at most 1000000"},
      {"UPDATE plans SET schedule = 'dualpipe'" + kPlan, "plans[2].schedule", "\"dualpipe\"", "gpipe, 1f1b"},
      {"UPDATE plans SET schedule = 7" + kPlan, "plans[2].schedule", "\"7\"", "gpipe, 1f1b"},
      {"UPDATE plans SET microbatches = 'many'" + kPlan, "plans[2].microbatches", "\"many\"", "an integer"},
      {"UPDATE plans SET microbatches = 1.5" + kPlan, "plans[2].microbatches", "1.5", "an integer"},
      {"UPDATE plans SET microbatches = x'00'" + kPlan, "plans[2].microbatches", "a blob of 1 bytes", "an integer"},
      {"UPDATE plans SET plan_id = '12345678'" + kPlan, "plans[2].plan_id", "\"12345678\"", "the id of 2x2x2"},
      {"UPDATE plans SET step_time_s = 9e999" + kPlan, "plans[2].step_time_s", "Inf", "a number of at least 0"},
      {"UPDATE plans SET step_time_s = 0" + kPlan, "plans[2].step_time_s", "0", "a number above 0"},
      {"UPDATE plans SET bubble_fraction = -0.5" + kPlan, "plans[2].bubble_fraction", "-0.5", "at least 0"},
      {"UPDATE plans SET mfu = 2147483648" + kPlan, "plans[2].mfu", "2147483648", "1"},
      {"UPDATE plans SET tokens_per_s = 1e308" + kPlan, "plans[2].tokens_per_s", "1e+308", "1"},
      {"UPDATE plans SET bubble_fraction = 1.5" + kPlan, "plans[2].bubble_fraction", "1.5", "1"},
      {"UPDATE plans SET runnable = 2" + kPlan, "plans[2].runnable", "2", "from 0 to 1"},
      {"UPDATE plans SET stage_layers = '30,,18'" + kPlan, "plans[2].stage_layers", "30,,18", "commas"},
      {"UPDATE plans SET stage_layers = '30,18,'" + kPlan, "plans[2].stage_layers", "30,18,", "commas"},
      {"UPDATE plans SET stage_layers = '48'" + kPlan, "plans[2].stage_layers", "1 numbers", "2, as many as pp"},
      {"UPDATE plans SET largest_stage = 2" + kPlan, "plans[2].largest_stage", "2", "from 0 to 1"},
      {"UPDATE plans SET not_runnable = char(27) || '[2J'" + kPlan, "plans[2].not_runnable", "\\x1b[2J", "control"},
      {"UPDATE plans SET mapping = CAST(x'ff' AS TEXT)" + kPlan, "plans[2].mapping", "\\xff", "control"},
      {"UPDATE rejections SET plan = '1x4x2,microbatches=0'" + kLarge, ".plan", "microbatches=0", "1 to"},
      {"UPDATE rejections SET plan = 'x'" + kLarge, ".plan", "\"x\"", "a plan"},
      {"UPDATE rejections SET excess_bytes = -1" + kLarge, ".excess_bytes", "-1", "at least 0"},
      {"UPDATE rejections SET dp = -8" + kIllegal, ".dp", "-8", "from 1"},
      {"UPDATE rejections SET reason = x'01'" + kIllegal, ".reason", "a blob", "text"},
      {"UPDATE searches SET evaluated = 'all'", "searches[1].evaluated", "\"all\"", "an integer"},
      {"UPDATE searches SET legal = 7", "searches[1].legal", "7", "from 6 to 6"},
      {"UPDATE searches SET legal = 5, complete = 0", "searches[1].legal", "5", "at least 6"},
  };
  for (const Hostile& c : cases) {
    SCOPED_TRACE(c.sql);
    for (const char* end : {"", "-wal", "-shm"}) std::filesystem::remove(file("test.db" + std::string(end)));
    { Store(file()).save(kKey, some_search(4)); }
    sqlite::Database(file(), sqlite::Access::kWrite).run(c.sql);
    try {
      Store(file(), Store::Access::kRead).search(1);
      ADD_FAILURE() << "accepted";
    } catch (const InputError& error) {
      const Diagnostic& fault = error.diagnostics().front();
      EXPECT_EQ(fault.source, file().string());
      EXPECT_THAT(fault.path, HasSubstr(c.path));
      EXPECT_THAT(fault.value, HasSubstr(c.value));
      EXPECT_THAT(fault.allowed, HasSubstr(c.allowed));
      EXPECT_FALSE(fault.hint.empty());
    }
  }
}

TEST_F(StoreTest, ADroppedTransactionLeavesNothing) {
  Store store(file());
  store.save(kKey, some_search());
  {
    const sqlite::Database raw(file(), sqlite::Access::kWrite);
    const sqlite::Transaction transaction(raw);
    raw.run("DELETE FROM plans; UPDATE searches SET evaluated = 0");
  }
  EXPECT_EQ(store.search(1)->result.plans.size(), 20u);
  EXPECT_EQ(store.search(1)->result.evaluated, 22);
  EXPECT_TRUE(store.faults().empty());
}

TEST_F(StoreTest, KilledAtAnyMomentItHoldsEverySearchAcknowledgedAndNoHalfOne) {
  for (int round = 0; round < 25; ++round) {
    int acknowledged[2];
    ASSERT_EQ(::pipe(acknowledged), 0);
    const pid_t child = ::fork();
    if (child == 0) {  // saves until it is killed, and says so after each
      ::close(acknowledged[0]);
      Store store(file());
      const SearchResult search = some_search(300);
      for (int i = 0;; ++i) {
        store.save(key_of(round * 1000 + i), search);
        if (::write(acknowledged[1], "+", 1) != 1) ::_exit(1);
      }
    }
    ::close(acknowledged[1]);
    ::usleep(static_cast<useconds_t>(2'000 + round * 1'700));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    static std::int64_t sure = 0;
    for (char c; ::read(acknowledged[0], &c, 1) == 1;) ++sure;
    ::close(acknowledged[0]);

    const Store store(file());
    EXPECT_TRUE(store.faults().empty());
    const std::int64_t searches = count(file(), "searches");
    EXPECT_GE(searches, sure);
    for (std::int64_t id = 1; id <= searches; ++id) EXPECT_EQ(store.plans(id).size(), 300u);
    EXPECT_TRUE(store.plans(searches + 1).empty());
    sure = searches;  // one may have been committed and not acknowledged
  }
}

TEST_F(StoreTest, AReaderSeesWholeSearchesWhileAWriterWrites) {
  Store writer(file());
  std::atomic<bool> done = false;
  std::jthread reading([&] {
    const Store reader(file(), Store::Access::kRead);
    int seen = 0;
    do {
      const auto id = reader.latest(key_of(seen));
      if (!id) continue;
      EXPECT_EQ(reader.search(*id)->result.plans.size(), 100u);
      ++seen;
    } while (!done);
  });
  for (int i = 0; i < 20; ++i) writer.save(key_of(i), some_search(100));
  done = true;
}

TEST_F(StoreTest, AReaderSeesOneOfTwoAnswersWhileAWriterReplacesThem) {
  Store writer(file());
  writer.save(kKey, some_search(80));
  std::atomic<bool> done = false;
  std::jthread reading([&] {
    const Store reader(file(), Store::Access::kRead);
    do {
      const auto found = reader.search(reader.latest(kKey).value_or(0));
      if (!found) continue;  // replaced between the two calls
      EXPECT_THAT(found->result.plans.size(), ::testing::AnyOf(80u, 81u));
      EXPECT_EQ(found->result.evaluated, static_cast<std::int64_t>(found->result.plans.size()) + 2);
    } while (!done);
  });
  for (int i = 0; i < 20; ++i) writer.save(kKey, some_search(80 + i % 2));
  done = true;
}

TEST_F(StoreTest, AReaderIsNotHeldUpByAnOpenTransaction) {
  Store store(file());
  store.save(kKey, some_search(5));
  const sqlite::Database raw(file(), sqlite::Access::kWrite);
  sqlite::Transaction transaction(raw);
  raw.run("DELETE FROM plans");
  const Store reader(file(), Store::Access::kRead);
  EXPECT_EQ(reader.search(1)->result.plans.size(), 5u);
}

TEST_F(StoreTest, TwoWritersTakeTurns) {
  const auto save_some = [&](int first) {
    Store store(file());
    for (int i = 0; i < 10; ++i) store.save(key_of(first + i), some_search(20));
    store.save(kKey, some_search(20));
  };
  { std::jthread one(save_some, 0), two(save_some, 10); }
  const Store store(file());
  EXPECT_EQ(count(file(), "searches"), 21);  // both have the same answer to kKey
  EXPECT_TRUE(store.faults().empty());
}

TEST(NetworkFileSystems, NfsAndSmbAreAndExt4IsNot) {
  EXPECT_TRUE(sqlite::is_network_file_system(0x6969));
  EXPECT_TRUE(sqlite::is_network_file_system(static_cast<std::int32_t>(0xFF534D42)));
  EXPECT_FALSE(sqlite::is_network_file_system(0xEF53));
}

}  // namespace
}  // namespace meshwright
