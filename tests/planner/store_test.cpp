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

const SearchKey kKey{R"({"name": "small"})", "v4:2x2x1", "v4, every number of it"};

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
               .stage_layers = {24, 12, 10, 2},
               .largest_stage = 3,
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
  result.evaluated = plans + 2;
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
    store.save({"other", "v4:2x2x1", "x"}, some_search(3));
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
  EXPECT_EQ(store.best(id), plans[0]);
  EXPECT_EQ(store.best_runnable(id), plans[2]);  // the first two are not
  EXPECT_EQ(store.find(id, some_result(7).plan)->result, some_result(7));
  EXPECT_FALSE(store.find(id, parse_plan("64x1x1")));
  EXPECT_FALSE(store.plan(999));
  EXPECT_FALSE(store.search(999));
}

TEST_F(StoreTest, TheLatestSearchIsOfExactlyThisQuestion) {
  Store store(file());
  EXPECT_FALSE(store.latest(kKey));
  const std::int64_t first = store.save(kKey, some_search(1));
  const std::int64_t second = store.save(kKey, some_search(2));
  EXPECT_LT(first, second);
  EXPECT_EQ(store.latest(kKey), second);
  for (auto change : {&SearchKey::config_json, &SearchKey::system, &SearchKey::system_description}) {
    SearchKey other = kKey;
    other.*change += " ";
    EXPECT_FALSE(store.latest(other));
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

TEST_F(StoreTest, ASearchInWhichNothingFitsIsKeptToo) {
  Store store(file());
  const std::int64_t id = store.save(kKey, some_search(0));
  EXPECT_EQ(store.latest(kKey), id);
  EXPECT_FALSE(store.best(id));
  EXPECT_EQ(store.search(id)->result.rejected(), some_search(0).rejected());
}

TEST_F(StoreTest, RunsKeepWhatWasPredictedAndMeasured) {
  Store store(file());
  const std::int64_t plan = store.best(store.save(kKey, some_search(2)))->id;
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

TEST_F(StoreTest, ANewerSchemaIsRefusedWithBothVersions) {
  { Store(file()).save(kKey, some_search(1)); }
  { sqlite::Database(file(), sqlite::Access::kWrite).run("PRAGMA user_version = 3"); }
  const Diagnostic refused = refusal(file());
  EXPECT_EQ(refused.value, "schema version 3");
  EXPECT_EQ(refused.allowed, "schema version 2");
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

TEST_F(StoreTest, AnUnknownScheduleInTheFileIsRefused) {
  { Store(file()).save(kKey, some_search(3)); }
  { sqlite::Database(file(), sqlite::Access::kWrite).run("UPDATE plans SET schedule = 'dualpipe' WHERE rank = 2"); }
  EXPECT_EQ(refusal(file()).value, "a plan with \"dualpipe\"");
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
      for (const SearchResult search = some_search(300);;) {
        store.save(kKey, search);
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
    const std::int64_t searches = store.latest(kKey).value_or(0);
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
    std::int64_t newest = 0;
    do {
      const auto id = reader.latest(kKey);
      if (!id) continue;
      EXPECT_GE(*id, newest);
      newest = *id;
      EXPECT_EQ(reader.search(*id)->result.plans.size(), 100u);
    } while (!done);
  });
  for (int i = 0; i < 20; ++i) writer.save(kKey, some_search(100));
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
  const auto save_some = [&] {
    Store store(file());
    for (int i = 0; i < 10; ++i) store.save(kKey, some_search(20));
  };
  { std::jthread one(save_some), two(save_some); }
  const Store store(file());
  EXPECT_EQ(store.latest(kKey), 20);
  EXPECT_TRUE(store.faults().empty());
}

TEST(NetworkFileSystems, NfsAndSmbAreAndExt4IsNot) {
  EXPECT_TRUE(sqlite::is_network_file_system(0x6969));
  EXPECT_TRUE(sqlite::is_network_file_system(static_cast<std::int32_t>(0xFF534D42)));
  EXPECT_FALSE(sqlite::is_network_file_system(0xEF53));
}

}  // namespace
}  // namespace meshwright
