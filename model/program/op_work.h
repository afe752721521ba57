// What an operation costs, whoever runs it: matrix multiply-adds, bytes of memory touched, bytes sent.
#pragma once

#include <cstdint>

#include "model/program/op.h"
#include "model/program/program.h"
#include "model/program/units.h"

namespace meshwright {

// Compute work of one operation on one rank. FLOPs are those of matrix products only (a multiply-add is 2), as the
// executor's kernels count them. m, n, k: shape of the product (batch of them), 0 where there is none.
struct Work {
  Flops flops;
  Bytes bytes;  // every operand read or written once
  std::int64_t m = 0, n = 0, k = 0, batch = 1;
  DType dtype = DType::kF32;  // of the product's inputs, else of the largest operand
  OpKind kind = 0;
};

// Work of `op` of `piece`. `routed_rows`: rows that were routed to this rank's experts, all experts together;
// -1: experts at capacity. Communication operations and Free have none.
Work work_of(const Op& op, const Piece& piece, std::int64_t routed_rows = -1);

// Whether operations of this kind are matrix products, which count FLOPs; all others count none.
bool is_product(OpKind kind);

// FLOPs of one rank's step. `routed_rows`: by layer of the model, rows that were routed to this rank's experts over all
// microbatches of the step; empty: experts at capacity.
Flops program_flops(const ProgramSet& set, const Program& program, const std::vector<std::int64_t>& routed_rows = {});

// FLOPs of causal attention in row blocks, per (batch, query head) the blocks that are computed:
//   forward  sum over blocks of 2 * rows * cols * (head_dim + rope_width) + 2 * rows * cols * value_dim
//   backward sum over blocks of 2 * rows * cols * (3 * (head_dim + rope_width) + 2 * value_dim)
Flops attention_flops(const AttentionShape& shape);
Flops attention_backward_flops(const AttentionShape& shape);

// Size of a collective's whole buffer in one group: the gathered, or the unreduced array.
Bytes buffer_bytes(const Collective& op, const Piece& piece, const MeshShape& mesh);

// Bytes that one member sends, by the algorithm's definition, for a buffer of n bytes in a group of p:
//   ring all-gather and reduce-scatter n (p-1)/p; ring all-reduce 2 n (p-1)/p; direct all-reduce n (p-1).
Bytes bytes_sent(CollectiveKind kind, Algorithm algorithm, Bytes buffer, int members);
// Of any operation: a Send's message, a collective's share; 0 for the rest.
Bytes bytes_sent(const Op& op, const Piece& piece, const MeshShape& mesh);

}  // namespace meshwright
