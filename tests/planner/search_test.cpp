#include "planner/search.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <thread>

#include "model/input/diagnostics.h"
#include "tests/planner/problems.h"

namespace meshwright {
namespace {

constexpr std::int64_t kPlenty = std::int64_t{1} << 60;

// A machine without a simulator: a step takes `seconds` of the programs.
Machine pretend(std::function<double(const ProgramSet&)> seconds, std::int64_t usable = kPlenty) {
  return {
      .peak = {1e9}, .usable_memory = {usable}, .evaluate = [seconds = std::move(seconds)](const ProgramSet& programs) {
        Prediction prediction{.mapping = to_string(programs.mesh)};
        prediction.report.step_time = {seconds(programs)};
        for (const Program& stage : programs.stages)
          prediction.report.ranks.push_back(
              {.rank = {0, stage.stage, 0}, .live = {.bytes = stage.arena_bytes}, .arena_bytes = {stage.arena_bytes}});
        return prediction;
      }};
}

// Many plans tie: five step times in all.
double few_values(const ProgramSet& programs) {
  return 1.0 + static_cast<double>((programs.stages[0].slots.size() + programs.stages[0].arena_bytes / 64) % 5);
}

// So much memory that about half of the plans fit.
std::int64_t half_fit(const Problem& problem) {
  std::vector<std::int64_t> needs;
  for (const Plan& plan : all_plans(problem))
    needs.push_back(memory_needed(lower(problem.model, problem.shape, plan)).value);
  std::ranges::sort(needs);
  return needs[needs.size() / 2];
}

TEST(Search, RanksTheSameTableWithOneTwoAndThreeWorkers) {
  const Problem problem = small_problem(8);
  const Machine machine = pretend(few_values, half_fit(problem));
  const SearchResult one = search(problem, machine, {.workers = 1});
  ASSERT_FALSE(one.plans.empty());
  ASSERT_FALSE(one.too_large.empty());
  for (const int workers : {2, 3}) {
    const SearchResult more = search(problem, machine, {.workers = workers});
    EXPECT_EQ(more.plans, one.plans);
    EXPECT_EQ(more.too_large, one.too_large);
    EXPECT_EQ(more.rejected(), one.rejected());
    EXPECT_EQ(more.evaluated, one.evaluated);
  }
}

TEST(Search, EqualStepTimesAreRankedByTheTextOfThePlan) {
  const SearchResult result = search(small_problem(4), pretend(few_values));
  for (std::size_t i = 1; i < result.plans.size(); ++i) {
    const PlanResult &a = result.plans[i - 1], &b = result.plans[i];
    EXPECT_TRUE(a.step_time_s < b.step_time_s || (a.step_time_s == b.step_time_s && to_text(a.plan) < to_text(b.plan)))
        << to_text(a.plan) << " before " << to_text(b.plan);
  }
}

TEST(Search, EveryLegalPlanIsEitherRankedOrTooLarge) {
  const Problem problem = small_problem(8);
  const SearchResult result = search(problem, pretend(few_values, half_fit(problem)));
  EXPECT_EQ(result.evaluated, PlanSpace(problem).size());
  EXPECT_EQ(static_cast<std::int64_t>(result.plans.size() + result.too_large.size()), result.evaluated);
  EXPECT_GT(result.elapsed_s, 0);
}

TEST(Search, EveryPlanWithStagesNamesItsLayersAndIsFoundAgainByItsText) {
  const Problem problem = small_problem(8);
  const SearchResult result = search(problem, pretend(few_values, half_fit(problem)));
  std::vector<Plan> plans;
  for (const PlanResult& r : result.plans) {
    plans.push_back(r.plan);
    if (r.plan.mesh.pp > 1) {
      EXPECT_EQ(r.plan.layers, r.stage_layers) << to_text(r.plan);
    }
  }
  for (const TooLarge& t : result.too_large) plans.push_back(t.plan);
  for (const Plan& plan : plans) {
    EXPECT_EQ(plan.layers.size(), plan.mesh.pp > 1 ? static_cast<std::size_t>(plan.mesh.pp) : 0u) << to_text(plan);
    EXPECT_TRUE(illegalities(problem.model, problem.shape, plan).empty()) << to_text(plan);
    EXPECT_EQ(parse_plan(to_text(plan)), plan) << to_text(plan);
    const auto found = standing(result, parse_plan(to_text(plan)));
    ASSERT_TRUE(found);
    EXPECT_EQ(found->plan, plan);
  }
}

TEST(Search, StagesAreCutByWhatTheMachineSaysThatPiecesCost) {
  // A machine on which the head takes as long as two layers forward and backward: of 4 layers, 3 and 1.
  Machine machine = pretend(few_values);
  machine.cost_pieces = [](const ProgramSet& programs, std::span<const int> pieces) {
    std::vector<PieceCost> cost(programs.pieces.size());
    for (const int piece : pieces) {
      const std::string& name = programs.pieces[piece].name;
      const bool layer = name.starts_with("moe.") || name.starts_with("dense.");
      cost[piece].busy = layer ? 10 : name.starts_with("head") ? 40 : 0;
    }
    return cost;
  };
  const SearchResult result = search(small_problem(2), machine);
  int with_stages = 0;
  for (const PlanResult& r : result.plans)
    if (r.plan.mesh.pp == 2) {
      ++with_stages;
      EXPECT_EQ(r.stage_layers, (std::vector<int>{3, 1})) << to_text(r.plan);
    }
  EXPECT_GT(with_stages, 0);
}

TEST(Search, APlanThatDoesNotFitSaysHowMuchItNeedsToTheByte) {
  const Problem problem = small_problem(8);
  const std::int64_t usable = half_fit(problem);
  const SearchResult result = search(problem, pretend(few_values, usable));
  std::int64_t smallest = kPlenty;
  for (const TooLarge& t : result.too_large) {
    const Bytes needed = memory_needed(lower(problem.model, problem.shape, t.plan));
    EXPECT_EQ(t.needed, needed) << to_text(t.plan);
    EXPECT_EQ(t.excess.value, needed.value - usable);
    EXPECT_GT(t.excess.value, 0);
    smallest = std::min(smallest, t.excess.value);
  }
  for (const PlanResult& fits : result.plans) EXPECT_LE(fits.peak_memory_bytes, usable);
  const Rejected memory = result.rejected().at(std::string(kDoesNotFit));
  EXPECT_EQ(memory.count, static_cast<std::int64_t>(result.too_large.size()));
  EXPECT_EQ(memory.smallest_excess, Bytes{smallest});
}

TEST(Search, APlanFitsThatNeedsExactlyTheUsableMemory) {
  const Problem problem = small_problem(1);
  const Plan plan = all_plans(problem).front();
  const Bytes needed = memory_needed(lower(problem.model, problem.shape, plan));
  const auto fits = [&](std::int64_t usable) {
    const SearchResult result = search(problem, pretend(few_values, usable));
    return std::ranges::find(result.plans, plan, &PlanResult::plan) != result.plans.end();
  };
  EXPECT_TRUE(fits(needed.value));
  EXPECT_FALSE(fits(needed.value - 1));
}

TEST(Search, RejectedMeshesAreCountedByReason) {
  // tp 8 on 4 heads: 1 mesh. pp 8 on 4 layers: 1 mesh. FSDP 1, 2, 3 on the legal meshes with dp 1: 1x4x2 and
  // 1x2x4.
  const auto rejected = search(small_problem(8), pretend(few_values)).rejected();
  EXPECT_EQ(rejected.at("tp does not divide the heads").count, 1);
  EXPECT_EQ(rejected.at("more stages than layers").count, 1);
  EXPECT_EQ(rejected.at("FSDP without data parallelism").count, 6);
  EXPECT_FALSE(rejected.contains(std::string(kDoesNotFit)));
}

TEST(Search, NothingIsFeasibleWithoutMemory) {
  const SearchResult result = search(small_problem(2), pretend(few_values, 1));
  EXPECT_EQ(result.best(), nullptr);
  EXPECT_EQ(preferred(result, {1}), nullptr);
  EXPECT_EQ(result.evaluated, static_cast<std::int64_t>(result.too_large.size()));
}

TEST(Search, AnEmptySpaceGivesAnEmptyTable) {
  const SearchResult result = search(small_problem(7), pretend(few_values));
  EXPECT_EQ(result.evaluated, 0);
  EXPECT_TRUE(result.plans.empty());
  EXPECT_FALSE(result.rejected().empty());
}

TEST(Search, TheBestRunnablePlanPassesOverThoseThatAreRefused) {
  Machine machine = pretend([](const ProgramSet& programs) { return programs.mesh.pp > 1 ? 1.0 : 2.0; });
  machine.refuse = [](const ProgramSet& programs) -> std::optional<std::string> {
    if (programs.mesh.pp > 1) return "can't run yet: send";
    return std::nullopt;
  };
  const SearchResult result = search(small_problem(4), machine);
  EXPECT_FALSE(result.best()->runnable);
  EXPECT_EQ(result.best()->not_runnable, "can't run yet: send");
  const PlanResult* runs = preferred(result, machine.usable_memory, kHeadroom, true);
  ASSERT_NE(runs, nullptr);
  EXPECT_EQ(runs->plan.mesh.pp, 1);
  EXPECT_EQ(runs->not_runnable, "");
}

TEST(Search, AFailureInAnEvaluationReachesTheCallerWhateverTheNumberOfWorkers) {
  const Machine machine = pretend([](const ProgramSet& programs) -> double {
    if (programs.fsdp == 3) throw std::runtime_error(to_string(programs.mesh));
    return 1;
  });
  for (const int workers : {1, 2, 3}) {
    try {
      search(small_problem(8), machine, {.workers = workers});
      FAIL() << "nothing thrown";
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "8x1x1");  // the first mesh in the space's order
    }
  }
}

TEST(Search, ProgressIsReportedOnTheCallersThreadAndEndsComplete) {
  const auto caller = std::this_thread::get_id();
  std::vector<SearchProgress> seen;
  const SearchResult result =
      search(small_problem(4), pretend(few_values), {.workers = 2, .progress = [&](const SearchProgress& p) {
                                                       EXPECT_EQ(std::this_thread::get_id(), caller);
                                                       seen.push_back(p);
                                                     }});
  ASSERT_GE(seen.size(), 2u);
  EXPECT_EQ(seen.front().evaluated, 0);  // before anything was looked at
  EXPECT_EQ(seen.front().total, result.evaluated);
  EXPECT_EQ(seen.back().evaluated, result.evaluated);
  EXPECT_EQ(seen.back().total, result.evaluated);
  EXPECT_EQ(seen.back().best, result.plans.front());
}

TEST(Search, AStoppedSearchKeepsWhatItFoundAndSaysThatItIsNotComplete) {
  const Problem problem = small_problem(8);
  const SearchResult whole = search(problem, pretend(few_values), {.workers = 2});
  EXPECT_TRUE(whole.complete);
  std::atomic<int> asked = 0;
  const SearchResult part = search(problem, pretend(few_values), {.workers = 2, .stop = [&] { return ++asked > 5; }});
  EXPECT_FALSE(part.complete);
  EXPECT_EQ(part.evaluated, 5);  // each of the first five that asked looked at one plan
  ASSERT_EQ(part.plans.size(), 5u);
  for (const PlanResult& plan : part.plans)
    EXPECT_NE(std::ranges::find(whole.plans, plan), whole.plans.end()) << to_text(plan.plan);
  const SearchResult none = search(problem, pretend(few_values), {.stop = [] { return true; }});
  EXPECT_FALSE(none.complete);
  EXPECT_EQ(none.evaluated, 0);
  EXPECT_EQ(whole.legal, whole.evaluated);
  EXPECT_EQ(part.legal, whole.legal);
  EXPECT_EQ(none.legal, whole.legal);

  // One that fits in the whole search and was not looked at: nothing speaks against it, but it has no standing.
  const Plan& later = whole.plans.front().plan;
  EXPECT_FALSE(standing(none, later));
  EXPECT_TRUE(may_be_legal(none, later));
  EXPECT_FALSE(may_be_legal(whole, later));               // complete: what has no standing is not legal
  EXPECT_FALSE(may_be_legal(none, parse_plan("1x1x8")));  // 4 heads
}

TEST(Published, ThePlanOfTheConfigurationIsItsMeshWithGPipeFsdp3AndFullRecomputation) {
  EXPECT_EQ(to_text(published_plan(published_config())), "8x2x2,schedule=gpipe,microbatches=4,fsdp=3,recompute=full");
}

TEST(Published, AccumulationStepsAreFurtherMicrobatchesAndOneShardNeedsNoFsdp) {
  TrainingConfig config = published_config();
  config.grad_step = 3;
  config.mesh = {1, 2, 2};
  EXPECT_EQ(to_text(published_plan(config)), "1x2x2,schedule=gpipe,microbatches=12,fsdp=0,recompute=full");
}

TEST(Published, MoreMicrobatchesThanAnIntegerHoldsAreNoneThatIsLegal) {
  TrainingConfig config = published_config();
  config.microbatches = config.grad_step = 1 << 20;
  const Problem problem = published_problem(32);
  const Plan plan = published_plan(config);
  ASSERT_EQ(illegalities(problem.model, problem.shape, plan).size(), 1u);
  EXPECT_EQ(illegalities(problem.model, problem.shape, plan)[0].reason,
            "more microbatches than a schedule is written for");
}

TEST(Published, ItsStandingIsItsRankAndItsRatioToTheBest) {
  const Plan plan = parse_plan("4x1x1,schedule=gpipe,microbatches=2,fsdp=3,recompute=full");
  const Machine machine = pretend([](const ProgramSet& programs) { return programs.mesh.dp == 4 ? 3.0 : 2.0; });
  const SearchResult result = search(small_problem(4), machine);
  const auto found = standing(result, plan);
  ASSERT_TRUE(found && found->rank);
  EXPECT_EQ(result.plans[*found->rank - 1].plan, plan);
  EXPECT_EQ(found->ratio_to_best, 1.5);
  const auto stages = standing(result, parse_plan("2x2x1"));  // layers left open: those that the search chose
  ASSERT_TRUE(stages && stages->rank);
  EXPECT_EQ(stages->plan.layers.size(), 2u);
  EXPECT_EQ(result.plans[*stages->rank - 1].plan, stages->plan);
  EXPECT_FALSE(standing(result, parse_plan("2x2x1,layers=1-3")));
  EXPECT_FALSE(standing(result, parse_plan("2x1x1")));  // another number of devices: not searched

  const auto large = standing(search(small_problem(4), pretend(few_values, 1)), plan);
  ASSERT_TRUE(large && large->too_large);
  EXPECT_FALSE(large->rank);
}

PlanResult candidate(const std::string& plan, double step_time_s, std::int64_t peak_memory_bytes) {
  return {.plan = parse_plan(plan), .step_time_s = step_time_s, .peak_memory_bytes = peak_memory_bytes};
}

TEST(Preferred, TheFastestThatIsNotTightWinsAmongPlansWithinAPercentOfTheFastest) {
  SearchResult s;
  s.plans = {candidate("4x1x1", 1.000, 99), candidate("2x2x1", 1.004, 93), candidate("1x4x1", 1.009, 92),
             candidate("1x2x2", 1.010, 10), candidate("1x1x4", 1.011, 1)};
  EXPECT_EQ(to_string(preferred(s, {100})->plan.mesh), "1x4x1");        // 92 of 100 is not above 92 %
  EXPECT_EQ(to_string(preferred(s, {100}, 0.93)->plan.mesh), "2x2x1");  // the faster one of those below
  EXPECT_EQ(to_string(preferred(s, {100}, 0.5)->plan.mesh), "1x2x2");   // exactly a percent is within it
  EXPECT_EQ(to_string(preferred(s, {100}, 0.05)->plan.mesh), "1x2x2");  // all within are tight: the least memory
  EXPECT_EQ(to_string(preferred(s, {100}, 1)->plan.mesh), "4x1x1");     // whatever fits is roomy
  EXPECT_EQ(to_string(preferred(s, {1000})->plan.mesh), "4x1x1");       // a roomy fastest plan never gives way
}

TEST(Preferred, OfPlansThatAreAllTightAndNeedTheSameTheFastestWins) {
  SearchResult s;
  s.plans = {candidate("4x1x1", 1.000, 99), candidate("2x2x1", 1.001, 95), candidate("1x4x1", 1.002, 95)};
  EXPECT_EQ(to_string(preferred(s, {100})->plan.mesh), "2x2x1");
}

TEST(Preferred, LooksOnlyAtTheMeshThatWasAskedForAndAtWhatRuns) {
  SearchResult s;
  s.plans = {candidate("4x1x1", 1.0, 99), candidate("2x2x1", 1.005, 95), candidate("2x2x1,fsdp=1", 1.5, 95),
             candidate("2x2x1,fsdp=2", 1.507, 5)};
  s.plans[1].runnable = false;
  EXPECT_EQ(to_text(preferred(s, {100}, 0.9, false, MeshShape{2, 2, 1})->plan), to_text(s.plans[1].plan));
  EXPECT_EQ(preferred(s, {100}, 0.9, true, MeshShape{2, 2, 1})->plan.fsdp, 2);  // the fastest that runs takes 1.5 s
  EXPECT_EQ(preferred(s, {100}, 0.9, true), &s.plans[0]);
  EXPECT_EQ(preferred(s, {100}, 0.9, false, MeshShape{1, 1, 4}), nullptr);
  EXPECT_EQ(preferred({}, {100}), nullptr);
}

TEST(Figures, FollowFromTheReportByTheirDefinitions) {
  // Two stages of a 2x2x1 mesh, so each of the two ranks reported stands for two devices.
  const Problem problem = small_problem(4);
  const Plan plan{.mesh = {2, 2, 1}, .microbatches = 4};
  Machine machine;
  machine.peak = {1e6};
  machine.evaluate = [](const ProgramSet&) {
    Prediction p{.mapping = "somewhere"};
    p.report.step_time = {2.0};
    p.report.ranks = {
        {.rank = {0, 0, 0}, .executed_flops = {1000}, .arena_bytes = {70}, .exposed_comm = {0.1}, .bubble = {0.2}},
        {.rank = {0, 1, 0}, .executed_flops = {3000}, .arena_bytes = {90}, .exposed_comm = {0.3}, .bubble = {0.6}}};
    p.report.ranks[1].live.at_peak[0] = 80;
    return p;
  };
  const ProgramSet programs = lower(problem.model, problem.shape, plan);
  const PlanResult r = evaluate_plan(problem, plan, programs, machine);
  EXPECT_EQ(r.step_time_s, 2.0);
  EXPECT_EQ(r.tokens_per_s, 16 * 32 / 2.0);
  EXPECT_EQ(r.executed_flops, 2 * (1000 + 3000));
  EXPECT_DOUBLE_EQ(r.hfu, 8000 / (2.0 * 4 * 1e6));
  EXPECT_DOUBLE_EQ(r.mfu, r.model_flops / (2.0 * 4 * 1e6));
  EXPECT_DOUBLE_EQ(r.exposed_comm_s, 0.2);
  EXPECT_DOUBLE_EQ(r.bubble_fraction, 0.4 / 2.0);
  EXPECT_EQ(r.peak_memory_bytes, 90);
  EXPECT_EQ(r.largest_stage, 1);
  EXPECT_EQ(r.memory_bytes[0], 80);
  EXPECT_EQ(r.mapping, "somewhere");
  ASSERT_EQ(r.stage_layers.size(), 2u);
  EXPECT_EQ(r.stage_layers[0] + r.stage_layers[1], 4);
}

TEST(Figures, ThatNoStepHasAreRefusedByNameValueAndRange) {
  PlanResult good{.plan = parse_plan("2x2x1"),
                  .step_time_s = 2,
                  .tokens_per_s = 100,
                  .mfu = 0.4,
                  .hfu = 0.5,
                  .peak_memory_bytes = 1,
                  .exposed_comm_s = 0.1,
                  .bubble_fraction = 0.2,
                  .model_flops = 4,
                  .executed_flops = 5};
  EXPECT_NO_THROW(check_figures(good));
  const std::vector<std::pair<std::string, double PlanResult::*>> times{
      {"step_time_s", &PlanResult::step_time_s},
      {"tokens_per_s", &PlanResult::tokens_per_s},
      {"exposed_comm_s", &PlanResult::exposed_comm_s},
      {"bubble_fraction", &PlanResult::bubble_fraction},
      {"executed_flops", &PlanResult::executed_flops}};
  for (const auto& [name, figure] : times)
    for (const double value : {-0.729, std::nan(""), std::numeric_limits<double>::infinity()}) {
      PlanResult bad = good;
      bad.*figure = value;
      try {
        check_figures(bad);
        ADD_FAILURE() << name << " " << value;
      } catch (const std::logic_error& error) {
        EXPECT_EQ(std::string(error.what()).substr(0, name.size()), name);
      }
    }
  PlanResult slow = good;
  slow.exposed_comm_s = 2.1;  // of a step of 2 s
  EXPECT_THROW(check_figures(slow), std::logic_error);

  for (double PlanResult::*share : {&PlanResult::mfu, &PlanResult::hfu}) {
    PlanResult bad = good;
    bad.*share = 1.24;
    try {
      check_figures(bad);
      ADD_FAILURE() << "accepted";
    } catch (const InputError& error) {
      ASSERT_EQ(error.diagnostics().size(), 1u);
      EXPECT_EQ(error.diagnostics()[0].path, share == &PlanResult::mfu ? "mfu" : "hfu");
      EXPECT_EQ(error.diagnostics()[0].value, "1.24");
      EXPECT_EQ(error.diagnostics()[0].allowed, "0 to 1");
    }
  }
  PlanResult drops_tokens = good;  // two thirds of the model's FLOPs are executed
  drops_tokens.model_flops = 6;
  drops_tokens.executed_flops = 4;
  drops_tokens.mfu = 1.2;
  drops_tokens.hfu = 0.8;
  EXPECT_NO_THROW(check_figures(drops_tokens));
}

}  // namespace
}  // namespace meshwright
