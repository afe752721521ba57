// The pieces of a step or of an evaluation, which all stages share: each kind of layer, the embedding, the head, messages, and
// what FSDP does with parameters, gradients and optimizer state. An evaluation has of these what leads to the loss. A layer's
// are named by its kind, "moe.forward" and "dense.forward"; where a model has several kinds of these, also by the first layer
// of the kind: "dense.layer5.forward".
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "model/lowering/lower.h"
#include "model/plan.h"
#include "model/program/program.h"
#include "model/spec.h"

namespace meshwright {

// Pieces of one kind of layer, or of a block outside the layers; -1: not needed.
struct BlockPieces {
  int forward = -1, backward = -1;
  int gather = -1;       // weights over dp, FSDP 3
  int reduce_each = -1;  // gradients over dp after every microbatch, FSDP 2 and 3
  int reduce_last = -1;  // what is left to reduce after the last one
  int clear = -1;        // gradient accumulators to zero
  int norm = -1, update = -1;
  std::int64_t stash = 0;  // bytes that the forward saves for one microbatch's backward
  bool experts = false;    // the layer is a mixture of experts
};

struct StepPieces {
  Plan plan;
  std::int64_t width = 0;               // C
  ProgramSet set;                       // all but the stages
  std::shared_ptr<StateLayout> layout;  // the set's, while its stages can change; null: another set's

  std::vector<int> kind_of_layer;  // index in kinds
  std::vector<BlockPieces> kinds;
  BlockPieces embedding, last;  // blocks outside the layers: of the first stage, of the last; one stage: the same
  int embed = -1, embed_backward = -1, head = -1;
  int send_forward = -1, recv_forward = -1, send_backward = -1, recv_backward = -1;
  int reduce_ends = -1;  // the table's gradients, over the two stages that hold it
  int clear_metrics = -1, metrics_tp_dp = -1, metrics_pp = -1;
  int metrics_members = 1;  // of the largest group that sums metrics
  // Where the balance loss is over the step's tokens (kBalance): what a sum of them begins and ends with.
  int clear_balance = -1, sum_balance = -1;

  // Receive buffers of reductions: where each group's begins in its frame, and all of them. Bytes.
  std::array<std::int64_t, kGroups> comm_scratch{};
  std::int64_t comm_scratch_bytes = 0;

  std::int64_t own_rows() const { return set.step.tokens * set.step.microbatch / plan.mesh.tp; }
  std::int64_t metrics_elements() const { return kLoadFirst + set.experts; }
  bool trains() const { return set.purpose == Purpose::kTraining; }
  // Bytes of one such sum in the arena; 0: there is none.
  std::int64_t balance_bytes() const {
    return set.balance_tokens() > 0 ? align_up(set.experts * size_of(set.state)) : 0;
  }
  bool state_sharded() const { return plan.fsdp >= 1; }
  bool low_precision() const { return set.compute != set.state; }
  // Elements of master weights, moments and reduced gradients that a rank keeps of a unit or a block.
  template <class Part>
  std::int64_t shard_elements(const Part& part) const {
    return state_sharded() ? part.padded / plan.mesh.dp : part.padded;
  }
  const BlockPieces& of_block(int block) const;
};

StepPieces make_step_pieces(const ModelSpec& model, const TrainingShape& shape, const Plan& plan);
// Of evaluations of the state of `trained`.
StepPieces make_evaluation_pieces(const ModelSpec& model, const TrainingShape& shape, const Plan& plan,
                                  const ProgramSet& trained);

}  // namespace meshwright
