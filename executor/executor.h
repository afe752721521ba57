// Interprets a rank's Program with real tensors over real MPI. Nothing about a plan is decided here, and one rank is the
// plan 1x1x1, not another code path. It computes in what the Program's tensors say: f32, f64, or bf16 with state in f32.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <type_traits>
#include <vector>

#include "executor/arena.h"
#include "executor/bound_op.h"
#include "executor/comm/mesh_comm.h"
#include "executor/diverged.h"
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
  bool poison = false;  // for tests: memory that ends is filled with NaN, and who reads it is named (std::logic_error)
};

// What one step is given, or the evaluation of one batch. fill(m, inputs, targets) writes the ids of microbatch m that this rank holds: its dp shard's
// B sequences, its tp part of the sequence, (Tl, B). It is called on the first and last stage, for every m, before the
// step's time begins.
struct StepInput {
  std::int64_t step = 0;  // counts optimizer steps from 0; part of dropout's key
  double learning_rate = 0;
  std::function<void(int microbatch, std::int32_t* inputs, std::int32_t* targets)> fill;
  RoutingRecord* record = nullptr;        // gets the routing of this rank's sequences
  const RoutingRecord* replay = nullptr;  // routing is taken from here
};

// Of the whole step or batch, the same on every rank. An evaluation has no gradients, and drops nothing.
struct StepResult {
  double loss = 0;           // cross-entropy + balance weight * balance
  double cross_entropy = 0;  // mean over the step's tokens
  double balance = 0;  // what balance_weight is of (Balance); of a sequence's or a layer's tokens 1 a layer is even
  double gradient_norm = 0;  // before clipping
  double dropped = 0;        // assignments beyond an expert's capacity
  std::vector<double> load;  // per expert: assignments / T, mean over sequences, summed over layers
  std::vector<std::int64_t>
      routed_rows;    // of this rank, by layer of the model: rows that its experts got, all microbatches
  RankReport report;  // of this rank, measured
};

// Writes elements [first, first + n) of the whole tensor `parameter` (index in set.parameters), row-major, to `out`, in the
// dtype of the Program's state. Made of a function that takes either type of `out`, or the one that the Program keeps.
class ParameterSource {
 public:
  template <class F>
  ParameterSource(F f) {  // implicit: a lambda is a source
    if constexpr (std::is_invocable_v<F&, int, std::int64_t, std::int64_t, float*>) f32_ = f;
    if constexpr (std::is_invocable_v<F&, int, std::int64_t, std::int64_t, double*>) f64_ = f;
  }
  void operator()(int parameter, std::int64_t first, std::int64_t n, float* out) const {
    f32_(parameter, first, n, out);
  }
  void operator()(int parameter, std::int64_t first, std::int64_t n, double* out) const {
    f64_(parameter, first, n, out);
  }

 private:
  std::function<void(int, std::int64_t, std::int64_t, float*)> f32_;
  std::function<void(int, std::int64_t, std::int64_t, double*)> f64_;
};

enum class StateKind : std::uint8_t { kMaster, kMoment1, kMoment2 };
constexpr std::array<StateKind, 3> kStateKinds{StateKind::kMaster, StateKind::kMoment1, StateKind::kMoment2};

// Elements [first, first + count) of the master weights or of a moment of a parameter, row-major in the whole tensor, and
// where this rank keeps them, in the dtype of the Program's state.
struct StateRun {
  int parameter = 0;        // index in set.parameters()
  std::string_view tensor;  // its name
  StateKind kind = StateKind::kMaster;
  std::int64_t first = 0, count = 0;
  void* data = nullptr;
  bool owned = false;  // over all ranks, every element of every tensor and kind is owned once
};

// Keeps one state, and runs the programs that work on it. The state comes first in the arena; behind it lies what programs have
// for themselves, which none finds as it left it when another has run.
class Executor {
 public:
  // Collective over `comm`, whose size is set.mesh.ranks(). Binds the rank's programs: all kernels, addresses and waits are
  // decided here. `sets`: one of a purpose, all of one state layout; they must outlive the executor.
  Executor(const std::vector<const ProgramSet*>& sets, MPI_Comm comm, ExecutorOptions options);
  Executor(const ProgramSet& set, MPI_Comm comm, ExecutorOptions options)
      : Executor(std::vector<const ProgramSet*>{&set}, comm, options) {}
  ~Executor();

  const MeshComm& mesh() const { return mesh_; }

  // Fills every parameter kept here, asking `value` for no others. Moments become 0. Collective.
  void load_parameters(const ParameterSource& value);

  // Runs the program of a training. Collective. Throws Diverged, on all ranks, if the gradients' norm or the loss is not
  // finite: before the update, so that weights and moments stay as they were.
  StepResult run_step(const StepInput& input) { return run(Purpose::kTraining, input); }
  // Runs the program of an evaluation, which leaves the state as it is. Collective.
  StepResult evaluate(const StepInput& input) { return run(Purpose::kEvaluation, input); }

  // Visits all state that this rank keeps, padding apart: every parameter, its master weights and both moments.
  void for_each_state(const std::function<void(const StateRun&)>& f) const;

  // Whole tensors from all ranks' parts, for tests and small models: [parameter][element], the same on every rank, exactly
  // what the state holds. Gradients are those of the last step, before clipping, until an evaluation runs. Collective.
  enum class State { kParameters, kGradients, kMoment1, kMoment2 };
  std::vector<std::vector<double>> gather(State state);
  // The same of what this rank keeps; NaN elsewhere.
  std::vector<std::vector<double>> kept(State state);

  // Sees every chunk of logits before it becomes gradients; for tests.
  LogitsWatcher on_logits;

 private:
  struct Bound;
  class Run;

  StepResult run(Purpose purpose, const StepInput& input);
  Bound& bound(Purpose purpose);
  const StageState& stage_state() const;
  std::byte* at(std::int64_t offset) const { return arena_.data() + offset; }
  void poison(std::int64_t begin, std::int64_t end);  // bytes of the arena
  std::int64_t outside_bytes() const;                 // held for the steps beside the arena
  template <class Real>
  void load(const ParameterSource& value);
  template <class Real>
  std::vector<std::vector<double>> gather_as(State state, bool from_others);
  template <class Real>
  void find_not_finite(const Program& program, std::vector<int>& lowest_rank) const;
  [[noreturn]] void stop_diverged(const Bound& bound, std::int64_t step) const;  // collective

  const ProgramSet& set_;  // the first: layout and dtypes are those of all
  ExecutorOptions options_;
  MeshComm mesh_;
  Arena arena_;
  std::vector<std::unique_ptr<Bound>> bound_;  // by set
};

// Initial weights as the model describes them, drawn by (seed, tensor, element): the same on every mesh. `parameters` must
// outlive the source.
ParameterSource initial_weights(const std::vector<ParameterSpec>& parameters, std::uint64_t seed);

}  // namespace meshwright
