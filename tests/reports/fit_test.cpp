// No report is wider than the terminal, whatever it is about.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

#include "model/config.h"
#include "planner/system_evaluator.h"
#include "reports/params_report.h"
#include "reports/plan_report.h"
#include "reports/search_report.h"
#include "reports/shardings.h"
#include "reports/step_totals.h"
#include "reports/text.h"
#include "sim/simulate.h"
#include "sim/system_cost_model.h"
#include "tests/systems.h"

namespace meshwright {
namespace {

constexpr std::array<int, 4> kWidths{40, 80, 120, 200};

void expect_fits(const std::string& text, int columns, const std::string& what) {
  EXPECT_FALSE(text.empty()) << what;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(display_width(line), columns) << what << ": " << line;
}

struct Training {
  std::string configuration, system;
  std::vector<std::string> plans;
};
void PrintTo(const Training& t, std::ostream* out) { *out << t.configuration; }

class Fits : public testing::TestWithParam<Training> {
 protected:
  const TrainingConfig config = read_config(std::filesystem::path(REPOSITORY) / "configs" / GetParam().configuration);
  const System system = load_system(GetParam().system);
  const Problem problem{
      config.model,
      {.sequences = config.sequences, .tokens = config.sequence_length, .compute = DType::kBF16},
      system.devices()};
};

// As they are, long, and wide: East Asian signs take two columns each.
const std::vector<std::string> kNames{
    "moe1B", std::string(150, 'n'), "a name in many words, one after another, for a run that never ends",
    "とても長い名前のモデルでとても広い端末にも入らないもの-模型的名字非常长-아주긴이름"};

TEST_P(Fits, ASearch) {
  SearchResult result;
  for (const std::string& text : GetParam().plans) {
    const Plan plan = parse_plan(text);
    result.plans.push_back(
        evaluate_plan(problem, plan, lower(problem.model, problem.shape, plan), machine(system, DType::kBF16)));
  }
  std::ranges::sort(result.plans, {}, &PlanResult::step_time_s);
  result.evaluated = result.legal = 123'456'789;
  result.illegal = {{{1, 1, 32}, std::nullopt, {"tp does not divide the heads", "12 heads, tp 32", ""}},
                    {{1, 32, 1}, 3, {"FSDP without data parallelism", "fsdp 3, dp 1", ""}}};
  result.too_large = {{parse_plan("1x1x4"), {500 * kGiB}, {400 * kGiB}}};
  for (const int columns : kWidths)
    for (const std::string& name : kNames)
      for (const bool all : {false, true})
        for (const double headroom : {0.92, 1e-3}) {  // nothing is roomy: all are marked
          const SearchHeading heading{name, name, system.devices(), system.usable_memory, published_plan(config),
                                      256,  1024};
          expect_fits(search_report(result, heading, {.all = all, .headroom = headroom}, columns), columns, "search");
          SearchResult slow = result;
          for (PlanResult& p : slow.plans) {
            p.step_time_s *= 1e4;
            p.runnable = false;
            p.not_runnable = name;
          }
          expect_fits(search_report(slow, heading, {.all = all, .where = Where("dp>=1,pp<=1000"), .headroom = headroom},
                                    columns),
                      columns, "a slow search");
          slow.complete = false;
          expect_fits(search_report(slow, heading, {.all = all}, columns), columns, "an interrupted search");
          slow.plans.clear();
          expect_fits(search_report(slow, heading, {.all = all}, columns), columns, "a search without plans");
        }
}

TEST_P(Fits, ASimulationItsShardingsAndItsComparison) {
  for (const std::string& text : GetParam().plans) {
    const Plan plan = parse_plan(text);
    const ProgramSet programs = lower(problem.model, problem.shape, plan);
    const SystemCostModel cost(system, programs);
    const Prediction prediction{simulate(programs, cost, {.timeline = true}), cost.mapping().describe()};
    PlanResult result = evaluate_plan(problem, plan, programs, machine(system, DType::kBF16));
    const Shardings all = shardings(problem.model, problem.shape, plan, cost.mapping());
    const StepTotals predicted = totals(prediction.report, plan.mesh);
    StepTotals counted = predicted;
    counted.step_time = {predicted.step_time.value * 1e6};
    for (auto& [key, bytes] : counted.traffic) bytes = bytes * 12'345;
    for (const int columns : kWidths) {
      for (const std::string& name : kNames) {
        result.not_runnable = name;
        result.runnable = name.size() < 10;
        expect_fits(plan_report(result, prediction, {name, name, system.usable_memory}, columns), columns,
                    "simulate " + text);
      }
      expect_fits(shardings_report(all, columns), columns, "shardings " + text);
      expect_fits(comparison_report(predicted, counted, columns), columns, "comparison " + text);
    }
  }
}

TEST_P(Fits, AModelsParameters) {
  for (const int columns : kWidths)
    for (const std::string& name : kNames) {
      ModelSpec model = problem.model;
      model.name = name;
      expect_fits(params_report(model, config.sequence_length, config.sequences, columns), columns,
                  "params");
    }
}

INSTANTIATE_TEST_SUITE_P(
    Configurations, Fits,
    testing::Values(Training{"jaxformer-moe1b.json",
                             "v4:2x4x4",
                             {"32x1x1,fsdp=3", "8x2x2,schedule=gpipe,microbatches=4,fsdp=3,recompute=full",
                              "16x1x2,microbatches=4,fsdp=1", "1x16x2,microbatches=256"}},
                    Training{"moe-small.json",
                             "v4:2x2x1",
                             {"4x1x1,fsdp=2", "2x2x1,microbatches=4,fsdp=1", "1x2x2,microbatches=8", "1x4x1"}}),
    [](const auto& info) { return info.param.configuration == "moe-small.json" ? "Small" : "Published"; });

}  // namespace
}  // namespace meshwright
