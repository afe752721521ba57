#include "executor/launch/launcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <stdexcept>

#include "model/input/diagnostics.h"

namespace meshwright {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

// Sets a variable of the environment for its lifetime.
class WithEnvironment {
 public:
  WithEnvironment(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    setenv(name, value, 1);
  }
  ~WithEnvironment() {
    if (before_.empty()) {
      unsetenv(name_);
    } else {
      setenv(name_, before_.c_str(), 1);
    }
  }

 private:
  const char* name_;
  std::string before_;
};

const std::vector<Core> kTwoCores = {{0, 0, {0, 4}}, {0, 3, {3}}};

std::string word_after(const std::vector<std::string>& line, const std::string& word) {
  const auto at = std::find(line.begin(), line.end(), word);
  return at == line.end() || at + 1 == line.end() ? "" : at[1];
}

TEST(Launcher, tells_ranks_the_cores_that_are_theirs_and_lets_them_spin) {
  const auto line = mpirun_command(2, kTwoCores, {"/bin/meshwright", "run"});
  EXPECT_THAT(line, Contains("MESHWRIGHT_CORES=0,4:3"));
  EXPECT_EQ(word_after(line, "--bind-to"), "none");  // not mpirun: it would give the first cores to every run
  EXPECT_EQ(word_after(line, "mpi_yield_when_idle"), "0");
  EXPECT_THAT(std::vector(line.end() - 2, line.end()), ElementsAre("/bin/meshwright", "run"));
}

TEST(Launcher, ranks_without_a_core_of_their_own_are_unbound_and_yield_while_they_wait) {
  for (const auto& cores : {std::vector<Core>{}, kTwoCores}) {  // none were free; more ranks than cores
    const auto line = mpirun_command(3, cores, {"x"});
    EXPECT_THAT(line, Contains("--oversubscribe"));
    EXPECT_EQ(word_after(line, "--bind-to"), "none");
    EXPECT_EQ(word_after(line, "mpi_yield_when_idle"), "1");
    EXPECT_THAT(line, Not(Contains(HasSubstr("MESHWRIGHT_CORES"))));
  }
}

TEST(Launcher, a_users_own_mpirun_must_have_the_plans_number_of_ranks) {
  const WithEnvironment size("OMPI_COMM_WORLD_SIZE", "4");
  EXPECT_TRUE(is_started_rank());
  EXPECT_EQ(started_ranks(), 4);
  EXPECT_NO_THROW(expect_ranks(4, 4, "2x2x1"));
  try {
    expect_ranks(4, 8, "2x2x2");
    FAIL();
  } catch (const InputError& e) {
    EXPECT_THAT(e.what(), HasSubstr("4"));
    EXPECT_THAT(e.what(), HasSubstr("8, the ranks of the plan 2x2x2"));
    EXPECT_THAT(e.what(), HasSubstr("mpirun -n 8"));
  }
}

TEST(Launcher, without_mpirun_the_message_names_the_package) {
  const WithEnvironment path("PATH", "/nowhere");
  try {
    run_ranks(2, {"/bin/true"});
    FAIL();
  } catch (const InputError& e) {
    EXPECT_THAT(e.what(), HasSubstr("openmpi-bin"));
  }
}

TEST(Launcher, starts_as_many_processes_as_asked_and_returns_the_exit_code_of_one_that_failed) {
  const auto folder = std::filesystem::temp_directory_path() / ("meshwright-launch-" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  // Each rank leaves a file with its number, which is under mpirun with the environment that a rank sees; no
  // shell meets the words of the command on the way, so that "$0 ; exit 9" is only a word.
  const std::string script = "touch \"$1/$OMPI_COMM_WORLD_RANK-of-$OMPI_COMM_WORLD_SIZE-omp$OMP_NUM_THREADS\"";
  EXPECT_EQ(run_ranks(3, {"/bin/sh", "-c", script, "$0 ; exit 9", folder.string()}), 0);
  for (const char* file : {"0-of-3-omp1", "1-of-3-omp1", "2-of-3-omp1"})
    EXPECT_TRUE(std::filesystem::exists(folder / file));
  std::filesystem::remove_all(folder);
  EXPECT_EQ(run_ranks(2, {"/bin/sh", "-c", "exit 5"}), 5);
}

// What a rank of the next test runs: binds itself as every rank does, writes the processors that it may use, and stays until
// it is told to go.
TEST(Launcher, DISABLED_a_rank_that_writes_its_processors) {
  const char* folder = std::getenv("MESHWRIGHT_TEST_FOLDER");
  ASSERT_NE(folder, nullptr);
  bind_to_claimed_core();
  const auto at = std::filesystem::path(folder) / std::to_string(getpid());
  {
    std::ofstream file(at.string() + ".new");
    for (const Core& core : own_cores())
      for (const int cpu : core.cpus) file << cpu << ' ';
  }
  std::filesystem::rename(at.string() + ".new", at);
  for (int i = 0; i < 3000 && !std::filesystem::exists(std::filesystem::path(folder) / "go"); ++i) usleep(20'000);
}

// Runs of one rank beside each other, and one of as many ranks as there are cores. Whether a run gets cores depends on what
// else runs here; whoever has one shares it with nobody that has one.
TEST(Launcher, ranks_of_runs_beside_each_other_are_bound_to_different_cores_or_to_none) {
  const auto folder = std::filesystem::temp_directory_path() / ("meshwright-beside-" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  const WithEnvironment where("MESHWRIGHT_TEST_FOLDER", folder.c_str());
  const std::vector<std::string> rank{std::filesystem::read_symlink("/proc/self/exe").string(),
                                      "--gtest_also_run_disabled_tests", "--gtest_brief=1",
                                      "--gtest_filter=Launcher.DISABLED_a_rank_that_writes_its_processors"};
  const std::size_t cores = own_cores().size();
  const std::vector<int> ranks_of_run{1, 1, static_cast<int>(cores)};
  std::size_t expected = 0;
  std::vector<pid_t> runs;
  const auto written = [&] {
    std::vector<std::set<int>> all;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (entry.path().has_extension()) continue;
      std::ifstream file(entry.path());
      all.emplace_back(std::istream_iterator<int>(file), std::istream_iterator<int>());
    }
    return all;
  };
  for (const int ranks : ranks_of_run) {
    runs.push_back(fork());
    if (runs.back() == 0) _exit(run_ranks(ranks, rank));
    expected += static_cast<std::size_t>(ranks);
    for (int i = 0; i < 3000 && written().size() < expected; ++i) usleep(20'000);  // one after another
  }
  const std::vector<std::set<int>> processors = written();
  std::ofstream(folder / "go.new").close();
  std::filesystem::rename(folder / "go.new", folder / "go");
  for (const pid_t run : runs) {
    int status = 0;
    waitpid(run, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
  std::filesystem::remove_all(folder);

  EXPECT_EQ(processors.size(), expected);
  std::set<int> whole, taken;
  for (const Core& core : own_cores()) whole.insert(core.cpus.begin(), core.cpus.end());
  for (const std::set<int>& of_rank : processors) {
    EXPECT_FALSE(of_rank.empty());
    if (of_rank == whole) continue;  // bound to none
    for (const int cpu : of_rank) EXPECT_TRUE(taken.insert(cpu).second) << "two ranks are bound to processor " << cpu;
  }
}

TEST(Launcher, ranks_of_other_launchers_are_refused_and_Open_MPIs_are_not) {
  for (const char* variable : {"PMI_SIZE", "PMI_RANK", "MV2_COMM_WORLD_SIZE", "PMIX_RANK", "SLURM_STEP_NUM_TASKS"}) {
    const WithEnvironment foreign(variable, "2");
    try {
      refuse_foreign_launcher();
      ADD_FAILURE() << variable;
    } catch (const InputError& e) {
      EXPECT_THAT(e.what(), HasSubstr(variable));
    }
    const WithEnvironment size("OMPI_COMM_WORLD_SIZE", "2");
    EXPECT_NO_THROW(refuse_foreign_launcher());
  }
  const WithEnvironment one("SLURM_STEP_NUM_TASKS", "1");
  EXPECT_NO_THROW(refuse_foreign_launcher());
}

TEST(Launcher, a_word_that_mpirun_takes_for_a_separator_never_reaches_it) {
  EXPECT_THROW(mpirun_command(2, {}, {"/bin/meshwright", "--data", ":"}), std::logic_error);
  EXPECT_NO_THROW(mpirun_command(2, {}, {"/bin/meshwright", "--data=:", "./:"}));
}

TEST(Launcher, an_exit_code_above_128_is_a_signals_only_where_there_is_such_a_signal) {
  testing::internal::CaptureStderr();
  EXPECT_EQ(run_ranks(2, {"/bin/sh", "-c", "exit 200"}), 200);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), Not(HasSubstr("signal")));
  testing::internal::CaptureStderr();
  EXPECT_EQ(run_ranks(2, {"/bin/sh", "-c", "kill -9 $$"}), 137);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("signal 9 (Killed), or with this exit code"));
}

TEST(Launcher, ranks_read_nothing_of_this_processs_input) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  ASSERT_EQ(write(ends[1], "word\n", 5), 5);
  const int before = dup(STDIN_FILENO);
  dup2(ends[0], STDIN_FILENO);
  EXPECT_EQ(run_ranks(2, {"/bin/sh", "-c", "read x && exit 4; exit 0"}), 0);  // at the end of its input at once
  dup2(before, STDIN_FILENO);
  char text[8] = {};
  EXPECT_EQ(read(ends[0], text, sizeof text), 5);
  for (const int descriptor : {before, ends[0], ends[1]}) close(descriptor);
}

// As ranks are before they have joined the page; and such as no SIGTERM ends.
TEST(Launcher, an_interrupt_ends_ranks_that_are_on_no_page_soon_and_leaves_nothing_behind) {
  using Clock = std::chrono::steady_clock;
  for (const std::string ignored : {"", "--ignore-signal=TERM"}) {
    const auto folder = std::filesystem::temp_directory_path() / ("meshwright-ends-" + std::to_string(getpid()));
    std::filesystem::create_directories(folder / "tmp");
    const WithEnvironment temporary("TMPDIR", (folder / "tmp").c_str());
    const pid_t run = fork();
    if (run == 0)
      _exit(run_ranks(2, {"/bin/sh", "-c", "touch \"$1/$OMPI_COMM_WORLD_RANK\"; exec env $2 sleep 60", "sh",
                          folder.string(), ignored}));
    for (int i = 0; i < 3000 && !(std::filesystem::exists(folder / "0") && std::filesystem::exists(folder / "1")); ++i)
      usleep(20'000);
    kill(run, SIGINT);
    const auto begin = Clock::now();
    int status = 0;
    waitpid(run, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 128 + SIGINT) << status;
    EXPECT_LT(Clock::now() - begin, std::chrono::seconds(5)) << ignored;  // 0.6 s on an idle machine
    EXPECT_TRUE(std::filesystem::is_empty(folder / "tmp"));
    std::filesystem::remove_all(folder);
  }
}

TEST(Launcher, a_reader_that_closed_its_socket_ends_the_ranks) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  std::fflush(stdout);
  const int before = dup(STDOUT_FILENO);
  dup2(ends[0], STDOUT_FILENO);
  close(ends[0]);
  close(ends[1]);
  const int code = run_ranks(1, {"/bin/sleep", "60"});
  dup2(before, STDOUT_FILENO);
  close(before);
  EXPECT_EQ(code, 128 + SIGPIPE);
}

TEST(Launcher, without_a_temporary_folder_the_message_says_which) {
  const WithEnvironment temporary("TMPDIR", "/dev/null/nowhere");
  try {
    run_ranks(2, {"/bin/true"});
    FAIL();
  } catch (const InputError& e) {
    EXPECT_THAT(e.what(), AllOf(HasSubstr("/dev/null/nowhere"), HasSubstr("TMPDIR"), HasSubstr("Not a directory")));
  }
}

TEST(Launcher, own_command_is_the_running_executable_with_its_arguments) {
  const char* argv[] = {"some name", "run", "--json"};
  const auto command = own_command(3, argv);
  EXPECT_EQ(std::filesystem::path(command[0]).filename(), std::filesystem::read_symlink("/proc/self/exe").filename());
  EXPECT_THAT(std::vector(command.begin() + 1, command.end()), ElementsAre("run", "--json"));
}

}  // namespace
}  // namespace meshwright
