// Trains with a Program: the loop behind `meshwright run`.
#pragma once

#include <mpi.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "executor/data/batches.h"
#include "executor/executor.h"
#include "model/config.h"
#include "model/program/program.h"

namespace meshwright {

// Of all batches of one evaluation, means.
struct Evaluation {
  double loss = 0, cross_entropy = 0, balance = 0;
  double seconds = 0;  // data, and the programs of the slowest rank
};

// One step that has been run, on rank 0.
struct TrainedStep {
  std::int64_t step = 0;  // from 0
  double learning_rate = 0;
  double seconds = 0;           // of the slowest rank; data are read before
  std::int64_t peak_bytes = 0;  // of the arena, the largest over ranks
  StepResult result;
  std::optional<Evaluation> evaluation;  // where the weights that the step left were evaluated
};

// What one rank counted in the last step. Of compute, exposed communication and bubble: the medians, as of the step time.
struct RankCount {
  RankReport report;
  std::vector<std::int64_t> routed_rows;  // by layer
};

struct TrainSummary {
  double median_step_s = 0;  // without the first two steps, where there are more than four
  double first_loss = 0, last_loss = 0;
  std::optional<Evaluation> last_evaluation;
  double processor_share = 1;    // of the time of the steps: how much of it the rank that had the least ran on a core
  std::vector<RankCount> ranks;  // on rank 0: of all ranks, in rank order; elsewhere empty
  // On rank 0, if they were asked for: the trained parameters, [parameter][element], exactly what the state holds.
  std::vector<std::vector<double>> weights;
};

// After every `every` steps and after the last one the state is evaluated, on the same `batches` batches. No part of that is
// part of a step, nor changes what steps do.
struct EvaluationOptions {
  const ProgramSet* set = nullptr;  // of the state that is trained (lower_evaluation)
  Batches* data = nullptr;          // shaped for it
  std::int64_t every = 1, batches = 1;
};

struct TrainOptions {
  std::int64_t steps = 1;
  bool timeline = false;  // the counted reports of the last step have an interval per operation
  std::optional<EvaluationOptions> evaluation = {};
  std::function<void(const std::string&)> warn;  // called on rank 0: once a run, when the loss has grown
  std::optional<ParameterSource> weights;        // that training starts from; none: drawn from config.seed
  bool keep_weights = false;                     // the summary gets the trained ones; the same on all ranks
};

// Whether a loss says that training goes astray: more than twice the first step's, or more than twice what guessing among
// all tokens costs, ln(vocabulary), whichever is larger.
bool loss_has_grown(double loss, double first_loss, std::int64_t vocabulary);

// Collective over `comm` (set.mesh.ranks() ranks). `data` must be shaped for set.step. Initial weights (where
// none are given) and dropout are drawn from config.seed, learning rates and clipping follow the config. `model` is the one that `set` was lowered from.
// on_step is called on rank 0 after every step. Throws Diverged (executor/diverged.h), with what to try, on all ranks if
// the loss or a gradient is not finite: that step's update is not made.
TrainSummary train(const ProgramSet& set, const ModelSpec& model, const TrainingConfig& config, MPI_Comm comm,
                   Batches& data, const TrainOptions& options, const std::function<void(const TrainedStep&)>& on_step);

}  // namespace meshwright
