#include "executor/launch/launcher.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <initializer_list>
#include <optional>
#include <string_view>
#include <system_error>

#include "executor/launch/output.h"
#include "model/input/diagnostics.h"

namespace meshwright {
namespace {

// OpenMPI's shared-memory transport maps a 4 MiB segment a rank, and some more for each pair, from /dev/shm,
// which containers often keep at 64 MiB.
constexpr std::uint64_t kSharedMemoryOfRank = std::uint64_t{8} << 20;

bool shared_memory_is_enough(int ranks) {
  struct statvfs fs;
  return statvfs("/dev/shm", &fs) == 0 &&
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

// Ignores a signal for its lifetime: Ctrl-C goes to mpirun, which stops the ranks and reports through its
// exit code.
class IgnoreSignal {
 public:
  explicit IgnoreSignal(int signal) : signal_(signal) {
    struct sigaction ignore {};
    ignore.sa_handler = SIG_IGN;
    sigaction(signal, &ignore, &before_);
  }
  ~IgnoreSignal() { sigaction(signal_, &before_, nullptr); }
  IgnoreSignal(const IgnoreSignal&) = delete;
  IgnoreSignal& operator=(const IgnoreSignal&) = delete;

 private:
  int signal_;
  struct sigaction before_ {};
};

}  // namespace

bool is_started_rank() { return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr; }

int started_ranks() {
  const char* size = std::getenv("OMPI_COMM_WORLD_SIZE");
  return size ? std::atoi(size) : 1;
}

void expect_started_ranks(int needed, const std::string& plan) {
  assert(is_started_rank());
  if (started_ranks() == needed) return;
  throw InputError(Diagnostic{
      .source = "mpirun",
      .path = "-n",
      .value = std::to_string(started_ranks()),
      .allowed = std::to_string(needed) + ", the ranks of the plan " + plan,
      .hint = "use mpirun -n " + std::to_string(needed) + ", or leave mpirun out: the ranks are then started for you"});
}

std::vector<std::string> mpirun_command(int ranks, const std::vector<Core>& cores,
                                        const std::vector<std::string>& command) {
  std::vector<std::string> line{"mpirun", "--quiet", "-n", std::to_string(ranks), "-x", "OMP_NUM_THREADS=1"};
  const auto add = [&](std::initializer_list<const char*> words) {
    line.insert(line.end(), words.begin(), words.end());
  };
  if (geteuid() == 0) add({"--allow-run-as-root"});  // or mpirun refuses
  // Only this machine's shared memory is used: without this, absent network hardware is searched for and
  // warned about.
  add({"--mca", "pml", "ob1", "--mca", "btl", "self,vader"});
  if (!may_copy_between_processes()) add({"--mca", "btl_vader_single_copy_mechanism", "none"});
  if (!shared_memory_is_enough(ranks)) {
    line.insert(line.end(), {"--mca", "btl_vader_backing_directory", std::filesystem::temp_directory_path().string()});
  }
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
  std::vector<std::string> line = mpirun_command(ranks, claim.cores(), command);
  std::vector<char*> argv;
  for (std::string& word : line) argv.push_back(word.data());
  argv.push_back(nullptr);

  std::fflush(nullptr);
  int output[2];  // mpirun drops what it can't write, so it writes to us
  if (pipe2(output, O_CLOEXEC) != 0) throw std::system_error(errno, std::generic_category(), "pipe");
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child < 0) throw std::system_error(errno, std::generic_category(), "fork");
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(128 + SIGTERM);  // it died before it could be watched
    dup2(output[1], STDOUT_FILENO);
    execvp(argv[0], argv.data());
    _exit(127);
  }
  const IgnoreSignal interrupt(SIGINT), quit(SIGQUIT);
  close(output[1]);
  const std::optional<OutputError> lost = relay_output(output[0], [child] { kill(child, SIGTERM); });
  close(output[0]);
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) throw std::system_error(errno, std::generic_category(), "waitpid");
  }
  if (lost) throw *lost;
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (code > 128) {
    std::fprintf(stderr, "a rank, or mpirun, was ended by signal %d (%s)\n", code - 128, strsignal(code - 128));
  }
  return code;
}

std::vector<std::string> own_command(int argc, const char* const* argv) {
  std::vector<std::string> command{std::filesystem::read_symlink("/proc/self/exe").string()};
  command.insert(command.end(), argv + 1, argv + argc);
  return command;
}

}  // namespace meshwright
