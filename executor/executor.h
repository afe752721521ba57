// Interprets a rank's Program with real tensors over real MPI. Nothing about a plan is decided here, and one rank is the
// plan 1x1x1, not another code path. It computes in what the Program's tensors say: f32, f64, or bf16 with state in f32.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <type_traits>
#include <utility>
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

// What one step is given. fill(m, inputs, targets) writes the ids of microbatch m that this rank holds: its dp shard's
// B sequences, its tp part of the sequence, (Tl, B). It is called on the first and last stage, for every m, before the
// step's time begins.
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

class Executor {
 public:
  // Collective over `comm`, whose size is set.mesh.ranks(). Binds the rank's program: all kernels, addresses and waits of a
  // step are decided here. `set` must outlive the executor.
  Executor(const ProgramSet& set, MPI_Comm comm, ExecutorOptions options);
  ~Executor();

  const MeshComm& mesh() const { return mesh_; }
  const Program& program() const { return program_; }

  // Fills every parameter kept here, asking `value` for no others. Moments become 0. Collective.
  void load_parameters(const ParameterSource& value);

  // Collective. Throws Diverged, on all ranks, if the gradients' norm or the loss is not finite: before the update, so
  // that weights and moments stay as they were.
  StepResult run_step(const StepInput& input);

  // Whole tensors from all ranks' parts, for tests and small models: [parameter][element], the same on every rank, exactly
  // what the state holds. Gradients are those of the last step, before clipping. Collective.
  enum class State { kParameters, kGradients, kMoment1, kMoment2 };
  std::vector<std::vector<double>> gather(State state);

  // Sees every chunk of logits before it becomes gradients; for tests.
  LogitsWatcher on_logits;

 private:
  // A piece's operations, without those that only end lives.
  struct BoundPiece {
    struct Entry {
      BoundOp run;
      const Op* op;
      int index;  // of the piece's operations
      bool communicates;
    };
    const Piece* piece = nullptr;
    std::vector<Entry> ops;
  };
  // One call of one slot.
  struct BoundCall {
    const BoundPiece* piece;
    const Slot* slot;
    const Call* call;
    std::array<std::byte*, kFrames> frames;
    const std::int64_t* sequences;
    int layer, slot_index, call_index;
  };
  // An operation that writes where a message is still being sent from waits for the send.
  struct BoundWait {
    std::size_t call, op;  // of calls_, of its piece's ops
    std::size_t send;      // of the step's, in program order
  };
  class Run;

  void bind_step();
  void poison(std::int64_t begin, std::int64_t end);  // bytes of the arena
  std::int64_t outside_bytes() const;                 // held for the step beside the arena
  template <class Real>
  void load(const ParameterSource& value);
  template <class Real>
  std::vector<std::vector<double>> gather_as(State state);
  template <class Real>
  void find_not_finite(std::vector<int>& lowest_rank) const;
  void fill_tokens(const StepInput& input);
  // Loss and what it is made of, from the sums over the step.
  void set_losses(const double* sums, StepResult& result) const;
  [[noreturn]] void stop_diverged(std::int64_t step, const double* sums) const;  // collective

  const ProgramSet& set_;
  ExecutorOptions options_;
  MeshComm mesh_;
  const Program& program_;
  const std::vector<BlockState>& state_;
  Arena arena_;
  BindContext context_;
  std::vector<BoundPiece> pieces_;       // by index in set_.pieces; those that this stage calls
  std::vector<BoundCall> calls_;         // of the step, in program order
  std::vector<BoundWait> waits_;         // in program order
  std::vector<std::int64_t> sequences_;  // by microbatch, then sequence: its number in the step
  std::size_t sends_ = 0;
  const double* metrics_ = nullptr;
  std::int64_t high_water_ = 0;
  std::vector<std::pair<std::int64_t, std::int64_t>> sent_;  // by send: bytes of the arena
  std::optional<MemoryPeak> live_;                           // counted in the first step: the others do the same
  std::int64_t tokens_offset_ = -1;
};

// Initial weights as the model describes them, drawn by (seed, tensor, element): the same on every mesh. `parameters` must
// outlive the source.
ParameterSource initial_weights(const std::vector<ParameterSpec>& parameters, std::uint64_t seed);

}  // namespace meshwright
