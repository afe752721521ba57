// Operations of a piece as functions that only run: the kernel is chosen by operation and dtypes, every operand is a place in
// a frame of the call, with its type, leading dimension and this rank's part of it. Made before the first step, once per
// piece: where a call's frames lie in the arena comes with the call, so that nothing grows with layers x microbatches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "executor/comm/collectives.h"
#include "executor/comm/mesh_comm.h"
#include "executor/kernels/rope.h"
#include "executor/routing_record.h"
#include "model/program/program.h"

namespace meshwright {

// Sees a chunk of logits, in the compute dtype of the Program, before it becomes gradients.
using LogitsWatcher =
    std::function<void(std::int64_t first_row, std::int64_t rows, std::int64_t vocab, const void* logits)>;

// What a step gives to its operations.
struct StepState {
  std::int64_t step = 0;  // counts optimizer steps from 0
  double learning_rate = 0;
  RoutingRecord* record = nullptr;
  const RoutingRecord* replay = nullptr;
  const LogitsWatcher* on_logits = nullptr;  // none: empty
  std::vector<std::int64_t> routed_rows;     // by layer of the model
  std::vector<PendingSend> sends;            // of the step, in program order
  std::size_t next_send = 0;
};

// What a call gives to its operations.
struct CallState {
  std::byte* const* frames = nullptr;  // where the call's frames begin, by Frame
  const std::int64_t* sequences =
      nullptr;  // of the slot's microbatch, numbered over the step; null outside microbatches
  int layer = -1;
  StepState* step = nullptr;
};

using BoundOp = std::function<void(const CallState&)>;

// What operations share beside tensors. Must outlive what was bound with it.
class BindContext {
 public:
  BindContext(const ProgramSet& set, const MeshComm& mesh, std::uint64_t seed);  // of dropout

  const ProgramSet& set() const { return set_; }
  const MeshComm& mesh() const { return mesh_; }
  std::uint64_t seed() const { return seed_; }
  template <class Real>
  const kernels::RopeTable<Real>& rope_table(const RopeSpec& spec, std::int64_t width);
  std::int64_t bytes() const;  // of the tables and of scratch
  std::int32_t* routing_scratch() { return routing_scratch_.data(); }

 private:
  template <class Real>
  using Tables = std::vector<std::unique_ptr<kernels::RopeTable<Real>>>;

  const ProgramSet& set_;
  const MeshComm& mesh_;
  std::uint64_t seed_;
  Tables<float> tables_f32_;
  Tables<double> tables_f64_;
  std::vector<std::int32_t> routing_scratch_;
};

// Asserts that operands have the dtypes that the operation's kernel is made for. Empty for Free.
BoundOp bind(const Op& op, const Piece& piece, BindContext& context);

}  // namespace meshwright
