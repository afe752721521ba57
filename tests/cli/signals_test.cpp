// Signals, processes that die or stop, and streams that close, on the real binary with real ranks.
#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "tests/cli/binary.h"

namespace meshwright {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;
using testing::Not;

const std::string kTwoCores = TEST_DATA "/two_cores.json";
const std::vector<std::string> kLongRun{"run",        kSmall,    "--system", kTwoCores, "--plan",  "1x1x2",
                                        "--rehearse", "--steps", "1000000",  "--data",  "text.txt"};

// A little text, so that no test makes a tokenizer of all that is there.
std::string some_text() {
  std::string text;
  for (int i = 0; i < 4000; ++i)
    text += "the quick brown fox " + std::to_string(i * 7919 % 1000) + " jumps over the lazy dog\n";
  return text;
}

// Everything that is under way here has long ended by then, on the slowest machine.
constexpr auto kPatience = seconds(120);

// A process in a session and a folder of its own, whose files of MPI's lie in that folder, too.
class Started {
 public:
  Started(const TemporaryFolder& folder, const std::vector<std::string>& command,
          const std::map<std::string, std::string>& environment = {}, bool terminal = false)
      : folder_(folder.path()) {
    int ends[2], terminal_ends[2] = {-1, -1};
    folder.write("text.txt", some_text());
    if (pipe(ends) != 0) ADD_FAILURE() << "pipe";
    if (terminal && openpty(&terminal_ends[0], &terminal_ends[1], nullptr, nullptr, nullptr) != 0)
      ADD_FAILURE() << "openpty";
    process_ = fork();
    if (process_ == 0) {
      setsid();
      std::filesystem::current_path(folder_);
      for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
      setenv("MESHWRIGHT_CACHE", (folder_ / "cache").c_str(), 1);
      setenv("TMPDIR", folder_.c_str(), 1);
      setenv("OMPI_MCA_btl_vader_backing_directory", folder_.c_str(), 1);
      dup2(ends[1], STDOUT_FILENO);
      const int err = terminal ? terminal_ends[1] : open("stderr.txt", O_WRONLY | O_CREAT | O_TRUNC, 0600);
      dup2(err, STDERR_FILENO);
      for (const int descriptor : {ends[0], ends[1], err, terminal_ends[0]})
        if (descriptor > STDERR_FILENO) close(descriptor);
      std::vector<char*> argv;
      for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
      argv.push_back(nullptr);
      execvp(argv[0], argv.data());
      _exit(127);
    }
    close(ends[1]);
    if (terminal) close(terminal_ends[1]);
    out_ = ends[0];
    terminal_ = terminal_ends[0];
  }
  ~Started() {
    if (process_ > 0) {
      kill(-process_, SIGKILL);
      waitpid(process_, nullptr, 0);
    }
    close(out_);
    if (terminal_ >= 0) close(terminal_);
  }
  Started(const Started&) = delete;
  Started& operator=(const Started&) = delete;

  pid_t process() const { return process_; }
  std::string err() const { return terminal_ >= 0 ? terminal_text_ : text_of(folder_ / "stderr.txt"); }

  // Reads its stdout (or its terminal) until `text` is there; false: it ended or took too long.
  bool prints(const std::string& text) { return reads(out_, out_text_, text); }
  bool shows(const std::string& text) { return reads(terminal_, terminal_text_, text); }
  const std::string& out() const { return out_text_; }
  void close_output() { close(std::exchange(out_, -1)); }

  // The exit code, or 1000 + the signal that ended it; 2000: it did not end.
  int wait() {
    const auto give_up = Clock::now() + kPatience;
    int status = 0;
    while (waitpid(process_, &status, WNOHANG) == 0) {
      if (Clock::now() > give_up) return 2000;
      if (out_ >= 0) reads(out_, out_text_, "", milliseconds(10));
      if (terminal_ >= 0) reads(terminal_, terminal_text_, "", milliseconds(10));
      std::this_thread::sleep_for(milliseconds(5));
    }
    process_ = -1;
    if (out_ >= 0) reads(out_, out_text_, "\x01 never", milliseconds(200));
    if (terminal_ >= 0) reads(terminal_, terminal_text_, "\x01 never", milliseconds(200));
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }
  std::string everything() const { return "stdout: " + out_text_ + "\nstderr: " + err(); }

 private:
  static bool reads(int from, std::string& all, const std::string& until, Clock::duration patience = kPatience) {
    const auto give_up = Clock::now() + patience;
    while (until.empty() || all.find(until) == std::string::npos) {
      pollfd ready{from, POLLIN, 0};
      const auto left = std::chrono::duration_cast<milliseconds>(give_up - Clock::now()).count();
      if (left <= 0 || poll(&ready, 1, static_cast<int>(left)) <= 0) return false;
      char bytes[4096];
      const ssize_t n = read(from, bytes, sizeof bytes);
      if (n <= 0) return false;
      all.append(bytes, static_cast<std::size_t>(n));
    }
    return true;
  }

  std::filesystem::path folder_;
  pid_t process_ = -1;
  int out_ = -1, terminal_ = -1;
  std::string out_text_, terminal_text_;
};

std::vector<std::string> command(const std::vector<std::string>& arguments) {
  return with({MESHWRIGHT_BINARY}, arguments);
}

std::vector<pid_t> children_of(pid_t parent) {
  std::vector<pid_t> all;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const pid_t process = std::atoi(entry.path().filename().c_str());
    if (process == 0) continue;
    std::string line;
    std::getline(std::ifstream(entry.path() / "stat"), line);
    const std::size_t name_end = line.rfind(") ");
    if (name_end != std::string::npos && std::atoi(line.c_str() + name_end + 4) == parent) all.push_back(process);
  }
  return all;
}

// As in /proc/PID/stat: 'T' is stopped; '-': there is none.
char state_of(pid_t process) {
  std::string line;
  std::getline(std::ifstream("/proc/" + std::to_string(process) + "/stat"), line);
  const std::size_t name_end = line.rfind(") ");
  return name_end == std::string::npos ? '-' : line.at(name_end + 2);
}

// The process that is rank `r` of those below mpirun.
pid_t rank_below(pid_t mpirun, int r) {
  for (const pid_t process : children_of(mpirun)) {
    std::ifstream file("/proc/" + std::to_string(process) + "/environ", std::ios::binary);
    for (std::string variable; std::getline(file, variable, '\0');)
      if (variable == "OMPI_COMM_WORLD_RANK=" + std::to_string(r)) return process;
  }
  ADD_FAILURE() << "no rank " << r;
  return 0;
}
pid_t rank_of(pid_t launcher, int r) {
  const std::vector<pid_t> mpirun = children_of(launcher);
  if (mpirun.size() != 1) ADD_FAILURE() << mpirun.size() << " processes below the launcher";
  return mpirun.empty() ? 0 : rank_below(mpirun[0], r);
}

// Folders and shared memory of MPI's that were left.
std::vector<std::string> left_in(const TemporaryFolder& folder) {
  std::vector<std::string> left;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder.path())) {
    const std::string name = entry.path().filename().string();
    for (const char* of_mpi : {"ompi.", "vader", "mw"})
      if (name.starts_with(of_mpi)) left.push_back(entry.path().string());
  }
  return left;
}

// Processes of the session that `leader` began, and that live.
std::vector<pid_t> living_of_session(pid_t leader) {
  std::vector<pid_t> all;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const pid_t process = std::atoi(entry.path().filename().c_str());
    if (process != 0 && getsid(process) == leader && !testing::Matches(AnyOf('-', 'Z', 'X'))(state_of(process)))
      all.push_back(process);
  }
  return all;
}

TEST(Signals, ToTheLauncherAloneTheyEndTheRanksAndSayHowFarTheRunCame) {
  for (const auto& [signal, name] : {std::pair{SIGINT, "SIGINT"}, {SIGQUIT, "SIGQUIT"}, {SIGHUP, "SIGHUP"}}) {
    const TemporaryFolder folder;
    Started run(folder, command(kLongRun));
    ASSERT_TRUE(run.prints(" 1/1000000")) << run.everything();
    const pid_t rank = rank_of(run.process(), 1);
    kill(run.process(), signal);
    const auto begin = Clock::now();
    EXPECT_EQ(run.wait(), 128 + signal) << run.everything();
    EXPECT_LT(Clock::now() - begin, seconds(10));  // 0.1 s on an idle machine
    EXPECT_THAT(run.err(), AllOf(HasSubstr(std::string("ended by ") + name + " after "),
                                 HasSubstr("of 1000000 steps: loss "), Not(HasSubstr("mpirun"))));
    EXPECT_THAT(state_of(rank), AnyOf('-', 'Z', 'X')) << "a rank is left";
    EXPECT_THAT(left_in(folder), testing::IsEmpty());
  }
}

void interrupt_when(const std::string& when, const std::function<void(const Started&)>& wait) {
  const TemporaryFolder folder;
  Started run(folder, command(kLongRun));
  const pid_t leader = run.process();
  wait(run);
  kill(leader, SIGINT);
  const auto begin = Clock::now();
  // The signal itself where there is no launcher yet, which a shell calls 130, too.
  EXPECT_THAT(run.wait(), AnyOf(130, 1000 + SIGINT)) << when << ": " << run.everything();
  EXPECT_LT(Clock::now() - begin, seconds(6)) << when;  // 0.1 to 0.8 s on an idle machine
  for (int i = 0; i < 1000 && !living_of_session(leader).empty(); ++i) std::this_thread::sleep_for(milliseconds(10));
  EXPECT_THAT(living_of_session(leader), testing::IsEmpty()) << when;
  EXPECT_THAT(left_in(folder), testing::IsEmpty()) << when;
}

TEST(Signals, AnInterruptWhileRanksStartEndsThemSoonAndLeavesNothingBehind) {
  for (const int delay : {0, 100, 200, 300, 450, 600, 1000})
    interrupt_when(fmt::format("after {} ms", delay),
                   [&](const Started&) { std::this_thread::sleep_for(milliseconds(delay)); });
  // As soon as mpirun is there, and ranks are, and a little later.
  for (const auto& [ranks, later] :
       {std::pair{0, 0}, {0, 20}, {0, 40}, {0, 60}, {0, 80}, {0, 100}, {0, 120}, {1, 0}, {2, 0}, {2, 20}})
    interrupt_when(fmt::format("{} ms after {} ranks were there", later, ranks), [&](const Started& run) {
      const auto give_up = Clock::now() + kPatience;
      for (bool there = false; !there && Clock::now() < give_up;) {
        const std::vector<pid_t> mpirun = children_of(run.process());
        there = !mpirun.empty() && (ranks == 0 || static_cast<int>(children_of(mpirun[0]).size()) >= ranks);
      }
      std::this_thread::sleep_for(milliseconds(later));
    });
}

TEST(Signals, ASecondOneKillsAllAtOnceAndLeavesNothingBehind) {
  const TemporaryFolder folder;
  Started run(folder, command(kLongRun));
  ASSERT_TRUE(run.prints(" 1/1000000")) << run.everything();
  const pid_t rank = rank_of(run.process(), 0);
  kill(rank, SIGSTOP);
  kill(run.process(), SIGINT);
  kill(run.process(), SIGTERM);
  EXPECT_THAT(run.wait(), AnyOf(130, 128 + SIGTERM)) << run.everything();  // whichever was read first
  EXPECT_THAT(state_of(rank), AnyOf('-', 'Z', 'X')) << "a rank is left";
  EXPECT_THAT(left_in(folder), testing::IsEmpty());
}

TEST(Signals, ThatWereIgnoredBeforeAsUnderNohupAreIgnored) {
  const TemporaryFolder folder;
  Started run(folder, with({"env", "--ignore-signal=HUP,INT,QUIT,TSTP"}, command(kLongRun)));
  ASSERT_TRUE(run.prints(" 1/1000000")) << run.everything();
  for (const int signal : {SIGHUP, SIGINT, SIGQUIT, SIGTSTP}) kill(run.process(), signal);
  std::this_thread::sleep_for(seconds(1));  // in which they would have ended it
  EXPECT_NE(state_of(run.process()), 'T');
  kill(run.process(), SIGTERM);
  EXPECT_EQ(run.wait(), 128 + SIGTERM) << run.everything();
  EXPECT_THAT(run.err(), HasSubstr("ended by SIGTERM after "));
}

TEST(Signals, OfChildrenThatWereIgnoredBeforeStillTellThatTheRanksHaveEnded) {
  const TemporaryFolder folder;
  Started run(folder, with({"env", "--ignore-signal=CHLD", MESHWRIGHT_BINARY},
                           {"run", kSmall, "--system", kTwoCores, "--plan", "1x1x2", "--rehearse", "--steps", "1",
                            "--data", "text.txt"}));
  EXPECT_EQ(run.wait(), 0) << run.everything();
  EXPECT_THAT(left_in(folder), testing::IsEmpty());
}

TEST(Signals, TerminationOfTheWholeGroupLeavesNoFilesBehind) {
  const TemporaryFolder folder;
  Started run(folder, command(kLongRun));
  ASSERT_TRUE(run.prints(" 1/1000000")) << run.everything();
  kill(-run.process(), SIGTERM);
  EXPECT_EQ(run.wait(), 128 + SIGTERM) << run.everything();
  EXPECT_THAT(run.err(), AllOf(HasSubstr("ended by SIGTERM after "), Not(HasSubstr("mpirun"))));
  EXPECT_THAT(left_in(folder), testing::IsEmpty());
}

TEST(Signals, AStoppedLauncherStopsItsRanksAndAllGoOn) {
  const TemporaryFolder folder;
  Started run(folder, command(with(kLongRun, {"--hang-timeout", "2"})));
  ASSERT_TRUE(run.prints(" 1/1000000")) << run.everything();
  const pid_t rank = rank_of(run.process(), 0);
  const auto state = [&] { return state_of(rank); };
  kill(run.process(), SIGTSTP);
  for (int i = 0; i < 1000 && state() != 'T'; ++i) std::this_thread::sleep_for(milliseconds(10));
  EXPECT_EQ(state(), 'T');
  std::this_thread::sleep_for(seconds(3));  // longer than it may hang: time that is stopped does not count
  kill(run.process(), SIGCONT);
  for (int i = 0; i < 1000 && state() == 'T'; ++i) std::this_thread::sleep_for(milliseconds(10));
  EXPECT_TRUE(run.prints(" 2/1000000") && run.prints(" 3/1000000")) << run.everything();
  kill(run.process(), SIGINT);
  EXPECT_EQ(run.wait(), 130) << run.everything();
}

TEST(Ranks, OneThatIsKilledIsNamedWithSignalStepAndOperation) {
  const TemporaryFolder folder;
  Started run(folder, command(kLongRun));
  ASSERT_TRUE(run.prints(" 1/1000000")) << run.everything();
  kill(rank_of(run.process(), 1), SIGKILL);
  EXPECT_EQ(run.wait(), 128 + SIGKILL) << run.everything();
  EXPECT_THAT(run.err(), HasSubstr("rank 1 (dp 0, pp 0, tp 1) was killed by signal 9 (Killed) in step "));
}

TEST(Ranks, OneThatIsStoppedIsNamedAndTheRunEnds) {
  const TemporaryFolder folder;
  Started run(folder, command(with(kLongRun, {"--hang-timeout", "3"})));
  ASSERT_TRUE(run.prints(" 1/1000000")) << run.everything();
  kill(rank_of(run.process(), 1), SIGSTOP);
  EXPECT_EQ(run.wait(), 1) << run.everything();
  EXPECT_THAT(run.err(), AllOf(HasSubstr("no rank has finished an operation for 3 s (--hang-timeout)"),
                               HasSubstr("rank 1 (dp 0, pp 0, tp 1), process "),
                               HasSubstr("is stopped (by SIGSTOP, or a debugger) in step "),
                               HasSubstr("rank 0 (dp 0, pp 0, tp 0), process "), HasSubstr("waits in step ")));
}

TEST(Ranks, UnderTheUsersOwnMpirunAStoppedOneIsNamedToo) {
  const TemporaryFolder folder;
  Started mpirun(folder,
                 with({"mpirun", "--oversubscribe", "--bind-to", "none", "--mca", "pml", "ob1", "--mca", "btl",
                       "self,vader", "--mca", "btl_vader_single_copy_mechanism", "none", "-n", "2", MESHWRIGHT_BINARY},
                      with(kLongRun, {"--hang-timeout", "3"})),
                 {{"OMPI_ALLOW_RUN_AS_ROOT", "1"}, {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"}});
  ASSERT_TRUE(mpirun.prints(" 1/1000000")) << mpirun.everything();
  kill(rank_below(mpirun.process(), 0), SIGSTOP);
  EXPECT_EQ(mpirun.wait(), 1) << mpirun.everything();
  EXPECT_THAT(mpirun.err(), AllOf(HasSubstr("rank 0 (dp 0, pp 0, tp 0), process "), HasSubstr("is stopped"),
                                  HasSubstr("rank 1 (dp 0, pp 0, tp 1), process "), HasSubstr("waits in step ")));
}

TEST(Ranks, ALeftOverWorldSizeTrainsNoHalfPlan) {
  const TemporaryFolder folder;
  Started run(folder, command(kLongRun), {{"OMPI_COMM_WORLD_SIZE", "2"}, {"OMPI_ALLOW_RUN_AS_ROOT", "1"}});
  EXPECT_EQ(run.wait(), 2) << run.everything();
  EXPECT_THAT(run.err(), AllOf(HasSubstr("OMPI_COMM_WORLD_SIZE = 2"), HasSubstr("MPI says that there is 1")));
  EXPECT_EQ(run.out(), "");
}

TEST(Ranks, OfAnotherMpiAreRefused) {
  const TemporaryFolder folder;
  Started run(folder, command(kLongRun), {{"PMI_SIZE", "2"}, {"PMI_RANK", "0"}});
  EXPECT_EQ(run.wait(), 2) << run.everything();
  EXPECT_THAT(run.err(), AllOf(HasSubstr("PMI_SIZE = 2"), HasSubstr("Open MPI's mpirun")));
}

TEST(Streams, AReaderThatHasSeenEnoughEndsTheRunInSilence) {
  const TemporaryFolder folder;
  Started run(folder, command(with(kLongRun, {"--json"})));
  ASSERT_TRUE(run.prints("\"step\":1,")) << run.everything();
  run.close_output();
  EXPECT_EQ(run.wait(), 128 + SIGPIPE) << run.everything();
  EXPECT_THAT(run.err(), AllOf(Not(HasSubstr("mpirun")), Not(HasSubstr("SIGPIPE")), Not(HasSubstr("error"))));
}

TEST(Streams, StepsThatCantBeWrittenEndTheRunWithTheReason) {
  const TemporaryFolder folder;
  Started run(folder, with({"/bin/sh", "-c", "exec \"$@\" >/dev/full", "sh"}, command(kLongRun)));
  EXPECT_EQ(run.wait(), 1) << run.everything();
  EXPECT_THAT(run.err(), HasSubstr("No space left on device"));
}

TEST(Streams, ARunInAShellLoopLeavesTheLoopItsInput) {
  const TemporaryFolder folder;
  Started loop(folder, with({"/bin/sh", "-c",
                             "printf 'a\\nb\\n' | while read word; do \"$@\" >/dev/null || exit 9; echo $word; done",
                             "sh", MESHWRIGHT_BINARY},
                            {"run", kSmall, "--system", kTwoCores, "--plan", "1x1x2", "--rehearse", "--steps", "1",
                             "--data", "text.txt"}));
  EXPECT_EQ(loop.wait(), 0) << loop.everything();
  EXPECT_EQ(loop.out(), "a\nb\n");
}

TEST(Arguments, ThatLookLikeOptionsOrSeparatorsReachTheRanksAsTheyAre) {
  const TemporaryFolder folder;
  folder.write("-x.json", text_of(kSmall));
  folder.write(":", some_text());
  Started run(folder, command({"run", "--system", kTwoCores, "--plan", "1x1x2", "--rehearse", "--steps", "1", "--data",
                               ":", "--", "-x.json"}));
  EXPECT_EQ(run.wait(), 0) << run.everything();
  EXPECT_THAT(run.out(), HasSubstr("All counts are equal"));
}

TEST(Search, CtrlCEndsItWithWhatItFoundWhichIsKeptButAnswersNothing) {
  const TemporaryFolder folder;
  const std::vector<std::string> search{"search", kPublished, "--system", "v4:4x4x8"};
  Started run(folder, command(search), {}, true);
  ASSERT_TRUE(run.shows("best ")) << run.everything();  // the progress line: a plan was found
  kill(run.process(), SIGINT);
  const auto begin = Clock::now();
  EXPECT_EQ(run.wait(), 130) << run.everything();
  EXPECT_LT(Clock::now() - begin, seconds(10));
  EXPECT_THAT(run.err(), AllOf(HasSubstr("interrupted after "), HasSubstr(" plans"), HasSubstr("stored in ")));
  EXPECT_THAT(run.out(), HasSubstr("v4:4x4x8"));

  // --plan best searches anew, and says so where that search is ended, too.
  Started simulate(folder, command({"simulate", kPublished, "--system", "v4:4x4x8", "--plan", "best"}), {}, true);
  ASSERT_TRUE(simulate.shows("searching first")) << simulate.everything();
  ASSERT_TRUE(simulate.shows("best ")) << simulate.everything();
  kill(simulate.process(), SIGINT);
  EXPECT_EQ(simulate.wait(), 130) << simulate.everything();
  EXPECT_EQ(simulate.out(), "");
}

}  // namespace
}  // namespace meshwright
