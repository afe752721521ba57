// The lines of a training run, for people and as JSON, and what is said before and after them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/input/json_reader.h"
#include "model/program/units.h"

namespace meshwright {

// Of an evaluation.
struct ValidationLine {
  double loss = 0, cross_entropy = 0, balance_loss = 0;
  Seconds time;
};

struct StepLine {
  std::int64_t step = 0, steps = 0;  // this one, counted from 1, of so many
  double loss = 0, cross_entropy = 0, balance_loss = 0, gradient_norm = 0, learning_rate = 0;
  double tokens_per_s = 0;
  std::optional<double> mfu;                 // none: the peak of the machine that runs is not known
  Seconds predicted_step_time, step_time;    // the latter measured
  Seconds time_left;                         // of the run, at the pace so far
  Bytes peak_memory;                         // of the rank that needs the most
  std::optional<ValidationLine> validation;  // where what the step left was evaluated
};

// Headers above the lines; the lines below are aligned with them. In 80 columns: step, loss, gradient norm, tokens/s, MFU,
// step time as predicted and as measured, time left; where there is room, the rest. Without the gradient norm where the
// number of steps is long.
std::string step_heading(std::int64_t steps, int columns);
std::string step_text(const StepLine& line, int columns);  // with a line of its own for the validation
// step, loss, cross_entropy, balance_loss, gradient_norm, learning_rate, tokens_per_s, mfu (or null),
// predicted_step_time_s, step_time_s, time_left_s, peak_memory_bytes; where there is a validation: validation_loss,
// validation_cross_entropy, validation_balance_loss, validation_time_s.
OrderedJson to_json(const StepLine& line);

// What is to be known before a run begins whose steps take more than a minute, or all of them more than an hour.
// `at_least`: the time is a lower bound. Empty where there is nothing to say.
std::string duration_warning(Seconds step, std::int64_t steps, bool at_least);

// Whether measured and predicted differ by more than a factor of 1.3.
bool far_apart(Seconds predicted, Seconds measured);

// What is known of a run whose step times are far apart from the prediction.
struct RunConditions {
  std::string predicted_for, ran_on;  // a device each: "a core of ...", "TPU v4 chip"
  int ranks = 1, cores = 1;
  double processor_share = 1;  // of the time of the steps, of the rank that had a core for the least of it
  // FLOP/s of the calibration's largest matrix products, all ranks at once: when it was made, and after the run.
  double calibrated_rate = 0, rate_now = 0;
};
// Why, as far as that was measured: a sentence per reason, or one that says that none of them explains it.
std::vector<std::string> reasons_apart(Seconds predicted, Seconds measured, const RunConditions& conditions);

}  // namespace meshwright
