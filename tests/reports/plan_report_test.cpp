#include "reports/plan_report.h"

#include <gtest/gtest.h>

#include <cctype>
#include <sstream>

#include "model/config.h"
#include "planner/system_evaluator.h"
#include "sim/simulate.h"
#include "sim/system_cost_model.h"
#include "tests/systems.h"

namespace meshwright {
namespace {

// What `meshwright simulate` prints of a plan of moe-small on four chips whose links carry so many bytes a second.
std::string report_with_links_of(double bytes_per_s) {
  const TrainingConfig config = read_config(std::filesystem::path(REPOSITORY) / "configs" / "moe-small.json");
  System system = load_system("v4:2x2x1");
  std::get<LinkNetwork>(system.network).link = {bytes_per_s};
  const Problem problem{
      config.model,
      {.sequences = config.sequences, .tokens = config.sequence_length, .compute = DType::kBF16},
      system.devices()};
  const Plan plan = parse_plan("2x2x1,microbatches=4,fsdp=1");
  const ProgramSet programs = lower(problem.model, problem.shape, plan);
  const SystemCostModel cost(system, programs);
  const Prediction prediction{simulate(programs, cost, {.timeline = true}), cost.mapping().describe()};
  return plan_report(evaluate_plan(problem, plan, programs, machine(system, DType::kBF16)), prediction,
                     {config.name, system.name, system.usable_memory}, 120);
}

// The lines from the one that begins with `first` to the next empty one.
std::string section(const std::string& text, const std::string& first) {
  const std::size_t begin = text.find(first);
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find("\n\n", begin) - begin);
}

// Numbers that read as zero: "0.0", "0.00", not "0" or "10.0".
std::vector<std::string> zeros(const std::string& text) {
  std::vector<std::string> found;
  std::istringstream words(text);
  for (std::string word; words >> word;)
    if (word.size() > 1 && word.find_first_not_of("0.") == std::string::npos) found.push_back(word);
  return found;
}

TEST(PlanReport, TimesKeepTheirDigitsHoweverSlowTheLinksAre) {
  for (const double bytes_per_s : {4.5e10, 1e6, 1e4, 1e3}) {
    SCOPED_TRACE(bytes_per_s);
    const std::string text = report_with_links_of(bytes_per_s);
    const std::string stages = section(text, "Stages, of one device each");
    ASSERT_NE(stages, "") << text;
    EXPECT_TRUE(zeros(stages).empty()) << stages;
    std::istringstream rows(section(text, "Where the time of a device goes"));
    int seen = 0;
    for (std::string row; std::getline(rows, row);) {
      std::istringstream words(row);
      std::string name, times, time;
      words >> name >> times >> time;
      if (times.empty() || !std::isdigit(static_cast<unsigned char>(times[0]))) continue;  // headings, waiting
      ++seen;
      EXPECT_NE(time.find_first_not_of("0."), std::string::npos) << row;
    }
    EXPECT_GT(seen, 5) << text;
  }
}

TEST(PlanReport, EveryTimeOfTheFiguresHasItsOwnUnit) {
  const std::string figures = section(report_with_links_of(1e3), "figure");
  EXPECT_NE(figures.find(" h"), std::string::npos) << figures;
  const std::size_t at = figures.find("exposed communication");
  ASSERT_NE(at, std::string::npos);
  EXPECT_TRUE(zeros(figures.substr(at, figures.find('\n', at) - at)).empty()) << figures;
}

}  // namespace
}  // namespace meshwright
