#include "sim/simulate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <random>
#include <stdexcept>

#include "model/families/jaxformer.h"
#include "model/input/diagnostics.h"
#include "model/lowering/lower.h"
#include "tests/sim/handmade.h"

namespace meshwright {
namespace {

using handmade::NamedCost;
using handmade::random_program;
using handmade::RandomCost;
using handmade::row;
using handmade::tensor;
using handmade::textbook_pipeline;

Time ps(Seconds s) { return to_time(s); }

// Every figure, to the picosecond, the byte and the FLOP.
void expect_equal(const StepReport& a, const StepReport& b) {
  EXPECT_EQ(a.step_time, b.step_time);
  ASSERT_EQ(a.ranks.size(), b.ranks.size());
  for (std::size_t s = 0; s < a.ranks.size(); ++s) {
    SCOPED_TRACE("stage " + std::to_string(s));
    const RankReport &x = a.ranks[s], &y = b.ranks[s];
    EXPECT_EQ(x.rank, y.rank);
    EXPECT_EQ(ps(x.end), ps(y.end));
    EXPECT_EQ(ps(x.compute), ps(y.compute));
    EXPECT_EQ(ps(x.exposed_comm), ps(y.exposed_comm));
    EXPECT_EQ(ps(x.bubble), ps(y.bubble));
    EXPECT_EQ(x.executed_flops, y.executed_flops);
    EXPECT_EQ(x.traffic, y.traffic);
    EXPECT_EQ(x.live, y.live);
    EXPECT_EQ(x.arena_bytes, y.arena_bytes);
    EXPECT_EQ(ps(x.compute) + ps(x.exposed_comm) + ps(x.bubble), ps(a.step_time));
  }
}

// Both ways, which must agree; the fast one must not refuse.
StepReport simulate_both(const ProgramSet& set, const CostModel& cost) {
  StepReport full = simulate_full(set, cost);
  const auto fast = simulate_fast(set, cost);
  EXPECT_TRUE(fast.has_value());
  if (fast) expect_equal(full, *fast);
  return full;
}

TEST(Simulate, BubbleOfEqualStagesIsTheTextbooks) {
  // Every stage computes m (f + b); the step takes (m + p - 1)(f + b): a bubble of (p - 1)/(m + p - 1), in
  // GPipe and 1F1B.
  const NamedCost cost({{"forward", 1000}, {"backward", 2000}});
  for (const Schedule schedule : {Schedule::kGPipe, Schedule::k1F1B})
    for (const int p : {1, 2, 3, 4, 8, 16})
      for (const int m : {1, 2, 3, 4, 7, 8, 16, 32}) {
        SCOPED_TRACE(std::string(name(schedule)) + " p " + std::to_string(p) + " m " + std::to_string(m));
        const StepReport report = simulate_both(textbook_pipeline(schedule, p, m), cost);
        EXPECT_EQ(ps(report.step_time), (m + p - 1) * 3000);
        for (const RankReport& rank : report.ranks) {
          EXPECT_EQ(ps(rank.bubble), (p - 1) * 3000);
          EXPECT_EQ(ps(rank.exposed_comm), 0);
          EXPECT_EQ(ps(rank.compute), m * 3000);
        }
      }
}

TEST(Simulate, AReceiverWaitsForTheOtherStageUntilTheTransferStartsAndForCommunicationAfterIt) {
  // Stage 0: F 0-1000, sends 1000-1300. Stage 1: F 1300-2300, B 2300-4300, sends 4300-4400. Stage 0: B
  // 4400-6400.
  const NamedCost cost({{"forward", 1000},
                        {"backward", 2000},
                        {"send.forward", 300},
                        {"recv.forward", 300},
                        {"send.backward", 100},
                        {"recv.backward", 100}});
  const StepReport report = simulate_both(textbook_pipeline(Schedule::k1F1B, 2, 1), cost);
  EXPECT_EQ(ps(report.step_time), 6400);
  EXPECT_EQ(ps(report.ranks[0].bubble), 3300);             // 1000 to 4300
  EXPECT_EQ(ps(report.ranks[0].exposed_comm), 100);        // 4300 to 4400
  EXPECT_EQ(ps(report.ranks[1].bubble), 1000 + 2000);      // 0 to 1000, and 4400 to 6400
  EXPECT_EQ(ps(report.ranks[1].exposed_comm), 300 + 100);  // 1000 to 1300, and its last send 4300 to 4400
}

// `layers` times a gather over dp into a ring of two and a product that reads it.
ProgramSet gathered_layers(int layers) {
  ProgramSet set;
  set.mesh.dp = 2;
  Piece gather{"gather", {}, {}, 0}, forward{"forward", {}, {}, 0};
  tensor(gather, Frame::kWeightShard, 0, 8);
  tensor(gather, Frame::kWeights);
  gather.ops.emplace_back(Collective{
      .kind = CollectiveKind::kAllGather, .group = Group::kDp, .src = row(gather, 0), .dst = row(gather, 1)});
  tensor(forward, Frame::kWeights);
  tensor(forward, Frame::kX);
  forward.ops.emplace_back(Gemm{.a = row(forward, 0), .b = row(forward, 0), .c = row(forward, 1), .accumulate = true});
  set.pieces = {gather, forward};
  Program program;
  Chunk chunk{"forward", {}};
  for (int i = 0; i < layers; ++i)
    for (const int piece : {0, 1}) {
      Call call{.piece = piece,
                .block = i,
                .layer = i,
                .weights_ring = true,
                .ring = static_cast<std::uint8_t>(i & 1),
                .weights_turn = 4096};
      call.base[static_cast<int>(Frame::kWeightShard)] = 65536 + 1024 * i;
      call.base[static_cast<int>(Frame::kX)] = 32768;
      chunk.calls.push_back(call);
    }
  program.chunks.push_back(std::move(chunk));
  program.slots.push_back({.action = Action::kForward, .microbatch = 0});
  set.stages.push_back(std::move(program));
  return set;
}

TEST(Simulate, GathersHideBehindTheLayerBeforeThem) {
  // Only the first gather is waited for: 300 + 8 * 1000.
  const StepReport report = simulate_both(gathered_layers(8), NamedCost({{"gather", 300}, {"forward", 1000}}));
  EXPECT_EQ(ps(report.step_time), 8300);
  EXPECT_EQ(ps(report.ranks[0].exposed_comm), 300);
}

TEST(Simulate, GathersThatTakeLongerThanALayerSetThePace) {
  // One gather after another, then the last layer: 8 * 1500 + 1000.
  const StepReport report = simulate_both(gathered_layers(8), NamedCost({{"gather", 1500}, {"forward", 1000}}));
  EXPECT_EQ(ps(report.step_time), 13000);
  EXPECT_EQ(ps(report.ranks[0].exposed_comm), 13000 - 8 * 1000);
}

TEST(Simulate, ARingOfTwoLetsOneGatherRunAhead) {
  // Layer 0 computes 300 to 1300 on buffer 0; the gather of layer 2 needs that buffer and starts at 1300, not
  // at 600.
  const StepReport report =
      simulate(gathered_layers(4), NamedCost({{"gather", 300}, {"forward", 1000}}), {.timeline = true});
  std::vector<Time> gathers;
  for (const Interval& i : report.ranks[0].timeline)
    if (i.stream == Stream::kDp) gathers.push_back(ps(i.begin));
  EXPECT_EQ(gathers, (std::vector<Time>{0, 300, 1300, 2300}));
  EXPECT_EQ(report.ranks[0].timeline[1].place, (OpPlace{.slot = 0, .call = 1, .op = 0}));  // layer 0's forward
}

TEST(Simulate, WithoutOverlapGathersStopTheDevice) {
  struct Alone : NamedCost {
    using NamedCost::NamedCost;
    bool overlaps_compute() const override { return false; }
  };
  const StepReport report = simulate_both(gathered_layers(8), Alone({{"gather", 300}, {"forward", 1000}}));
  EXPECT_EQ(ps(report.step_time), 8 * 1300);
  EXPECT_EQ(ps(report.ranks[0].exposed_comm), 8 * 300);
  EXPECT_EQ(ps(report.ranks[0].compute), 8 * 1000);
}

TEST(Simulate, AMissingReceiveIsNamed) {
  ProgramSet set = textbook_pipeline(Schedule::k1F1B, 2, 2);
  std::erase_if(set.stages[1].slots,
                [](const Slot& s) { return s.action == Action::kRecvForward && s.microbatch == 1; });
  EXPECT_FALSE(simulate_fast(set, NamedCost({})));
  EXPECT_THROW(simulate(set, NamedCost({})), std::logic_error);
}

TEST(Simulate, FastAgreesWithFullOnRandomPrograms) {
  std::mt19937_64 random(20260101);
  int simulated = 0;
  for (int trial = 0; trial < 1200; ++trial) {
    SCOPED_TRACE("trial " + std::to_string(trial));
    const auto schedule = trial % 2 ? Schedule::k1F1B : Schedule::kGPipe;
    const int stages = 1 + static_cast<int>(random() % 4), microbatches = 1 + static_cast<int>(random() % 9);
    const ProgramSet set = random_program(random, schedule, stages, microbatches);
    const RandomCost cost(random(), trial % 3 ? 1000 : 3, trial % 5 != 0);  // small durations tie often
    StepReport full;
    try {
      full = simulate_full(set, cost);
    } catch (const std::logic_error&) {  // the buffers are too few for this schedule, so it waits for itself
      EXPECT_FALSE(simulate_fast(set, cost));
      continue;
    }
    const auto fast = simulate_fast(set, cost);
    if (!fast) continue;
    ++simulated;
    expect_equal(full, *fast);
    if (HasFailure()) return;
  }
  EXPECT_GT(simulated, 1000);
}

TEST(Simulate, FastAgreesWithFullOnLoweredPlans) {
  JaxformerDimensions dimensions{.model_dimension = 64,
                                 .vocab_size = 512,
                                 .n_head = 4,
                                 .blocks = 2,
                                 .layers_per_block = 3,
                                 .latent_dim = 16,
                                 .dhR = 8,
                                 .dropout_rate = 0.1,
                                 .k = 2,
                                 .n_experts = 4,
                                 .n_shared = 1};
  ModelSpec model = jaxformer("tiny", dimensions, 1e-4);
  const TrainingShape shape{.sequences = 16, .tokens = 32};
  std::mt19937_64 random(3);
  std::map<Balance, int> plans;
  for (const MeshShape mesh :
       {MeshShape{1, 1, 1}, {2, 1, 1}, {1, 2, 1}, {1, 1, 2}, {2, 2, 2}, {4, 3, 1}, {2, 6, 1}, {1, 4, 4}})
    for (const int fsdp : {0, 1, 2, 3})
      for (const int microbatches : {1, 2, 4})
        for (const Schedule schedule : {Schedule::kGPipe, Schedule::k1F1B})
          for (const Recompute recompute : {Recompute::kNone, Recompute::kFull})
            for (const Balance balance : {Balance::kSequence, Balance::kLayer, Balance::kPooled}) {
              const Plan plan{mesh, fsdp, microbatches, schedule, recompute};
              model.balance = balance;
              if (!illegalities(model, shape, plan).empty()) continue;
              SCOPED_TRACE(to_text(plan) + ", balance " + std::string(name(balance)));
              const ProgramSet set = lower(model, shape, plan);
              simulate_both(set, RandomCost(random(), 1000));
              simulate_both(set, RandomCost(random(), 50, false));
              const ProgramSet evaluation = lower_evaluation(model, shape, plan, set);
              simulate_both(evaluation, RandomCost(random(), 1000));
              simulate_both(evaluation, RandomCost(random(), 50, false));
              ++plans[balance];
            }
  EXPECT_GE(plans[Balance::kSequence], 100);
  EXPECT_GE(plans[Balance::kLayer], 60);
  EXPECT_GE(plans[Balance::kPooled], 30);
}

// ---- the end of time ---------------------------------------------------------------------------------------------------

TEST(Times, NeverWrap) {
  EXPECT_EQ(to_time({1e-12}), 1);
  EXPECT_EQ(to_time({4e6}), 4'000'000'000'000'000'000);
  for (const double s :
       {4.7e6, 1e7, 1e300, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()})
    EXPECT_EQ(to_time({s}), kEndOfTime) << s;
  EXPECT_EQ(to_time({-1e300}), 0);
}

// The same figures; in seconds, as picoseconds beyond 2^53 are rounded there.
void expect_same_seconds(const StepReport& a, const StepReport& b) {
  EXPECT_EQ(a.step_time, b.step_time);
  ASSERT_EQ(a.ranks.size(), b.ranks.size());
  for (std::size_t s = 0; s < a.ranks.size(); ++s) {
    EXPECT_EQ(a.ranks[s].end, b.ranks[s].end);
    EXPECT_EQ(a.ranks[s].compute, b.ranks[s].compute);
    EXPECT_EQ(a.ranks[s].exposed_comm, b.ranks[s].exposed_comm);
    EXPECT_EQ(a.ranks[s].bubble, b.ranks[s].bubble);
  }
}

TEST(Times, AStepThatIsTooLongIsRefusedByBothSimulationsAndOneThatJustFitsAgrees) {
  for (const Schedule schedule : {Schedule::kGPipe, Schedule::k1F1B}) {
    // 2 stages x 8 microbatches of f and 2 f, and nothing else: 48 f are kLongestTime.
    const Time f = kLongestTime / 48;
    const ProgramSet set = textbook_pipeline(schedule, 2, 8);
    const NamedCost longest({{"forward", f}, {"backward", 2 * f}});
    const StepReport fits = simulate_full(set, longest);
    EXPECT_EQ(fits.step_time, to_seconds(9 * 3 * f));
    expect_same_seconds(fits, simulate_fast(set, longest).value());
    for (const Time forward : {f + 1 + f / 1000, kLongestTime / 2, kLongestTime, kEndOfTime}) {
      const NamedCost cost({{"forward", forward}, {"backward", 2 * f}});
      EXPECT_THROW(simulate_full(set, cost), InputError) << forward;
      EXPECT_THROW(simulate_fast(set, cost), InputError) << forward;
    }
  }
}

TEST(Times, FastAgreesWithFullUpToTheLongestStep) {
  // Durations so long that they add up to about half of what is allowed.
  std::mt19937_64 random(5);
  int simulated = 0;
  for (int trial = 0; trial < 100; ++trial) {
    const ProgramSet set = random_program(random, trial % 2 ? Schedule::k1F1B : Schedule::kGPipe, 1 + trial % 4, 3);
    std::int64_t ops = 1;
    for (const Program& stage : set.stages) for_each_op(set, stage, [&](auto&&...) { ++ops; });
    const RandomCost cost(random(), kLongestTime / ops);
    StepReport full;
    try {
      full = simulate_full(set, cost);
    } catch (const std::logic_error&) {  // it waits for itself
      continue;
    }
    if (const auto fast = simulate_fast(set, cost)) {
      ++simulated;
      expect_same_seconds(full, *fast);
    }
  }
  EXPECT_GT(simulated, 20);
}

TEST(Figures, OfAStepThatCannotBeAreRefusedByName) {
  const StepReport good{{2.0},
                        {{.rank = {0, 1, 0}, .end = {2.0}, .exposed_comm = {0.5}, .bubble = {0.5}, .compute = {1.0}}}};
  EXPECT_NO_THROW(check_figures(good));
  const auto message = [&](auto&& change) -> std::string {
    StepReport bad = good;
    change(bad);
    try {
      check_figures(bad);
    } catch (const std::logic_error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message([](StepReport& r) { r.ranks[0].exposed_comm = {-2.5}; }),
            "stage 1: exposed communication of -2.5 s: 0 to the step's 2 s");
  EXPECT_EQ(message([](StepReport& r) { r.ranks[0].bubble = {2.1}; }), "stage 1: bubble of 2.1 s: 0 to the step's 2 s");
  EXPECT_NE(message([](StepReport& r) { r.step_time = {std::numeric_limits<double>::quiet_NaN()}; }), "");
  EXPECT_NE(message([](StepReport& r) { r.ranks[0].live.bytes = -1; }), "");
  EXPECT_NE(message([](StepReport& r) { r.ranks[0].traffic[{"send", "pp"}] = {-1}; }), "");
}

}  // namespace
}  // namespace meshwright
