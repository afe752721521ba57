// Output that can't be written, data that can't be read, caches and databases that can't be changed: nothing is lost without a
// word, and nothing is found out only after hours.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "planner/sqlite.h"
#include "tests/cli/binary.h"
#include "tests/other_user.h"

namespace meshwright {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using testing::HasSubstr;
using testing::Not;

// A line of bash in a folder, in which $M is the program and $C the small configuration. What the line itself does not
// redirect is the outcome's.
Outcome bash(const TemporaryFolder& folder, const std::string& line) {
  const std::string file = folder.write(
      "line.sh", "cd '" + folder.path().string() + "'\nexport MESHWRIGHT_CACHE=${MESHWRIGHT_CACHE:-$PWD/cache}\nM='" +
                     MESHWRIGHT_BINARY + "'\nC='" + kSmall + "'\n{ " + line + "\n} >stdout.txt 2>stderr.txt\n");
  const int status = std::system(("env -u MESHWRIGHT_CACHE timeout 300 bash '" + file + "' </dev/null").c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), text_of(folder.path() / "stdout.txt"),
          text_of(folder.path() / "stderr.txt")};
}

void make_npy(const fs::path& file, const std::vector<std::int32_t>& tokens) {
  std::string header =
      "{'descr': '<i4', 'fortran_order': False, 'shape': (" + std::to_string(tokens.size()) + ",), }\n";
  std::ofstream out(file, std::ios::binary);
  out << "\x93NUMPY\x01" << '\0' << static_cast<char>(header.size()) << '\0' << header;
  out.write(reinterpret_cast<const char*>(tokens.data()), static_cast<std::streamsize>(tokens.size() * 4));
}

std::string text() {
  std::string lines;
  for (int i = 0; i < 2000; ++i) lines += "the quick brown fox " + std::to_string(i * 7919 % 1000) + " jumps\n";
  return lines;
}

// On one device, with little to do: a run of one step takes a second.
const std::string kOneDevice =
    " $C --system v4:1x1x1 --set model_config.vocab_size=512 --set model_config.T=32 --set data_config.T=32 --set "
    "device_config.n_device_axis=[1,1,1] ";

// ---- stdout ------------------------------------------------------------------------------------------------------------

TEST(Output, ThatIsLostIsAnErrorOfEveryCommand) {
  const TemporaryFolder folder;
  for (const std::string command :
       {"--help", "search --help", "params $C", "params $C --json", "params $C --print-config",
        "search $C --system v4:2x2x1", "search $C --system v4:2x2x1 --json",
        "simulate $C --system v4:2x2x1 --plan 4x1x1", "simulate $C --system v4:2x2x1 --plan 4x1x1 --json",
        "simulate $C --system v4:2x2x1 --plan 4x1x1 --shardings",
        "simulate $C --system v4:2x2x1 --plan 4x1x1 --shardings --json"}) {
    const Outcome full = bash(folder, "$M " + command + " > /dev/full");
    EXPECT_EQ(full.code, 1) << command;
    EXPECT_THAT(full.err, HasSubstr("stdout: No space left on device")) << command;
    const Outcome closed = bash(folder, "$M " + command + " >&-");
    EXPECT_EQ(closed.code, 1) << command;
    EXPECT_THAT(closed.err, HasSubstr("stdout: Bad file descriptor")) << command;
  }
}

TEST(Output, OfRanksThatIsLostEndsTheRun) {
  const TemporaryFolder folder;
  folder.write("text.txt", text());
  for (const std::string more : {"", "--json"}) {
    // So many steps that the test would take an hour if the first line's loss went unnoticed.
    const Outcome outcome =
        bash(folder, "$M run" + kOneDevice + "--plan 1x1x1 --steps 100000 --data text.txt " + more + " > /dev/full");
    EXPECT_EQ(outcome.code, 1) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr("No space left on device"));
  }
}

TEST(Output, OfRanksComesWholeAndInOrderThroughAPipe) {
  const TemporaryFolder folder;
  folder.write("text.txt", text());
  const Outcome outcome = bash(
      folder, "$M run" + kOneDevice + "--plan 1x1x1 --steps 30 --data text.txt --json | cat; exit ${PIPESTATUS[0]}");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  std::istringstream lines(outcome.out);
  std::string line;
  for (int step = 1; step <= 30; ++step) {
    ASSERT_TRUE(std::getline(lines, line));
    EXPECT_EQ(Json::parse(line).at("step"), step);
  }
  ASSERT_TRUE(std::getline(lines, line));
  EXPECT_TRUE(Json::parse(line).contains("counted"));
}

TEST(Output, OfATraceThatIsLostIsSaidWithItsCause) {
  const TemporaryFolder folder;
  for (const std::string name : {"full.json", "full.json.gz", "no/such/folder.json", "."}) {
    const Outcome outcome = bash(folder,
                                 "ln -sf /dev/full full.json; ln -sf /dev/full full.json.gz; "
                                 "$M simulate $C --system v4:2x2x1 --plan 4x1x1 --trace " +
                                     name);
    EXPECT_EQ(outcome.code, 2) << name << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr("--trace = \"" + name + "\""));
    EXPECT_THAT(outcome.err,
                testing::AnyOf(HasSubstr("No space left"), HasSubstr("No such"), HasSubstr("Is a directory")));
  }
}

TEST(Paths, ThatLeadNowhereAreBadInputWhereverTheyAreGiven) {
  const TemporaryFolder folder;
  for (const std::string loop : {"loop", "loop.json", "loop.npy"}) fs::create_symlink(loop, folder.path() / loop);
  for (const std::string command :
       {"params loop.json", "search $C --system loop.json", "search $C --system v4:2x2x1 --db loop",
        "simulate $C --system v4:2x2x1 --plan 4x1x1 --db loop", "simulate $C --system v4:2x2x1 --plan best --db loop",
        "run $C --system v4:2x2x1 --plan 4x1x1 --rehearse --data loop.npy",
        "run $C --system v4:2x2x1 --plan 4x1x1 --rehearse --data loop/x.txt",
        "simulate $C --system v4:2x2x1 --plan 4x1x1 --trace loop.json"}) {
    const Outcome outcome = bash(folder, "$M " + command);
    EXPECT_EQ(outcome.code, 2) << command << '\n' << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr("loop")) << command;
    EXPECT_THAT(outcome.err, Not(HasSubstr("internal error"))) << command;
  }
  const Outcome cache = bash(folder, "MESHWRIGHT_CACHE=loop $M search $C --system local");
  EXPECT_EQ(cache.code, 2) << cache.err;
}

// ---- --data ------------------------------------------------------------------------------------------------------------

TEST(DataFiles, AreRefusedBeforeAnyRankStarts) {
  const TemporaryFolder folder;
  const fs::path shards = folder.path() / "shards", broken = folder.path() / "broken";
  fs::create_directories(shards);
  fs::create_directories(broken);
  const std::vector<std::int32_t> enough(5000, 1);
  std::vector<std::int32_t> bad = enough;
  bad[4321] = 512;
  make_npy(shards / "a.npy", enough);
  make_npy(shards / "b.npy", bad);
  make_npy(broken / "a.npy", enough);
  ASSERT_EQ(mkfifo((broken / "b.npy").c_str(), 0600), 0);
  fs::create_symlink("c.npy", broken / "c.npy");
  make_npy(folder.path() / "short.npy", {1, 2, 3});
  folder.write("short.txt", "few words\n");
  folder.write("latin1.txt", text() + "caf\xe9\n");

  const auto refused = [&](const std::string& data, const std::vector<std::string>& says) {
    const Outcome outcome =
        bash(folder, "$M run $C --system v4:2x2x1 --plan 4x1x1 --rehearse --trace t.json --data " + data);
    EXPECT_EQ(outcome.code, 2) << data;
    EXPECT_EQ(outcome.out, "");
    EXPECT_THAT(outcome.err, Not(HasSubstr("rehearsing")));  // which is said when ranks are started
    for (const std::string& part : says) EXPECT_THAT(outcome.err, HasSubstr(part)) << data;
    EXPECT_FALSE(fs::exists(folder.path() / "t.json"));
  };
  refused("shards", {"shards/b.npy: element 4321 = 512: allowed: token ids from 0 to 511", "hint: "});
  refused("broken", {"broken/b.npy = a FIFO", "broken/c.npy = Too many levels of symbolic links"});
  refused("broken/b.npy", {"a FIFO"});
  refused("/dev/zero", {"/dev/zero = a device"});
  refused("short.npy", {"3 tokens: allowed: "});
  refused("short.txt", {"tokens: allowed: "});
  refused("latin1.txt", {"latin1.txt: line 2001, byte ", "0xE9", "iconv"});
  refused("none.txt", {"none.txt", "No such file", "--data"});
}

// ---- caches ------------------------------------------------------------------------------------------------------------

TEST(Calibration, IsRefusedBeforeItMeasuresWhereItCannotBeKept) {
  const TemporaryFolder folder;
  for (const std::string command : {"calibrate", "search $C --system local", "run $C --system local"}) {
    const Outcome outcome = bash(folder, "MESHWRIGHT_CACHE=/dev/null/cache $M " + command);
    EXPECT_EQ(outcome.code, 2) << outcome.err;
    EXPECT_EQ(outcome.out, "");
    EXPECT_THAT(outcome.err, HasSubstr("hint: set MESHWRIGHT_CACHE to another folder"));
    EXPECT_THAT(outcome.err, Not(HasSubstr("measuring")));
  }
}

// A line of bash with a full disk in ./full. False where no disk may be made.
bool with_full_disk(const TemporaryFolder& folder, const std::string& line, Outcome& outcome) {
  fs::create_directories(folder.path() / "full");
  outcome = bash(folder,
                 "cat > inner.sh <<'END'\nmount -t tmpfs -o size=16k none full || exit 77\n"
                 "dd if=/dev/zero of=full/stuff bs=1k count=10 2>/dev/null\n" +
                     line + "\nEND\nexport M C; unshare -m bash inner.sh || exit $?");
  return outcome.code != 77 && outcome.err.find("unshare") == std::string::npos;
}

TEST(Calibration, IsRefusedBeforeItMeasuresOnAFullDisk) {
  const TemporaryFolder folder;
  Outcome outcome;
  if (!with_full_disk(folder, "MESHWRIGHT_CACHE=$PWD/full $M calibrate; code=$?; ls full; exit $code", outcome))
    GTEST_SKIP() << "no disk may be made here: " << outcome.err;
  EXPECT_EQ(outcome.code, 2) << outcome.err;
  EXPECT_EQ(outcome.out, "stuff\n");  // nothing is left behind
  EXPECT_THAT(outcome.err, HasSubstr("No space left on device"));
  EXPECT_THAT(outcome.err, Not(HasSubstr("measuring")));
}

TEST(FullDisk, LeavesNoHalfATokenizerAndIsBadInput) {
  const TemporaryFolder folder;
  folder.write("text.txt", text());
  Outcome outcome;
  if (!with_full_disk(folder,
                      "MESHWRIGHT_CACHE=$PWD/full $M run $C --system v4:2x2x1 --plan 4x1x1 --rehearse --data text.txt; "
                      "code=$?; ls full; exit $code",
                      outcome))
    GTEST_SKIP() << "no disk may be made here: " << outcome.err;
  EXPECT_EQ(outcome.code, 2) << outcome.err;
  EXPECT_EQ(outcome.out, "stuff\n");
  EXPECT_THAT(outcome.err, HasSubstr("No space left on device"));
}

TEST(AlteredCache, IsMadeAnewWithAWarningAndTrainsTheSame) {
  const TemporaryFolder folder;
  folder.write("text.txt", text());
  const std::string line = "$M run" + kOneDevice + "--plan 1x1x1 --steps 2 --data text.txt --json";
  const auto losses = [&](const std::string& stderr_says) {
    const Outcome outcome = bash(folder, line);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    if (stderr_says.empty())
      EXPECT_THAT(outcome.err, Not(HasSubstr("made anew")));
    else
      EXPECT_THAT(outcome.err, HasSubstr(stderr_says));
    std::vector<double> all;
    std::istringstream lines(outcome.out);
    for (std::string step; std::getline(lines, step);)
      if (Json::parse(step).contains("loss")) all.push_back(Json::parse(step).at("loss"));
    return all;
  };
  const std::vector<double> first = losses("");
  ASSERT_EQ(first.size(), 2u);
  for (const auto& file : fs::directory_iterator(folder.path() / "cache")) {
    if (file.path().extension() != ".i32") continue;
    std::string bytes = text_of(file.path());
    std::rotate(bytes.begin(), bytes.begin() + 400, bytes.begin() + 4000);  // other tokens of the same vocabulary
    std::ofstream(file.path(), std::ios::binary) << bytes;
  }
  EXPECT_EQ(losses(".i32 is not used, but made anew"), first);
  EXPECT_EQ(losses(""), first);
}

// ---- databases ---------------------------------------------------------------------------------------------------------

// Lets no row into a table.
void close_table(const fs::path& database, const std::string& table) {
  sqlite::Database(database, sqlite::Access::kWrite)
      .run("CREATE TRIGGER closed BEFORE INSERT ON " + table + " BEGIN SELECT RAISE(ABORT, 'no room for it'); END");
}

TEST(DatabaseThatTakesNoRow, ASearchIsPrintedAllTheSameAndPlanBestAnswers) {
  const TemporaryFolder folder;
  const std::string line = "$M search" + kOneDevice, other = " --set seed=7 ";
  ASSERT_EQ(bash(folder, line).code, 0);
  close_table(folder.path() / "meshwright.db", "searches");
  const Outcome table = bash(folder, line + other);
  EXPECT_EQ(table.code, 2);
  EXPECT_THAT(table.out, HasSubstr("legal plans fit"));
  EXPECT_THAT(table.err, HasSubstr("no room for it"));
  const Outcome json = bash(folder, line + other + "--json");
  EXPECT_EQ(json.code, 2);
  const Json best = Json::parse(json.out).at("plans").at(0);

  const Outcome simulated = bash(folder, "$M simulate" + kOneDevice + other + "--plan best --json");
  EXPECT_EQ(simulated.code, 0) << simulated.err;
  EXPECT_THAT(simulated.err, HasSubstr("the search is not stored"));
  EXPECT_EQ(Json::parse(simulated.out).at("step_time_s"), best.at("step_time_s"));
}

TEST(DatabaseThatTakesNoRow, IsOneBeyondALimitOfFileSizesToo) {
  const TemporaryFolder folder;  // 1 KiB: not even an empty database
  const Outcome outcome = bash(folder, "( ulimit -f 1; $M search" + kOneDevice + "2>&1 | cat; exit ${PIPESTATUS[0]} )");
  EXPECT_EQ(outcome.code, 2) << outcome.out;
  EXPECT_THAT(outcome.out, HasSubstr("--db: meshwright.db = "));
}

TEST(DatabaseThatTakesNoRow, ARunKeepsItsTraceAndSaysWhereItsFiguresAre) {
  const TemporaryFolder folder;
  folder.write("text.txt", text());
  ASSERT_EQ(bash(folder, "$M search" + kOneDevice).code, 0);
  close_table(folder.path() / "meshwright.db", "runs");
  const Outcome outcome =
      bash(folder,
           "$M run" + kOneDevice + "--plan best --steps 1 --data text.txt --trace trace.json --set name=mine --json");
  EXPECT_EQ(outcome.code, 2) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("no room for it"));
  EXPECT_FALSE(Json::parse(text_of(folder.path() / "trace.json")).at("traceEvents").empty());

  std::istringstream lines(outcome.out);
  std::string step, totals;
  ASSERT_TRUE(std::getline(lines, step) && std::getline(lines, totals)) << outcome.out;
  int found = 0;
  for (const auto& file : fs::recursive_directory_iterator(folder.path() / "runs")) {
    if (!file.path().filename().string().starts_with("not-stored")) continue;
    ++found;
    EXPECT_THAT(outcome.err, HasSubstr(fs::relative(file.path(), folder.path()).string()));
    const Json row = Json::parse(text_of(file.path()));
    EXPECT_EQ(row.at("steps"), 1);
    EXPECT_EQ(row.at("measured").at("step_time_s"), Json::parse(totals).at("counted").at("step_time_s"));
    EXPECT_EQ(row.at("predicted").at("flops"), Json::parse(totals).at("predicted").at("flops"));
  }
  EXPECT_EQ(found, 1) << outcome.err;
}

TEST(DatabaseThatTakesNoRow, ATraceThatCannotBeWrittenDoesNotCostTheRow) {
  const TemporaryFolder folder;
  folder.write("text.txt", text());
  ASSERT_EQ(bash(folder, "$M search" + kOneDevice).code, 0);
  const Outcome outcome =
      bash(folder, "$M run" + kOneDevice + "--plan best --steps 1 --data text.txt --trace /dev/full --json");
  EXPECT_EQ(outcome.code, 2) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("--trace"));
  EXPECT_THAT(outcome.err, HasSubstr("No space left on device"));
  const sqlite::Database database(folder.path() / "meshwright.db", sqlite::Access::kRead);
  sqlite::Statement rows(database, "SELECT count(*) FROM runs");
  ASSERT_TRUE(rows.step());
  EXPECT_EQ(rows.integer(), 1);
}

TEST(ReadOnlyDatabase, AnswersSimulateAndRefusesARunBeforeItStarts) {
  const TemporaryFolder folder;
  ASSERT_EQ(bash(folder, "$M search" + kOneDevice).code, 0);
  const Outcome expected = bash(folder, "$M simulate" + kOneDevice + "--plan best --json");
  ASSERT_EQ(expected.code, 0) << expected.err;
  const TemporaryFolder theirs;  // may write here, and only read there
  fs::permissions(theirs.path(), fs::perms{0777});
  fs::permissions(folder.path(), fs::perms{0555});
  const std::string database = " --db " + (folder.path() / "meshwright.db").string();
  const auto as_them = [&](const std::string& line, int code) {
    return as_other_user([&] {
      if (access(MESHWRIGHT_BINARY, X_OK) != 0) return 98;
      return bash(theirs, line).code == code ? 0 : 1;
    });
  };
  const int best = as_them("$M simulate" + kOneDevice + "--plan best --json" + database, 0);
  if (best < 0 || best == 98) GTEST_SKIP() << "no other user can run the program here";
  EXPECT_EQ(best, 0) << text_of(theirs.path() / "stderr.txt");
  EXPECT_EQ(text_of(theirs.path() / "stdout.txt"), expected.out);
  // One that is not stored is searched, and answers.
  EXPECT_EQ(as_them("$M simulate" + kOneDevice + "--set seed=7 --plan best --json" + database, 0), 0);
  EXPECT_THAT(text_of(theirs.path() / "stderr.txt"), HasSubstr("the search is not stored"));
  // A run's row would be lost at its end.
  EXPECT_EQ(as_them("$M run" + kOneDevice + "--plan best" + database, 2), 0);
  EXPECT_THAT(text_of(theirs.path() / "stderr.txt"), HasSubstr("meshwright.db = can't be"));
  fs::permissions(folder.path(), fs::perms{0755});
}

}  // namespace
}  // namespace meshwright
