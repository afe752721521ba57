// Interprets a rank's Program with real tensors over real MPI. Nothing about a plan is decided here, and one rank is the
// plan 1x1x1, not another code path. Real: float, or double for the f64 twin (the ProgramSet must be lowered for it).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "executor/arena.h"
#include "executor/comm/collectives.h"
#include "executor/comm/mesh_comm.h"
#include "executor/diverged.h"
#include "executor/kernels/rope.h"
#include "executor/routing_record.h"
#include "model/modules/parameter.h"
#include "model/program/program.h"
#include "model/program/step_report.h"

namespace meshwright {

struct RankBeat;  // executor/launch/heartbeat.h

struct ExecutorOptions {
  std::uint64_t seed = 0;    // of dropout
  bool timeline = false;     // reports get an interval per operation
  RankBeat* beat = nullptr;  // is told what a step is at; none: steps that are no part of a run
};

// What one step is given. fill(m, inputs, targets) writes the ids of microbatch m that this rank holds: its dp shard's
// B sequences, its tp part of the sequence, (Tl, B). It is called on the first and last stage, for every m.
struct StepInput {
  std::int64_t step = 0;  // counts optimizer steps from 0; part of dropout's key
  double learning_rate = 0;
  std::function<void(int microbatch, std::int32_t* inputs, std::int32_t* targets)> fill;
  RoutingRecord* record = nullptr;        // gets the routing of this rank's sequences
  const RoutingRecord* replay = nullptr;  // routing is taken from here
};

// Of the whole step, the same on every rank.
struct StepResult {
  double loss = 0;           // cross-entropy + balance weight * balance
  double cross_entropy = 0;  // mean over the step's tokens
  double balance = 0;        // (E/k) * sum over layers of the mean over sequences of sum_e f[e] P[e]; 1 a layer is even
  double gradient_norm = 0;  // before clipping
  double dropped = 0;        // assignments beyond an expert's capacity
  std::vector<double> load;  // per expert: assignments / T, mean over sequences, summed over layers
  std::vector<std::int64_t>
      routed_rows;    // of this rank, by layer of the model: rows that its experts got, all microbatches
  RankReport report;  // of this rank, measured
};

template <class Real>
class Executor {
 public:
  // Collective over `comm`, whose size is set.mesh.ranks(). `set` must outlive the executor.
  Executor(const ProgramSet& set, MPI_Comm comm, ExecutorOptions options);
  ~Executor();

  const MeshComm& mesh() const { return mesh_; }
  const Program& program() const { return program_; }

  // Fills every parameter kept here: value(parameter, first, n, out) writes elements [first, first + n) of the whole
  // tensor `parameter` (index in set.parameters), row-major. Moments become 0.
  using ParameterSource = std::function<void(int parameter, std::int64_t first, std::int64_t n, Real* out)>;
  void load_parameters(const ParameterSource& value);

  // Collective. Throws Diverged, on all ranks, if the gradients' norm or the loss is not finite: before the update, so
  // that weights and moments stay as they were.
  StepResult run_step(const StepInput& input);

  // Whole tensors from all ranks' parts, for tests and small models: [parameter][element], the same on every rank.
  // Gradients are those of the last step, before clipping. Collective.
  enum class State { kParameters, kGradients, kMoment1, kMoment2 };
  std::vector<std::vector<Real>> gather(State state);

  // Sees every chunk of logits before it becomes gradients; for tests.
  std::function<void(std::int64_t first_row, std::int64_t rows, std::int64_t vocab, const Real* logits)> on_logits;

 private:
  class Interpreter;

  // Loss and what it is made of, from the sums over the step.
  void set_losses(const double* sums, StepResult& result) const;
  [[noreturn]] void stop_diverged(std::int64_t step, const double* sums) const;  // collective

  const ProgramSet& set_;
  ExecutorOptions options_;
  MeshComm mesh_;
  const Program& program_;
  const std::vector<BlockState>& state_;
  Arena arena_;
  std::vector<std::unique_ptr<kernels::RopeTable<Real>>> rope_tables_;
  std::int64_t tokens_offset_ = -1;
};

// Initial weights as the model describes them, drawn by (seed, tensor, element): the same on every mesh.
template <class Real>
typename Executor<Real>::ParameterSource initial_weights(const std::vector<ParameterSpec>& parameters,
                                                         std::uint64_t seed);

}  // namespace meshwright
