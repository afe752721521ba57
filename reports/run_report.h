// The lines of a training run, for people and as JSON.
#pragma once

#include <cstdint>
#include <string>

#include "model/input/json_reader.h"
#include "model/program/units.h"

namespace meshwright {

struct StepLine {
  std::int64_t step = 0, steps = 0;  // this one, counted from 1, of so many
  double loss = 0, cross_entropy = 0, balance_loss = 0, gradient_norm = 0, learning_rate = 0;
  double tokens_per_s = 0;
  Seconds predicted_step_time, step_time;  // the latter measured
  Bytes peak_memory;                       // of the rank that needs the most
};

// Columns above the lines; the lines below are aligned with them.
std::string step_heading();
std::string step_text(const StepLine& line);
// step, loss, cross_entropy, balance_loss, gradient_norm, learning_rate, tokens_per_s, predicted_step_time_s, step_time_s,
// peak_memory_bytes.
OrderedJson to_json(const StepLine& line);

}  // namespace meshwright
