#include "reports/run_report.h"

#include <fmt/format.h>

#include "reports/figures.h"

namespace meshwright {
namespace {

constexpr const char* kLine = "{:>11}  {:>8}  {:>8}  {:>8}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}";

}  // namespace

std::string step_heading() {
  return fmt::format(fmt::runtime(kLine), "step", "loss", "cross-e.", "balance", "grad norm", "lr", "tokens/s",
                     "pred. ms", "step ms", "peak MiB");
}

std::string step_text(const StepLine& line) {
  return fmt::format(fmt::runtime(kLine), fmt::format("{}/{}", line.step, line.steps), fmt::format("{:.4f}", line.loss),
                     fmt::format("{:.4f}", line.cross_entropy), fmt::format("{:.4f}", line.balance_loss),
                     fmt::format("{:.4g}", line.gradient_norm), fmt::format("{:.3e}", line.learning_rate),
                     with_commas(static_cast<std::int64_t>(line.tokens_per_s + 0.5)),
                     milliseconds(line.predicted_step_time), milliseconds(line.step_time),
                     fmt::format("{:.1f}", static_cast<double>(line.peak_memory.value) / (1 << 20)));
}

OrderedJson to_json(const StepLine& line) {
  return {{"step", line.step},
          {"loss", line.loss},
          {"cross_entropy", line.cross_entropy},
          {"balance_loss", line.balance_loss},
          {"gradient_norm", line.gradient_norm},
          {"learning_rate", line.learning_rate},
          {"tokens_per_s", line.tokens_per_s},
          {"predicted_step_time_s", line.predicted_step_time.value},
          {"step_time_s", line.step_time.value},
          {"peak_memory_bytes", line.peak_memory.value}};
}

}  // namespace meshwright
