#include "executor/launch/heartbeat.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <fstream>
#include <mutex>
#include <system_error>
#include <utility>

#include "executor/kernels/progress.h"
#include "model/program/check.h"
#include "model/program/op.h"
#include "model/program/slot_name.h"

namespace meshwright {
namespace {

// The fields of RankBeat::doing. `detail`: a collective's kind and group, or a message's direction.
struct Doing {
  Activity activity = Activity::kStarting;
  Action action = Action::kBegin;
  OpKind op = 0;
  std::uint8_t detail = 0;
  std::int16_t microbatch = -1, layer = -1;
};

constexpr int kBitsOfByte = 8;
std::uint64_t pack(const Doing& d) {
  std::uint64_t word = 0;
  for (const std::uint64_t part :
       {std::uint64_t{static_cast<std::uint16_t>(d.layer)}, std::uint64_t{static_cast<std::uint16_t>(d.microbatch)}})
    word = word << 2 * kBitsOfByte | part;
  for (const std::uint8_t part :
       {d.detail, d.op, static_cast<std::uint8_t>(d.action), static_cast<std::uint8_t>(d.activity)})
    word = word << kBitsOfByte | part;
  return word;
}
Doing unpack(std::uint64_t word) {
  const auto byte = [&](int i) { return static_cast<std::uint8_t>(word >> i * kBitsOfByte); };
  return {static_cast<Activity>(byte(0)),
          static_cast<Action>(byte(1)),
          byte(2),
          byte(3),
          static_cast<std::int16_t>(word >> 4 * kBitsOfByte),
          static_cast<std::int16_t>(word >> 6 * kBitsOfByte)};
}

std::uint8_t detail_of(const Op& op) {
  if (const auto* c = std::get_if<Collective>(&op))
    return static_cast<std::uint8_t>(static_cast<int>(c->kind) * kGroups + static_cast<int>(c->group));
  if (const auto* s = std::get_if<Send>(&op)) return s->to == Direction::kNext;
  if (const auto* r = std::get_if<Recv>(&op)) return r->from == Direction::kNext;
  return 0;
}

std::string op_text(const Doing& d) {
  const std::string_view kind = kind_name(d.op);
  if (kind == Collective::kName)
    return fmt::format("{} over {}", name(static_cast<CollectiveKind>(d.detail / kGroups)),
                       name(static_cast<Group>(d.detail % kGroups)));
  const char* stage = d.detail ? "next" : "previous";
  if (kind == Send::kName) return fmt::format("send to the {} stage", stage);
  if (kind == Recv::kName) return fmt::format("receive from the {} stage", stage);
  return std::string(kind);
}
bool communicates(const Doing& d) {
  const std::string_view kind = kind_name(d.op);
  return d.activity == Activity::kBeginOfStep || d.activity == Activity::kEndOfStep ||
         (d.activity == Activity::kOperation &&
          (kind == Collective::kName || kind == Send::kName || kind == Recv::kName));
}
bool in_a_step(Activity a) {
  return a == Activity::kReadingData || a == Activity::kBeginOfStep || a == Activity::kOperation ||
         a == Activity::kEndOfStep;
}

RankBeat unseen;
std::atomic<RankBeat*> own{&unseen};
std::atomic<std::atomic<std::uint32_t>*> endings{nullptr};

struct sigaction before_joining {};

void mark_termination(int signal) {
  own_beat().ends(-signal);
  sigaction(signal, &before_joining, nullptr);
  raise(signal);
}

}  // namespace

RankBeat& own_beat() { return *own.load(std::memory_order_relaxed); }

void RankBeat::now(Activity activity) { doing.store(pack({activity}), std::memory_order_relaxed); }

void RankBeat::begins(const Slot& slot, int layer, const Op& op) {
  doing.store(pack({Activity::kOperation, slot.action, kind_of(op), detail_of(op),
                    static_cast<std::int16_t>(slot.microbatch), static_cast<std::int16_t>(layer)}),
              std::memory_order_relaxed);
  operations.store(operations.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

void RankBeat::ends(std::int32_t how) {
  std::int32_t none = 0;
  if (!ending.compare_exchange_strong(none, how)) return;
  if (auto* counter = endings.load()) ended_as = ++*counter;
}

// ---- the page ----------------------------------------------------------------------------------------------------------

struct HeartbeatPage::Memory {
  static constexpr std::uint64_t kMark = 0x6d77'6265'6174'0001;  // "mwbeat", and this layout's number

  std::uint64_t mark = kMark;
  std::int32_t ranks = 0;
  std::atomic<std::int32_t> dp{0}, pp{0}, tp{0};
  std::atomic<std::uint32_t> endings{0};
  std::atomic<std::int32_t> reporter{0};  // 1 + its rank
  std::atomic<std::int64_t> done{0}, steps{0};
  std::atomic<double> first_loss{0}, last_loss{0};

  RankBeat* beats() { return reinterpret_cast<RankBeat*>(reinterpret_cast<std::byte*>(this) + offset()); }
  static constexpr std::size_t offset() { return (sizeof(Memory) + alignof(RankBeat) - 1) & ~(alignof(RankBeat) - 1); }
  static std::size_t bytes(int ranks) { return offset() + static_cast<std::size_t>(ranks) * sizeof(RankBeat); }
};
// Other processes read and write them: nothing may stand beside the value in memory.
static_assert(std::atomic<double>::is_always_lock_free && std::atomic<std::int64_t>::is_always_lock_free);

HeartbeatPage::HeartbeatPage(int ranks) : descriptor_(memfd_create("meshwright-heartbeat", MFD_CLOEXEC)) {
  bytes_ = Memory::bytes(ranks);
  void* at = MAP_FAILED;
  if (descriptor_ >= 0 && ftruncate(descriptor_, static_cast<off_t>(bytes_)) == 0)
    at = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor_, 0);
  if (at == MAP_FAILED) {
    const int error = errno;
    if (descriptor_ >= 0) close(descriptor_);
    throw std::system_error(error, std::generic_category(), "memory that the ranks share");
  }
  memory_ = new (at) Memory;
  memory_->ranks = ranks;
  for (int r = 0; r < ranks; ++r) new (memory_->beats() + r) RankBeat;
  path_ = fmt::format("/proc/{}/fd/{}", getpid(), descriptor_);
}

std::optional<HeartbeatPage> HeartbeatPage::open(const std::string& path, int ranks) {
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (descriptor < 0) return std::nullopt;
  const std::size_t bytes = Memory::bytes(ranks);
  struct stat status {};
  void* at = MAP_FAILED;
  if (fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode) && static_cast<std::size_t>(status.st_size) == bytes)
    at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (at == MAP_FAILED) {
    close(descriptor);
    return std::nullopt;
  }
  HeartbeatPage page(descriptor, static_cast<Memory*>(at), bytes, path);
  if (page.memory_->mark != Memory::kMark || page.memory_->ranks != ranks) return std::nullopt;
  return page;
}

HeartbeatPage::HeartbeatPage(HeartbeatPage&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      memory_(std::exchange(other.memory_, nullptr)),
      bytes_(other.bytes_),
      path_(std::move(other.path_)),
      joined_(std::exchange(other.joined_, false)) {}

HeartbeatPage::~HeartbeatPage() {
  if (joined_) {
    sigaction(SIGTERM, &before_joining, nullptr);
    own = &unseen;
    endings = nullptr;
  }
  if (memory_) munmap(memory_, bytes_);
  if (descriptor_ >= 0) close(descriptor_);
}

int HeartbeatPage::ranks() const { return memory_->ranks; }

RankBeat& HeartbeatPage::rank(int r) const {
  check(r >= 0 && r < ranks(), "heartbeat: rank {} of {}", r, ranks());
  return memory_->beats()[r];
}

void HeartbeatPage::join(int r) {
  RankBeat& beat = rank(r);
  endings = &memory_->endings;
  own = &beat;
  joined_ = true;
  struct sigaction mark {};
  mark.sa_handler = mark_termination;
  sigaction(SIGTERM, &mark, &before_joining);
  beat.process = getpid();
}

void HeartbeatPage::set_mesh(const MeshShape& mesh) {
  memory_->dp = mesh.dp;
  memory_->pp = mesh.pp;
  memory_->tp = mesh.tp;
}

void HeartbeatPage::set_run(const RunSoFar& run) {
  memory_->steps = run.steps;
  memory_->first_loss = run.first_loss;
  memory_->last_loss = run.last_loss;
  memory_->done = run.done;
}

RunSoFar HeartbeatPage::run() const { return {memory_->done, memory_->steps, memory_->first_loss, memory_->last_loss}; }

std::string HeartbeatPage::name(int r) const {
  const int pp = memory_->pp, tp = memory_->tp;
  if (memory_->dp * pp * tp != ranks() || ranks() == 1) return fmt::format("rank {}", r);
  return fmt::format("rank {} (dp {}, pp {}, tp {})", r, r / (pp * tp), r / tp % pp, r % tp);
}

std::string HeartbeatPage::doing(int r) const {
  const RankBeat& beat = rank(r);
  const Doing d = unpack(beat.doing);
  const std::int64_t step = beat.step + 1;
  switch (d.activity) {
    case Activity::kStarting:
      return beat.process == 0 ? "not there yet" : "starting MPI";
    case Activity::kPreparing:
      return "preparing";
    case Activity::kReadingData:
      return fmt::format("step {}: reading its tokens", step);
    case Activity::kBeginOfStep:
      return fmt::format("step {}: its begin, for which all ranks wait", step);
    case Activity::kOperation: {
      Slot slot;
      slot.action = d.action;
      slot.microbatch = d.microbatch;
      return fmt::format("step {}, {}{}: {}", step, slot_name(slot), d.layer >= 0 ? fmt::format(" L{}", d.layer) : "",
                         op_text(d));
    }
    case Activity::kEndOfStep:
      return fmt::format("step {}: its end, which all ranks agree on", step);
    case Activity::kReporting:
      return fmt::format("step {}: reporting it", step);
    case Activity::kEnding:
      return "ending";
  }
  return "";
}

bool HeartbeatPage::is_stopped(int r) const {
  const RankBeat& beat = rank(r);
  const int process = beat.process;
  if (process == 0 || beat.ending != 0) return false;
  std::string line;
  std::getline(std::ifstream(fmt::format("/proc/{}/stat", process)), line);
  // "PID (NAME) STATE ...": a name may have brackets of its own.
  const std::size_t state = line.rfind(") ");
  return state != std::string::npos && state + 2 < line.size() && (line[state + 2] == 'T' || line[state + 2] == 't');
}

bool HeartbeatPage::claim_report(int r) {
  std::int32_t none = 0;
  return memory_->reporter.compare_exchange_strong(none, r + 1);
}
bool HeartbeatPage::has_report() const { return memory_->reporter != 0; }

// ---- the watchdog ------------------------------------------------------------------------------------------------------

namespace {

constexpr std::size_t kNamedAtMost = 8;

// Ranks to blame: those that are stopped; else those that compute, while others wait for them; else all.
std::vector<int> to_blame(const HeartbeatPage& page) {
  std::vector<int> stopped, computing, all;
  for (int r = 0; r < page.ranks(); ++r) {
    if (page.rank(r).process == 0) continue;
    all.push_back(r);
    if (page.is_stopped(r)) stopped.push_back(r);
    if (!communicates(unpack(page.rank(r).doing))) computing.push_back(r);
  }
  return !stopped.empty() ? stopped : !computing.empty() ? computing : all;
}

// Changes whenever a rank of this machine gets on with something.
std::uint64_t movement(const HeartbeatPage& page) {
  std::uint64_t sum = 0;
  for (int r = 0; r < page.ranks(); ++r) {
    const RankBeat& beat = page.rank(r);
    sum += beat.operations + beat.blocks + static_cast<std::uint64_t>(beat.step) + beat.doing + beat.ending;
  }
  return sum;
}

bool may_hang(const HeartbeatPage& page) {
  bool all_in_a_step = true;
  for (int r = 0; r < page.ranks(); ++r) {
    if (page.rank(r).process != 0 && !in_a_step(unpack(page.rank(r).doing).activity)) all_in_a_step = false;
  }
  if (all_in_a_step) return true;
  for (int r = 0; r < page.ranks(); ++r)
    if (page.is_stopped(r)) return true;
  return false;
}

void watch(const std::stop_token& stop, HeartbeatPage& page, int rank, double timeout_s) {
  using Seconds = std::chrono::duration<double>;
  const Seconds tick(std::clamp(timeout_s / 20, 0.01, 0.25));
  std::mutex mutex;
  std::condition_variable_any wake;
  std::unique_lock lock(mutex);
  std::uint64_t seen = 0;
  double idle = 0;
  auto before = std::chrono::steady_clock::now();
  while (!stop.stop_requested()) {
    wake.wait_for(lock, stop, tick, [] { return false; });
    if (stop.stop_requested()) return;
    page.rank(rank).blocks = kernels::blocks_finished.load(std::memory_order_relaxed);
    const auto now = std::chrono::steady_clock::now();
    const double passed = std::min(Seconds(now - before).count(), 2 * tick.count());  // not while we were stopped
    before = now;
    const std::uint64_t moved = movement(page);
    if (std::exchange(seen, moved) != moved || !may_hang(page)) {
      idle = 0;
      continue;
    }
    idle += passed;
    if (idle < timeout_s) continue;
    if (!page.claim_report(rank)) continue;  // another says it, and all end
    const std::string text = hang_report(page, timeout_s);
    if (write(STDERR_FILENO, text.data(), text.size()) < 0) {
    }  // there is no other place to say it
    page.rank(rank).exits(1);
    _exit(1);
  }
}

}  // namespace

std::string hang_report(const HeartbeatPage& page, double seconds) {
  std::string text =
      fmt::format("no rank has finished an operation for {:g} s (--hang-timeout), so the run is ended\n", seconds);
  const std::vector<int> guilty = to_blame(page);
  std::size_t lines = 0;
  const auto say = [&](int r) {
    if (++lines > kNamedAtMost) return;
    const std::string process = fmt::format("process {}", page.rank(r).process.load());
    if (page.is_stopped(r))
      text +=
          fmt::format("  {}, {}, is stopped (by SIGSTOP, or a debugger) in {}\n", page.name(r), process, page.doing(r));
    else
      text += fmt::format("  {}, {}, {} {}\n", page.name(r), process,
                          communicates(unpack(page.rank(r).doing)) ? "waits in" : "is in", page.doing(r));
  };
  for (const int r : guilty) say(r);
  for (int r = 0; r < page.ranks(); ++r)
    if (page.rank(r).process != 0 && std::ranges::find(guilty, r) == guilty.end()) say(r);
  if (lines > kNamedAtMost) text += fmt::format("  and {} more ranks\n", lines - kNamedAtMost);
  return text;
}

Watchdog::Watchdog(HeartbeatPage& page, int rank, double timeout_s) {
  if (timeout_s > 0)
    thread_ = std::jthread([&page, rank, timeout_s](std::stop_token stop) {
      sigset_t all;  // the main thread handles signals
      sigfillset(&all);
      pthread_sigmask(SIG_SETMASK, &all, nullptr);
      watch(stop, page, rank, timeout_s);
    });
}

}  // namespace meshwright
