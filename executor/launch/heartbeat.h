// What every rank of this machine is doing, in a page of memory that they share with the process that started them: so
// that a rank that is killed, or stopped, is named by those that are left, with its step and operation.
#pragma once

#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "model/program/program.h"

namespace meshwright {

// What a rank is at. While it prepares, reports or ends it may take as long as it likes (a text is tokenized, a terminal
// is held); in a step, something must be finished from time to time.
enum class Activity : std::uint8_t {
  kStarting,
  kPreparing,
  kReadingData,
  kBeginOfStep,
  kOperation,
  kEndOfStep,
  kReporting,
  kEnding
};

// One rank's part of the page. Written by that rank alone, read by all.
struct alignas(64) RankBeat {
  std::atomic<std::int32_t> process{0};      // 0: it has not joined
  std::atomic<std::int32_t> ending{0};       // 0: none yet; 1 + the exit code; - the signal that asked it to end
  std::atomic<std::uint32_t> ended_as{0};    // 1: the first of all ranks that ended, ...
  std::atomic<std::int64_t> step{0};         // from 0
  std::atomic<std::uint64_t> doing{0};       // activity and operation, packed
  std::atomic<std::uint64_t> operations{0};  // begun
  std::atomic<std::uint64_t> blocks{0};      // finished blocks of kernels and messages, copied here by the watchdog

  void now(Activity activity);
  // An operation begins; so the one before it has ended.
  void begins(const Slot& slot, int layer, const Op& op);
  // Signals and exit codes that this rank ends by; the first one counts. Safe in a signal handler.
  void ends(std::int32_t ending);
  void exits(int code) { ends(code + 1); }
};

// This process's beat. Without a page nobody sees it.
RankBeat& own_beat();

// How far a run is, for whoever ends it: written by rank 0.
struct RunSoFar {
  std::int64_t done = 0, steps = 0;  // steps
  double first_loss = 0, last_loss = 0;
};

// A mapping of the page. It has no name in any file system, so that nothing is left behind, and is reached through
// path() by other processes of this user for as long as the one that made it lives.
class HeartbeatPage {
 public:
  explicit HeartbeatPage(int ranks);  // a new one, which this process owns
  // The one at `path`; nullopt if there is none for so many ranks.
  static std::optional<HeartbeatPage> open(const std::string& path, int ranks);
  ~HeartbeatPage();
  HeartbeatPage(HeartbeatPage&& other) noexcept;
  HeartbeatPage& operator=(HeartbeatPage&&) = delete;

  const std::string& path() const { return path_; }
  int ranks() const;
  RankBeat& rank(int r) const;

  // From now on own_beat() is rank r's, and this process's SIGTERM is marked there. Lasts until the page is destroyed.
  void join(int r);

  void set_mesh(const MeshShape& mesh);
  void set_run(const RunSoFar& run);
  RunSoFar run() const;

  // "rank 3 (dp 0, pp 1, tp 1)": coordinates where the mesh is known and has more than one rank.
  std::string name(int r) const;
  // "step 12, F0 L1: all-gather over tp", steps from 1; "preparing".
  std::string doing(int r) const;
  bool is_stopped(int r) const;  // its process is there and stopped: SIGSTOP, or a debugger

  // Who reports a hang: true for the first that asks.
  bool claim_report(int r);
  bool has_report() const;

 private:
  struct Memory;
  HeartbeatPage(int descriptor, Memory* memory, std::size_t bytes, std::string path)
      : descriptor_(descriptor), memory_(memory), bytes_(bytes), path_(std::move(path)) {}

  int descriptor_;
  Memory* memory_;
  std::size_t bytes_;
  std::string path_;
  bool joined_ = false;
};

// A thread of every rank that looks at the page. When no rank of this machine has finished an operation or a kernel's
// block for `timeout` seconds, though all are in a step or one is stopped, the first that sees it says on stderr which
// rank is to blame and what the others wait for, and exits with 1; mpirun then ends the rest. Time in which this process
// itself is stopped does not count. timeout 0: never.
class Watchdog {
 public:
  Watchdog(HeartbeatPage& page, int rank, double timeout_s);

 private:
  std::jthread thread_;
};

// What is said of a hang: who is to blame, and what every rank is at.
std::string hang_report(const HeartbeatPage& page, double seconds);

}  // namespace meshwright
