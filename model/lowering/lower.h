// Model x Plan -> Program. The only place where a plan becomes operations: it knows layouts and schedules, and no
// hardware and no MPI.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/plan.h"
#include "model/program/program.h"
#include "model/spec.h"

namespace meshwright {

// What a step trains on, whatever the plan.
struct TrainingShape {
  std::int64_t sequences = 0;                           // of a step, over all dp shards
  std::int64_t tokens = 0;                              // of a sequence
  DType compute = DType::kF32;                          // of activations and of the weights that products read
  bool train = true;                                    // false: no dropout, and experts take every token
  std::int64_t attention_block = 128;                   // rows of a block of scores
  std::int64_t logit_elements = std::int64_t{1} << 26;  // of one chunk of logits, at most; 16 rows at least
  AdamSpec adam{};                                      // of the optimizer's step

  bool operator==(const TrainingShape&) const = default;
};

// Why a plan cannot be lowered for this model and shape. Empty: it is legal. The rules are DESIGN's "Legal plans":
// tp divides the heads and the sequence; pp at most the layers; dp divides the sequences of a step; microbatches divide
// the sequences of a dp shard; the balance loss allows them under the schedule; fsdp is 0 when dp is 1; layers, where they
// are given, name every stage and add up to the model's. Any numbers may stand in the plan. `reason` is a short name for
// counting, `detail` has the numbers.
struct Illegality {
  std::string reason;  // "tp does not divide the heads"
  std::string detail;  // "12 heads, tp 8"
  std::string hint;    // "choose tp from 1, 2, 3, 4, 6, 12"
};
std::vector<Illegality> illegalities(const ModelSpec& model, const TrainingShape& shape, const Plan& plan);

// The generators' own condition, one of illegalities(): a schedule is written out slot by slot on every stage, so that pp x
// microbatches is at most kLargestSchedule (some hundred MB of slots).
constexpr std::int64_t kLargestSchedule = 1 << 18;
std::optional<Illegality> unschedulable(int pp, std::int64_t microbatches);

// Another of them: a balance loss over the step's tokens (Balance) is known when all forwards are over, and only then may a
// backward begin; one of all layers together counts a microbatch at a time.
std::optional<Illegality> unbalanced(const ModelSpec& model, Schedule schedule, std::int64_t microbatches);

// What a piece costs, in any one unit, at least 0 (in whole numbers below 2^53, equal costs tie exactly). A stage costs
// the larger of its two sums over the calls of a microbatch.
struct PieceCost {
  double busy = 0;    // keeps the device from computing anything else
  double beside = 0;  // communication that runs beside
};

struct StepPieces;

// Lowering in two steps, for who chooses the cut into stages by what the pieces cost.
class Lowering {
 public:
  // Makes the pieces, which are the same for every cut and schedule. Asserts that the plan is legal.
  Lowering(const ModelSpec& model, const TrainingShape& shape, const Plan& plan);
  ~Lowering();
  Lowering(const Lowering&) = delete;
  Lowering& operator=(const Lowering&) = delete;

  // Indices of the pieces that some stage calls for every microbatch: of the layers, the embedding and the head; not
  // messages, nor what happens once a step.
  std::vector<int> microbatch_pieces() const;

  // Layers per stage, contiguous, at least one each: the cut whose costliest stage is cheapest, and among those the one
  // with the least sum of squares; ties to earlier cuts late. `cost`: by index of piece; of microbatch_pieces().
  std::vector<int> balanced(const std::vector<PieceCost>& cost) const;
  // The same, by the FLOPs that the pieces execute: forward, backward, recomputation and logits.
  std::vector<int> balanced_by_flops() const;

  // Layers per stage, as equal as they can be.
  std::vector<int> even() const;

  // The programs of stages with so many layers; the next call replaces the stages. Asserts that the layers add up.
  const ProgramSet& cut(const std::vector<int>& layers) &;
  ProgramSet cut(const std::vector<int>& layers) &&;

 private:
  std::unique_ptr<StepPieces> pieces_;
};

// Layers per stage of a plan: its own, or where it has none those of Lowering::balanced_by_flops().
std::vector<int> stage_layers(const ModelSpec& model, const TrainingShape& shape, const Plan& plan);

// The programs of every stage, which have stage_layers(). Asserts that the plan is legal.
ProgramSet lower(const ModelSpec& model, const TrainingShape& shape, const Plan& plan);

// The programs that evaluate the state of `trained`, a set that lower() made: forwards alone, on the same mesh, stages and
// FSDP stage, of `shape.sequences` in `plan.microbatches`. No dropout, no capacity of experts, nothing kept for a backward,
// no gradient; the sums of the losses come together as at the end of a training step. `plan`: what `trained` was made of,
// but for the microbatches. Asserts that it is, and is legal for this shape.
ProgramSet lower_evaluation(const ModelSpec& model, const TrainingShape& shape, const Plan& plan,
                            const ProgramSet& trained);

// The fewest microbatches of at most `largest` sequences that divide the `sequences` of a dp shard.
int evaluation_microbatches(std::int64_t sequences, std::int64_t largest);

}  // namespace meshwright
