// The page that ranks share, and the watchdog that looks at it, with processes that only pretend to train.
#include "executor/launch/heartbeat.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <thread>
#include <vector>

#include "executor/kernels/progress.h"

namespace meshwright {
namespace {

using std::chrono::milliseconds;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

Slot slot(Action action, int microbatch) {
  Slot s;
  s.action = action;
  s.microbatch = microbatch;
  return s;
}

// A rank of its own, which does `work` under a watchdog and then exits with 0. Its stderr comes back through `text`.
class PretendedRank {
 public:
  PretendedRank(const HeartbeatPage& page, int rank, double timeout_s, const std::function<void()>& work) {
    int ends[2];
    if (pipe(ends) != 0) ADD_FAILURE() << "pipe";
    process_ = fork();
    if (process_ == 0) {
      dup2(ends[1], STDERR_FILENO);
      auto own = HeartbeatPage::open(page.path(), page.ranks());
      if (!own) _exit(99);
      own->join(rank);
      own_beat().step = 6;
      {
        const Watchdog watchdog(*own, rank, timeout_s);
        work();
      }
      own_beat().now(Activity::kEnding);
      _exit(0);
    }
    close(ends[1]);
    text_from_ = ends[0];
  }
  ~PretendedRank() {
    if (process_ > 0) {
      kill(process_, SIGKILL);
      waitpid(process_, nullptr, 0);
    }
    close(text_from_);
  }
  PretendedRank(const PretendedRank&) = delete;
  PretendedRank& operator=(const PretendedRank&) = delete;

  pid_t process() const { return process_; }
  // Exit code, or - the signal.
  int wait() {
    int status = 0;
    waitpid(process_, &status, 0);
    process_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  std::string text() const {
    std::string all(1 << 16, '\0');
    std::size_t size = 0;
    for (ssize_t n = 0; (n = read(text_from_, all.data() + size, all.size() - size)) > 0;)
      size += static_cast<std::size_t>(n);
    all.resize(size);
    return all;
  }

 private:
  pid_t process_ = -1;
  int text_from_ = -1;
};

void all_gather_for_ever() {
  own_beat().begins(slot(Action::kForward, 0), 1,
                    Op{Collective{.kind = CollectiveKind::kAllGather, .group = Group::kTp}});
  while (true) pause();
}

TEST(Heartbeat, says_where_a_rank_is_by_step_slot_layer_and_operation) {
  HeartbeatPage page(4);
  EXPECT_EQ(page.name(3), "rank 3");
  page.set_mesh({2, 1, 2});
  EXPECT_EQ(page.name(3), "rank 3 (dp 1, pp 0, tp 1)");
  EXPECT_EQ(page.doing(0), "not there yet");
  page.join(2);
  own_beat().now(Activity::kPreparing);
  EXPECT_EQ(page.doing(2), "preparing");
  own_beat().step = 11;
  own_beat().begins(slot(Action::kBackward, 3), 27, Op{Gemm{}});
  EXPECT_EQ(page.doing(2), "step 12, B3 L27: gemm");
  own_beat().begins(slot(Action::kReduce, -1), -1,
                    Op{Collective{.kind = CollectiveKind::kReduceScatter, .group = Group::kPpEnds}});
  EXPECT_EQ(page.doing(2), "step 12, reduce: reduce-scatter over pp-ends");
  own_beat().begins(slot(Action::kSendForward, 1), -1, Op{Send{.to = Direction::kNext}});
  EXPECT_EQ(page.doing(2), "step 12, send F1: send to the next stage");
  own_beat().now(Activity::kEndOfStep);
  EXPECT_THAT(page.doing(2), HasSubstr("step 12"));
}

TEST(Heartbeat, is_found_by_its_path_and_only_by_those_who_expect_as_many_ranks) {
  HeartbeatPage page(2);
  auto other = HeartbeatPage::open(page.path(), 2);
  ASSERT_TRUE(other);
  page.set_run({.done = 3, .steps = 9, .first_loss = 2.5, .last_loss = 1.25});
  EXPECT_EQ(other->run().done, 3);
  EXPECT_EQ(other->run().last_loss, 1.25);
  EXPECT_FALSE(HeartbeatPage::open(page.path(), 64));
  EXPECT_FALSE(HeartbeatPage::open("/proc/self/exe", 2));
  EXPECT_FALSE(HeartbeatPage::open("/dev/null", 2));
  EXPECT_FALSE(HeartbeatPage::open("/nowhere", 2));
}

TEST(Heartbeat, a_rank_that_is_told_to_end_marks_it_and_one_that_is_killed_can_not) {
  HeartbeatPage page(3);
  const auto wait = [] { all_gather_for_ever(); };
  PretendedRank first(page, 0, 0, wait), second(page, 1, 0, wait), third(page, 2, 0, wait);
  for (int r = 0; r < 3; ++r)
    while (page.rank(r).operations == 0) std::this_thread::sleep_for(milliseconds(1));
  kill(second.process(), SIGKILL);
  EXPECT_EQ(second.wait(), -SIGKILL);
  kill(third.process(), SIGTERM);
  EXPECT_EQ(third.wait(), -SIGTERM);
  kill(first.process(), SIGTERM);
  EXPECT_EQ(first.wait(), -SIGTERM);
  EXPECT_EQ(page.rank(0).ending, -SIGTERM);
  EXPECT_EQ(page.rank(1).ending, 0);
  EXPECT_EQ(page.rank(2).ending, -SIGTERM);
  EXPECT_LT(page.rank(2).ended_as, page.rank(0).ended_as);
}

TEST(Watchdog, names_the_rank_that_is_stopped_and_what_the_others_wait_for) {
  HeartbeatPage page(3);
  page.set_mesh({1, 1, 3});
  PretendedRank waits(page, 0, 1, all_gather_for_ever), also(page, 1, 1, all_gather_for_ever);
  PretendedRank stopped(page, 2, 1, [] {
    own_beat().begins(slot(Action::kBackward, 0), 2, Op{Gemm{}});
    raise(SIGSTOP);
  });
  // One of them reports and ends; the other is ended by mpirun, which there is none of here.
  const auto has_ended = [&](int r) { return page.rank(r).ending == 1 + 1; };
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!has_ended(0) && !has_ended(1) && std::chrono::steady_clock::now() < give_up)
    std::this_thread::sleep_for(milliseconds(20));
  ASSERT_NE(has_ended(0), has_ended(1));
  PretendedRank& reporter = has_ended(0) ? waits : also;
  EXPECT_EQ(reporter.wait(), 1);
  EXPECT_THAT(reporter.text(),
              AllOf(HasSubstr("no rank has finished an operation for 1 s"),
                    HasSubstr("rank 2 (dp 0, pp 0, tp 2), process " + std::to_string(stopped.process()) +
                              ", is stopped (by SIGSTOP, or a debugger) in step 7, B0 L2: gemm"),
                    HasSubstr("waits in step 7, F0 L1: all-gather over tp")));
}

TEST(Watchdog, an_operation_that_takes_long_lives_as_long_as_its_kernels_finish_blocks) {
  HeartbeatPage page(1);
  constexpr double kTimeout = 2;
  PretendedRank slow(page, 0, kTimeout, [] {
    own_beat().begins(slot(Action::kForward, 0), 0, Op{LmHead{}});
    for (int i = 0; i < 50; ++i) {  // more than twice the time that it may stand still
      std::this_thread::sleep_for(milliseconds(100));
      kernels::finished_block();
    }
  });
  EXPECT_EQ(slow.wait(), 0) << slow.text();
  PretendedRank hangs(page, 0, 0.5, [] {
    own_beat().begins(slot(Action::kForward, 0), 0, Op{LmHead{}});
    while (true) pause();
  });
  EXPECT_EQ(hangs.wait(), 1);
  EXPECT_THAT(hangs.text(), AllOf(HasSubstr("is in step 7, F0 L0: lm_head"), Not(HasSubstr("stopped"))));
}

TEST(Watchdog, leaves_ranks_that_prepare_or_report_their_time) {
  HeartbeatPage page(1);
  PretendedRank patient(page, 0, 0.2, [] {
    for (const Activity activity : {Activity::kPreparing, Activity::kReporting}) {
      own_beat().now(activity);
      std::this_thread::sleep_for(milliseconds(800));
    }
  });
  EXPECT_EQ(patient.wait(), 0) << patient.text();
}

}  // namespace
}  // namespace meshwright
