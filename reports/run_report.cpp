#include "reports/run_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "reports/figures.h"

namespace meshwright {
namespace {

struct StepColumn {
  const char* header;
  int width;  // 0: of the number of steps, twice
  int rank;   // columns appear in this order as there is room
  std::string (*text)(const StepLine&);
};

const std::array<StepColumn, 12> kStepColumns{{
    {"step", 0, 1, [](const StepLine& l) { return fmt::format("{}/{}", l.step, l.steps); }},
    {"loss", 8, 2, [](const StepLine& l) { return fmt::format("{:.4f}", l.loss); }},
    {"cross-e.", 8, 10, [](const StepLine& l) { return fmt::format("{:.4f}", l.cross_entropy); }},
    {"balance", 8, 11, [](const StepLine& l) { return fmt::format("{:.4f}", l.balance_loss); }},
    {"grad norm", 9, 8, [](const StepLine& l) { return fmt::format("{:.4g}", l.gradient_norm); }},
    {"lr", 9, 9, [](const StepLine& l) { return fmt::format("{:.3e}", l.learning_rate); }},
    {"tokens/s", 9, 3, [](const StepLine& l) { return with_commas(static_cast<std::int64_t>(l.tokens_per_s + 0.5)); }},
    {"MFU %", 5, 4, [](const StepLine& l) { return l.mfu ? percent(*l.mfu) : std::string("-"); }},
    {"predicted", 9, 7, [](const StepLine& l) { return seconds_text(l.predicted_step_time.value); }},
    {"measured", 9, 5, [](const StepLine& l) { return seconds_text(l.step_time.value); }},
    {"left", 9, 6, [](const StepLine& l) { return seconds_text(l.time_left.value); }},
    {"memory", 10, 12, [](const StepLine& l) { return bytes_text(l.peak_memory); }},
}};

template <class Text>
std::string line_of(std::int64_t steps, int columns, Text&& text) {
  constexpr int kAlways = 7;
  const auto width = [&](const StepColumn& c) {
    return c.width ? c.width : std::max(4, static_cast<int>(2 * fmt::format("{}", steps).size()) + 1);
  };
  int shown = 0, taken = -2;
  while (shown < static_cast<int>(kStepColumns.size())) {
    const auto& next = *std::find_if(kStepColumns.begin(), kStepColumns.end(),
                                     [&](const StepColumn& c) { return c.rank == shown + 1; });
    if (shown >= kAlways && taken + 2 + width(next) > columns) break;
    taken += 2 + width(next);
    ++shown;
  }
  std::string line;
  for (const StepColumn& c : kStepColumns)
    if (c.rank <= shown) line += fmt::format("{}{:>{}}", line.empty() ? "" : "  ", text(c), width(c));
  return line;
}

}  // namespace

std::string step_heading(std::int64_t steps, int columns) {
  return line_of(steps, columns, [](const StepColumn& c) { return std::string(c.header); });
}

std::string step_text(const StepLine& line, int columns) {
  std::string text = line_of(line.steps, columns, [&](const StepColumn& c) { return c.text(line); });
  if (const auto& v = line.validation)
    text += fmt::format("\n  validation loss {:.4f} (cross-entropy {:.4f}, balance {:.4f}), {}", v->loss,
                        v->cross_entropy, v->balance_loss, seconds_text(v->time.value));
  return text;
}

OrderedJson to_json(const StepLine& line) {
  OrderedJson json{{"step", line.step},
                   {"loss", line.loss},
                   {"cross_entropy", line.cross_entropy},
                   {"balance_loss", line.balance_loss},
                   {"gradient_norm", line.gradient_norm},
                   {"learning_rate", line.learning_rate},
                   {"tokens_per_s", line.tokens_per_s},
                   {"mfu", line.mfu ? OrderedJson(*line.mfu) : OrderedJson(nullptr)},
                   {"predicted_step_time_s", line.predicted_step_time.value},
                   {"step_time_s", line.step_time.value},
                   {"time_left_s", line.time_left.value},
                   {"peak_memory_bytes", line.peak_memory.value}};
  if (const auto& v = line.validation) {
    json["validation_loss"] = v->loss;
    json["validation_cross_entropy"] = v->cross_entropy;
    json["validation_balance_loss"] = v->balance_loss;
    json["validation_time_s"] = v->time.value;
  }
  return json;
}

std::string duration_warning(Seconds step, std::int64_t steps, bool at_least) {
  const double all = step.value * static_cast<double>(steps);
  if (step.value <= 60 && all <= 3600) return "";
  return fmt::format("a step {} {}, all {} of them {}: --steps runs fewer, --rehearse the same program at reduced size",
                     at_least ? "takes at least" : "is predicted to take", seconds_text(step.value), with_commas(steps),
                     seconds_text(all));
}

bool far_apart(Seconds predicted, Seconds measured) {
  constexpr double kFar = 1.3;
  return measured.value > kFar * predicted.value || predicted.value > kFar * measured.value;
}

std::vector<std::string> reasons_apart(Seconds predicted, Seconds measured, const RunConditions& c) {
  constexpr double kNoise = 1.1;  // rates of one machine differ by less than this between two measurements
  if (c.predicted_for != c.ran_on && c.calibrated_rate == 0)
    return {fmt::format("predicted for {}, measured on {}", c.predicted_for, c.ran_on)};
  std::vector<std::string> reasons;
  const bool slower = measured > predicted;
  const auto gflops = [](double rate) { return fmt::format("{:.0f}", rate / 1e9); };
  if (c.predicted_for != c.ran_on)
    reasons.push_back(fmt::format("calibrated on {}, run on {}", c.predicted_for, c.ran_on));
  if (slower && c.ranks > c.cores) reasons.push_back(fmt::format("{} ranks share {} cores", c.ranks, c.cores));
  if (slower && c.ranks <= c.cores && c.processor_share * kNoise < 1)
    reasons.push_back(
        fmt::format("a rank had its core for {:.0f} % of the time: other work ran beside it", c.processor_share * 100));
  if (slower ? c.rate_now * kNoise < c.calibrated_rate : c.rate_now > kNoise * c.calibrated_rate)
    reasons.push_back(
        fmt::format("calibrated at {} GFLOP/s of matrix products a rank, {} now: `meshwright calibrate` "
                    "measures anew",
                    gflops(c.calibrated_rate), gflops(c.rate_now)));
  if (reasons.empty())
    reasons.push_back(fmt::format(
        "no reason was found in the machine: matrix products run at {} GFLOP/s a rank, calibrated at {}, and "
        "the ranks had their cores for {:.0f} % of the time; so the prediction itself is off",
        gflops(c.rate_now), gflops(c.calibrated_rate), c.processor_share * 100));
  return reasons;
}

}  // namespace meshwright
