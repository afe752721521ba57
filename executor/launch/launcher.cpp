#include "executor/launch/launcher.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <climits>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <map>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>

#include "executor/launch/heartbeat.h"
#include "executor/launch/output.h"
#include "model/input/diagnostics.h"
#include "model/program/check.h"

namespace meshwright {
namespace {

// OpenMPI's shared-memory transport maps a 4 MiB segment a rank, and some more for each pair, from /dev/shm,
// which containers often keep at 64 MiB.
constexpr std::uint64_t kSharedMemoryOfRank = std::uint64_t{8} << 20;
constexpr const char* kSharedMemoryVariable = "OMPI_MCA_btl_vader_backing_directory";

bool shared_memory_is_enough(int ranks) {
  struct statvfs fs;
  return access("/dev/shm", W_OK) == 0 && statvfs("/dev/shm", &fs) == 0 &&
         static_cast<std::uint64_t>(fs.f_bavail) * fs.f_frsize >= kSharedMemoryOfRank * ranks;
}

// Whether the kernel lets processes copy from each other (some containers forbid the system call).
bool may_copy_between_processes() {
  char from = 1, to = 0;
  iovec local{&to, 1}, remote{&from, 1};
  return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == 1;
}

bool is_on_path(const std::string& program) {
  const char* path = std::getenv("PATH");
  std::string_view rest = path ? path : "/usr/local/bin:/usr/bin:/bin";
  while (true) {
    const std::size_t colon = rest.find(':');
    const std::string folder(rest.substr(0, colon));
    if (access(((folder.empty() ? "." : folder) + "/" + program).c_str(), X_OK) == 0) return true;
    if (colon == std::string_view::npos) return false;
    rest.remove_prefix(colon + 1);
  }
}

}  // namespace

bool is_started_rank() { return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr; }

int started_ranks() {
  const char* size = std::getenv("OMPI_COMM_WORLD_SIZE");
  return size ? std::atoi(size) : 1;
}

void refuse_foreign_launcher() {
  if (is_started_rank()) return;
  for (const char* variable : {"PMI_SIZE", "PMI_RANK", "MV2_COMM_WORLD_SIZE", "PMIX_RANK", "SLURM_STEP_NUM_TASKS"}) {
    const char* value = std::getenv(variable);
    if (!value || (variable == std::string_view("SLURM_STEP_NUM_TASKS") && std::atoi(value) <= 1)) continue;
    throw InputError(Diagnostic{
        .source = "environment",
        .path = variable,
        .value = value,
        .allowed = "set by no other launcher than Open MPI's mpirun, which alone starts ranks that find each other",
        .hint = "leave the launcher out: the ranks are started for you; if there is none, unset it"});
  }
}

void expect_ranks(int world, int needed, const std::string& plan) {
  if (world == needed) return;
  throw InputError(Diagnostic{
      .source = "mpirun",
      .path = "-n",
      .value = std::to_string(world),
      .allowed = std::to_string(needed) + ", the ranks of the plan " + plan,
      .hint = "use mpirun -n " + std::to_string(needed) + ", or leave mpirun out: the ranks are then started for you"});
}

std::vector<std::string> mpirun_command(int ranks, const std::vector<Core>& cores,
                                        const std::vector<std::string>& command) {
  check(std::ranges::find(command, ":") == command.end(), "launcher: mpirun takes a lone \":\" for its own");
  std::vector<std::string> line{"mpirun", "--quiet", "-n", std::to_string(ranks), "-x", "OMP_NUM_THREADS=1"};
  const auto add = [&](std::initializer_list<const char*> words) {
    line.insert(line.end(), words.begin(), words.end());
  };
  if (geteuid() == 0) add({"--allow-run-as-root"});  // or mpirun refuses
  // Only this machine's shared memory is used: without this, absent network hardware is searched for and
  // warned about.
  add({"--mca", "pml", "ob1", "--mca", "btl", "self,vader"});
  if (!may_copy_between_processes()) add({"--mca", "btl_vader_single_copy_mechanism", "none"});
  // Ranks bind themselves (bind_to_claimed_core): mpirun would give the first cores to every run.
  add({"--oversubscribe", "--bind-to", "none"});
  if (static_cast<int>(cores.size()) == ranks) {
    line.insert(line.end(), {"-x", std::string(kCoresVariable) + "=" + cores_text(cores)});
    add({"--mca", "mpi_yield_when_idle", "0"});
  } else {
    add({"--mca", "mpi_yield_when_idle", "1"});
  }
  line.insert(line.end(), command.begin(), command.end());
  return line;
}

namespace {

// Signals that end the ranks, and those that the loop below must hear of besides.
constexpr std::array kEnding{SIGINT, SIGTERM, SIGQUIT, SIGHUP};

bool is_ignored(int signal) {
  struct sigaction now {};
  return sigaction(signal, nullptr, &now) == 0 && now.sa_handler == SIG_IGN;
}

// Turns signals into something to read, for its lifetime: not those that are ignored, as `nohup` and a shell's `&` have it,
// which would be read all the same. SIGPIPE is ignored meanwhile, as a write then says so itself; SIGCHLD is not, or the
// kernel would keep to itself how a child ended.
class SignalReader {
 public:
  SignalReader() {
    struct sigaction ignore {
    }, report{};
    ignore.sa_handler = SIG_IGN;
    report.sa_handler = SIG_DFL;
    sigaction(SIGPIPE, &ignore, &pipe_before_);
    sigaction(SIGCHLD, &report, &child_before_);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    for (const int signal : kEnding)
      if (!is_ignored(signal)) sigaddset(&set, signal);
    if (!is_ignored(SIGTSTP)) sigaddset(&set, SIGTSTP);
    sigprocmask(SIG_BLOCK, &set, &mask_before_);
    descriptor_ = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    if (descriptor_ < 0) throw std::system_error(errno, std::generic_category(), "signalfd");
  }
  ~SignalReader() {
    close(descriptor_);
    restore();
  }
  SignalReader(const SignalReader&) = delete;
  SignalReader& operator=(const SignalReader&) = delete;

  int descriptor() const { return descriptor_; }
  int next() const {  // 0: there is none
    signalfd_siginfo info;
    return read(descriptor_, &info, sizeof info) == sizeof info ? static_cast<int>(info.ssi_signo) : 0;
  }
  void restore() const {  // as it was: in the child, too
    sigaction(SIGPIPE, &pipe_before_, nullptr);
    sigaction(SIGCHLD, &child_before_, nullptr);
    sigprocmask(SIG_SETMASK, &mask_before_, nullptr);
  }

 private:
  int descriptor_ = -1;
  sigset_t mask_before_{};
  struct sigaction pipe_before_ {
  }, child_before_{};
};

// One of mpirun's streams, copied to one of ours. mpirun itself would crash where the reader has gone, and lose without
// a word what can't be written.
class Output {
 public:
  Output(int to, bool must_be_written) : to_(to), must_be_written_(must_be_written) {
    if (pipe2(ends_.data(), O_CLOEXEC) != 0) throw std::system_error(errno, std::generic_category(), "pipe");
    fcntl(ends_[0], F_SETFL, O_NONBLOCK);
  }
  ~Output() {
    close(ends_[0]);
    close_writer();
  }
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  int writer() const { return ends_[1]; }
  void close_writer() {
    if (ends_[1] >= 0) close(std::exchange(ends_[1], -1));
  }

  // Reads no more than has been written, so that nobody's memory fills.
  void wait_for(std::vector<pollfd>& all) const {
    if (open_ && waiting() == 0) all.push_back({ends_[0], POLLIN, 0});
    if (!discards_) all.push_back({to_, static_cast<short>(waiting() > 0 ? POLLOUT : 0), 0});
  }
  void handle(const pollfd& ready) {
    if (ready.revents == 0) return;
    if (ready.fd == ends_[0]) receive();
    if (ready.fd != to_ || discards_) return;
    if (ready.revents & POLLNVAL)
      fail(EBADF);
    else if (waiting() > 0)
      pass_on();
    else if (ready.revents & (POLLERR | POLLHUP))  // HUP alone: of a socket, or a terminal
      fail(EPIPE);
  }

  // Whether nothing is left to be copied, now that all writers have ended.
  bool is_empty() {
    if (open_ && waiting() == 0) receive();
    return waiting() == 0;
  }
  // Why it can't be written (errno). A stream that need not be written fails only where its reader has gone.
  std::optional<int> failure() const { return failure_; }

 private:
  std::size_t waiting() const { return size_ - passed_on_; }
  void receive() {
    const ssize_t n = read(ends_[0], buffer_.data(), buffer_.size());
    if (n == 0) open_ = false;
    if (n <= 0) return;
    size_ = static_cast<std::size_t>(n);
    passed_on_ = discards_ ? size_ : 0;
  }
  void pass_on() {
    const ssize_t n = write(to_, buffer_.data() + passed_on_, waiting());
    if (n >= 0)
      passed_on_ += static_cast<std::size_t>(n);
    else if (errno != EINTR && errno != EAGAIN)
      fail(errno);
  }
  void fail(int error) {  // what still comes is read, or mpirun could not end
    if (must_be_written_ || error == EPIPE) failure_ = error;
    discards_ = true;
    passed_on_ = size_;
  }

  int to_;
  bool must_be_written_, open_ = true, discards_ = false;
  std::array<int, 2> ends_{-1, -1};
  // At most what a pipe that is ready takes at once: a write never blocks, so that signals are always heard.
  std::array<char, PIPE_BUF> buffer_{};
  std::size_t size_ = 0, passed_on_ = 0;
  std::optional<int> failure_;
};

// A new folder of this process's own, which is removed with all that is in it. Its name is short: there may be sockets
// below, whose paths have no more than 107 characters.
class OwnFolder {
 public:
  explicit OwnFolder(const std::filesystem::path& base)
      : path_((base / fmt::format("mw{}.XXXXXX", getpid())).string()) {
    if (mkdtemp(path_.data())) return;
    throw InputError(Diagnostic{.source = "temporary folder",
                                .path = "",
                                .value = base.string(),
                                .allowed = std::string("one in which files can be made: ") + std::strerror(errno),
                                .hint = "set TMPDIR to another"});
  }
  ~OwnFolder() {
    std::error_code gone;  // whatever is left is no reason to fail
    std::filesystem::remove_all(path_, gone);
  }
  OwnFolder(const OwnFolder&) = delete;
  OwnFolder& operator=(const OwnFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::filesystem::path temporary_folder() {
  std::error_code none;
  const std::filesystem::path folder = std::filesystem::temp_directory_path(none);
  if (!none) return folder;
  const char* given = std::getenv("TMPDIR");
  return given ? given : "/tmp";  // whose fault is named where it is used
}

// Where Open MPI keeps the memory that ranks share.
std::filesystem::path shared_memory_folder(int ranks) {
  if (const char* given = std::getenv(kSharedMemoryVariable)) return given;
  return shared_memory_is_enough(ranks) ? "/dev/shm" : temporary_folder();
}

// mpirun and the ranks below it, and ending them in steps: each gives the one before it time.
class Ranks {
 public:
  explicit Ranks(pid_t mpirun) : mpirun_(mpirun) {}

  // Ranks that are there are ended by SIGTERM while mpirun is stopped: it finds them all dead, and ends at once. If it saw
  // one die, or were told to end, it would wait a second before it ends the others. It may sleep that second all the same,
  // so it is woken by a signal that it takes for the death of a child. Where it has started none yet, it is told to end.
  // If it takes long, all are killed: what it leaves behind lies in folders of this run's own.
  void end() {
    if (stage_ == Stage::kRunning) proceed();
  }
  void kill_now() {
    stage_ = Stage::kAllKilled;
    proceed();
  }
  void proceed() {
    switch (stage_) {
      case Stage::kRunning:
        kill(mpirun_, SIGSTOP);
        if (living_ranks().empty()) {
          kill(mpirun_, SIGTERM);
          kill(mpirun_, SIGCONT);
          return next(Stage::kAllKilled, 0.7);
        }
        signal_ranks(SIGTERM);
        signal_ranks(SIGCONT);
        give_up_waiting_ = Clock::now() + std::chrono::milliseconds(500);
        return next(Stage::kRanksEnd, 0.01);
      case Stage::kRanksEnd:
        if (!living_ranks().empty() && Clock::now() < give_up_waiting_) return next(Stage::kRanksEnd, 0.01);
        signal_ranks(SIGKILL);
        kill(mpirun_, SIGCONT);
        give_up_waiting_ = Clock::now() + std::chrono::milliseconds(700);
        return next(Stage::kMpirunEnds, 0.02);
      case Stage::kMpirunEnds:
        signal_ranks(SIGKILL);  // those that it was about to start
        kill(mpirun_, SIGCHLD);
        return next(Clock::now() < give_up_waiting_ ? Stage::kMpirunEnds : Stage::kAllKilled, 0.02);
      case Stage::kAllKilled:
        kill(mpirun_, SIGSTOP);  // or it would start another meanwhile
        signal_ranks(SIGKILL);
        kill(mpirun_, SIGKILL);
        return next(Stage::kAllKilled, 1);
    }
  }
  // Until proceed() is due, for poll(): -1 is never.
  int milliseconds_left() const {
    if (stage_ == Stage::kRunning) return -1;
    using std::chrono::milliseconds;
    return std::max(0, static_cast<int>(std::chrono::ceil<milliseconds>(due_ - Clock::now()).count()));
  }

  // Stops all with this process, which goes on when it is told to.
  void stop() {
    kill(mpirun_, SIGSTOP);
    signal_ranks(SIGSTOP);
    raise(SIGSTOP);
    signal_ranks(SIGCONT);
    kill(mpirun_, SIGCONT);
  }

 private:
  using Clock = std::chrono::steady_clock;
  enum class Stage { kRunning, kRanksEnd, kMpirunEnds, kAllKilled };

  void next(Stage stage, double seconds) {
    stage_ = stage;
    due_ = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  }
  // The children of mpirun: it starts nothing else.
  std::vector<pid_t> living_ranks() const {
    std::vector<pid_t> all;
    std::error_code gone;
    for (std::filesystem::directory_iterator at("/proc", gone), end; !gone && at != end; at.increment(gone)) {
      const pid_t process = std::atoi(at->path().filename().c_str());
      if (process == 0) continue;
      std::string line;
      std::getline(std::ifstream(at->path() / "stat"), line);
      const std::size_t name_end = line.rfind(") ");  // "PID (NAME) STATE PARENT ..."
      if (name_end == std::string::npos || name_end + 4 >= line.size()) continue;
      const char state = line[name_end + 2];
      if (state != 'Z' && state != 'X' && std::atoi(line.c_str() + name_end + 4) == mpirun_) all.push_back(process);
    }
    return all;
  }
  void signal_ranks(int signal) const {
    for (const pid_t process : living_ranks()) kill(process, signal);
  }

  const pid_t mpirun_;
  Stage stage_ = Stage::kRunning;
  Clock::time_point due_, give_up_waiting_;
};

// Says who was killed, as mpirun's code 128 + n is a signal's number or a rank's own exit code.
void name_killed_rank(const HeartbeatPage& page, int signal) {
  std::vector<int> killed, told;
  bool joined = false;
  for (int r = 0; r < page.ranks(); ++r) {
    const RankBeat& beat = page.rank(r);
    if (beat.process == 0) continue;
    joined = true;
    if (beat.ending == 1 + 128 + signal) return;  // its own code, and its own words
    if (beat.ending == 0) killed.push_back(r);
    if (beat.ending == -signal) told.push_back(r);
  }
  // mpirun ends all others by SIGTERM: they have marked it.
  if (killed.empty() && !told.empty())
    killed = {*std::ranges::min_element(told, {}, [&](int r) { return page.rank(r).ended_as.load(); })};
  const char* name = strsignal(signal);
  for (const int r : killed)
    fmt::print(stderr, "{} was killed by signal {} ({}) in {}\n", page.name(r), signal, name, page.doing(r));
  if (killed.empty())
    fmt::print(stderr, "a rank ended with {}: by signal {} ({}){}\n", 128 + signal, signal, name,
               joined ? "" : ", or with this exit code");
}

// What is known of a run that a signal ends.
void say_so_far(const HeartbeatPage& page, int signal) {
  const RunSoFar run = page.run();
  const char* name = sigabbrev_np(signal);
  const std::string by = fmt::format("ended by SIG{}", name ? name : std::to_string(signal));
  if (run.done > 0)
    fmt::print(stderr, "{} after {} of {} steps: loss {:.4f} -> {:.4f}\n", by, run.done, run.steps, run.first_loss,
               run.last_loss);
  else if (run.steps > 0)
    fmt::print(stderr, "{} before the first of {} steps was done\n", by, run.steps);
  else
    fmt::print(stderr, "{}\n", by);
}

// This process's environment with these variables set, for execvpe.
std::vector<std::string> environment_with(const std::map<std::string, std::string>& variables) {
  std::vector<std::string> all;
  for (char** at = environ; *at; ++at)
    if (const std::string_view line(*at); !variables.contains(std::string(line.substr(0, line.find('=')))))
      all.emplace_back(line);
  for (const auto& [name, value] : variables) all.push_back(name + "=" + value);
  return all;
}

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> all;
  for (std::string& word : words) all.push_back(word.data());
  all.push_back(nullptr);
  return all;
}

}  // namespace

int run_ranks(int ranks, const std::vector<std::string>& command) {
  if (!is_on_path("mpirun")) {
    throw InputError(
        Diagnostic{.source = "mpirun",
                   .path = "",
                   .value = "",
                   .allowed = "installed and on PATH, to start the plan's " + std::to_string(ranks) + " ranks",
                   .hint = "on Debian: apt-get install openmpi-bin"});
  }
  const std::vector<Core> own = own_cores();
  const int available = available_cores();
  // Under a quota the cores are shared with containers whose claims can't be seen: the kernel finds those that are idle.
  const bool bind = ranks <= available && available == static_cast<int>(own.size());
  const CoreClaim claim(own, bind ? ranks : 0);
  if (bind && claim.cores().empty()) {
    std::fprintf(
        stderr,
        "warning: other runs hold cores of this machine, and fewer than %d of its %d are free: these ranks are "
        "not bound to cores, and times will be longer\n",
        ranks, available);
  }
  const HeartbeatPage page(ranks);
  std::vector<std::string> line = mpirun_command(ranks, claim.cores(), command);
  // Of this run alone, so that nothing is left of it, whatever it ends by.
  const OwnFolder session(temporary_folder()), shared_memory(shared_memory_folder(ranks));
  std::vector<std::string> variables = environment_with({{kHeartbeatVariable, page.path()},
                                                         {"OMPI_MCA_orte_tmpdir_base", session.path()},
                                                         {kSharedMemoryVariable, shared_memory.path()}});
  const std::vector<char*> argv = pointers(line), envp = pointers(variables);

  std::fflush(nullptr);
  const SignalReader signals;
  Output out(STDOUT_FILENO, true), err(STDERR_FILENO, false);
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child < 0) throw std::system_error(errno, std::generic_category(), "fork");
  if (child == 0) {
    setpgid(0, 0);  // signals of the terminal come to us alone, and once
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    signals.restore();
    if (getppid() != parent) _exit(128 + SIGTERM);  // it died before it could be watched
    const int nothing = open("/dev/null", O_RDONLY);
    if (nothing < 0 || dup2(nothing, STDIN_FILENO) < 0 || dup2(out.writer(), STDOUT_FILENO) < 0 ||
        dup2(err.writer(), STDERR_FILENO) < 0)
      _exit(127);
    execvpe(argv[0], argv.data(), envp.data());
    _exit(127);
  }
  out.close_writer();
  err.close_writer();

  Ranks all(child);
  int asked = 0;  // by which signal
  std::optional<int> status, unwritten;
  const auto lost = [&](Output& stream) {
    if (!stream.failure() || unwritten) return;
    unwritten = stream.failure();
    all.end();
  };
  while (!status || !out.is_empty() || !err.is_empty()) {
    std::vector<pollfd> ready{{signals.descriptor(), POLLIN, 0}};
    for (const Output* stream : {&out, &err}) stream->wait_for(ready);
    constexpr int kAgainAfterMs = 100;
    if (poll(ready.data(), ready.size(), status ? kAgainAfterMs : all.milliseconds_left()) < 0 && errno != EINTR)
      throw std::system_error(errno, std::generic_category(), "poll");
    if (!status && all.milliseconds_left() == 0) all.proceed();
    while (const int signal = signals.next()) {
      if (signal == SIGCHLD) {
        int how = 0;
        const pid_t ended = waitpid(child, &how, WNOHANG);
        if (ended == child) status = how;
        if (ended < 0 && errno == ECHILD) status = W_EXITCODE(1, 0);  // somebody else was told how
      } else if (signal == SIGTSTP) {
        all.stop();
      } else if (std::exchange(asked, signal) == 0) {
        all.end();
      } else {
        all.kill_now();
      }
    }
    if (asked && status) break;  // whoever reads does not hear the rest
    for (const pollfd& one : ready) {
      out.handle(one);
      err.handle(one);
    }
    lost(out);
    lost(err);
    if (unwritten && status) break;
  }
  if (asked) {
    say_so_far(page, asked);
    return 128 + asked;
  }
  if (unwritten == EPIPE) return 128 + SIGPIPE;
  if (unwritten) throw OutputError(*unwritten);
  if (WIFSIGNALED(*status)) {
    std::fprintf(stderr, "mpirun was killed by signal %d (%s)\n", WTERMSIG(*status), strsignal(WTERMSIG(*status)));
    return 128 + WTERMSIG(*status);
  }
  const int code = WEXITSTATUS(*status);
  if (code > 128 && code - 128 <= SIGRTMAX && !page.has_report()) name_killed_rank(page, code - 128);
  return code;
}

std::vector<std::string> own_command(int argc, const char* const* argv) {
  std::vector<std::string> command{std::filesystem::read_symlink("/proc/self/exe").string()};
  command.insert(command.end(), argv + 1, argv + argc);
  return command;
}

}  // namespace meshwright
