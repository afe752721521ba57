// Model x Plan -> Program. The only place where a plan becomes operations: it knows layouts and schedules, and no
// hardware and no MPI.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/plan.h"
#include "model/program/program.h"
#include "model/spec.h"

namespace meshwright {

// What a step trains on, whatever the plan.
struct TrainingShape {
  std::int64_t sequences = 0;   // of a step, over all dp shards
  std::int64_t tokens = 0;      // of a sequence
  DType compute = DType::kF32;  // of activations and of the weights that products read
  bool train = true;            // false: no dropout, and experts take every token (capacity = tokens)

  bool operator==(const TrainingShape&) const = default;
};

// Why a plan cannot be lowered for this model and shape. Empty: it is legal. The rules are DESIGN's "Legal plans":
// tp divides the heads and the sequence; pp at most the layers; dp divides the sequences of a step; microbatches divide
// the sequences of a dp shard; fsdp is 0 when dp is 1. `reason` is a short name for counting, `detail` has the numbers.
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

// Layers per stage, contiguous, at least one each: the cut whose costliest stage is cheapest (forward FLOPs of a layer;
// the logits belong to the last stage), and among those the one with the least sum of squares; ties to earlier cuts late.
std::vector<int> balanced_stages(const ModelSpec& model, const TrainingShape& shape, int stages);

// The programs of every stage. Asserts that the plan is legal. `stage_layers`: balanced_stages() if not given.
ProgramSet lower(const ModelSpec& model, const TrainingShape& shape, const Plan& plan,
                 const std::optional<std::vector<int>>& stage_layers = std::nullopt);

// The part of a model description that lowering can't express yet, by name ("multi-head attention"); empty if none.
std::optional<std::string> not_lowerable(const ModelSpec& model);

}  // namespace meshwright
