// Exact counts of parameters and matrix multiplications, from a ModelSpec alone: no plan, no hardware.
//
// Legend: C width, V vocabulary, T tokens a sequence, H heads, dh head width, lk and lq the latents of
// keys-values and of queries, R rope width, F hidden width of a feed-forward, E experts, k choices, S shared
// experts. Dense(i -> o) is a kernel (i, o) and, where there is one, a bias (o).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/program/tensor.h"
#include "model/program/units.h"
#include "model/spec.h"

namespace meshwright {

enum class ModuleKind : std::uint8_t {
  kEmbedding,  // the token table
  kPositions,  // the table of learned positions
  kNorm,       // norm0 and norm1 of a layer
  kAttention,
  kFfn,     // a dense feed-forward
  kShared,  // shared experts
  kRouter,
  kExperts,  // routed experts
  kFinalNorm,
  kHead,  // of an untied embedding
};

enum class Init : std::uint8_t {
  kOnes,
  kZeros,
  kNormal,           // N(0, 1/C)
  kTruncatedNormal,  // N(0, 1) cut to (-2, 2), times sqrt(1/fan_in) / 0.87962566103423978: variance 1/fan_in
};

constexpr int kNoLayer = -1;

// One parameter tensor of the model, whole.
struct ParameterSpec {
  std::string name;  // "layers.7.mla.down.kernel", "embedding.embedding"
  Shape shape;       // kernels (in, out), of routed experts (E, in, out); biases (out), (E, out); norms (C)
  ModuleKind module = ModuleKind::kEmbedding;
  Init init = Init::kZeros;
  std::int64_t fan_in = 0;  // rows of one kernel; 0 where init doesn't use it
  int layer = kNoLayer;

  bool operator==(const ParameterSpec&) const = default;
};

// All parameters, in the order in which everything lists them: embedding.embedding, embedding.positions, the
// layers, embedding.norm.gamma and .beta, head.kernel. In a layer, as far as it has them:
//   norm0.gamma norm0.beta norm1.gamma norm1.beta
//   mla.down mla.kr mla.qr     C->lk+lq, lk+lq->R, lk+lq->R*H
//   mla.kvup mla.qup mla.out   lk->2*H*dh, lq->H*dh, H*dh->C
//     or mha.qkv mha.out       C->(H+2*Hkv)*dh, H*dh->C
//   ffn.0 ffn.gate ffn.1       C->F, C->F, F->C
//     or moe.shared moe.router moe.expert.0 moe.expert.1   C->S*C, C->E, E x C->F, E x F->C
// each of the latter .kernel, then .bias. Columns of kvup: keys of all heads, then values; of qkv: q, k, v.
std::vector<ParameterSpec> parameters(const ModelSpec& model);

// Parameters of one layer, by module.
struct LayerParameters {
  std::int64_t norms = 0;
  std::int64_t attention = 0;
  std::int64_t ffn = 0;  // dense feed-forward
  std::int64_t shared = 0;
  std::int64_t router = 0;
  std::int64_t experts = 0;         // all E
  std::int64_t chosen_experts = 0;  // k of them

  std::int64_t total() const { return norms + attention + ffn + shared + router + experts; }
  std::int64_t active() const { return norms + attention + ffn + shared + router + chosen_experts; }
  bool operator==(const LayerParameters&) const = default;
};

struct ParameterCount {
  std::int64_t embedding = 0;  // V*C
  std::int64_t positions = 0;
  std::vector<LayerParameters> layers;
  std::int64_t final_norm = 0;
  std::int64_t head = 0;  // V*C of an untied embedding

  std::int64_t total() const;   // total_parameters
  std::int64_t active() const;  // active_parameters: layers only, k of E experts, shared ones included
};

ParameterCount count_parameters(const ModelSpec& model);

// Matrix multiply-adds of one layer forward over one sequence, 2 FLOPs each; biases, norms, activations,
// softmax and rotations are not counted. With T tokens:
//   projections  2 T * (elements of the attention's kernels)
//   scores       T^2 * H * (dqk + dv): q k^T and w v, 2 T^2 each per channel, causal at half;
//                dqk = dh + R and dv = dh of latent attention, else dh and dh
//   ffn, shared, router  2 T * (elements of their kernels)
//   experts      2 T * k * (elements of one expert's kernels): every choice kept, none dropped
struct LayerFlops {
  Flops projections, scores, ffn, shared, router, experts;

  Flops total() const { return projections + scores + ffn + shared + router + experts; }
  bool operator==(const LayerFlops&) const = default;
};
LayerFlops layer_forward_flops(const LayerSpec& layer, std::int64_t width, std::int64_t sequence_length);

// Logits of one sequence: 2 T * C * V. The look-up of the embedding is no multiplication.
Flops logits_forward_flops(const ModelSpec& model, std::int64_t sequence_length);

// One sequence forward: all layers and the logits.
Flops forward_flops(const ModelSpec& model, std::int64_t sequence_length);

// model_flops of a step over `sequences` sequences, all devices: 3 * forward (backward multiplies twice as
// much), no recomputation. A double, as the steps of the largest models pass 2^63; exact up to 2^53.
double model_flops(const ModelSpec& model, std::int64_t sequence_length, std::int64_t sequences);

// Cross-entropy to expect before training: ln V + 1/2. The final norm makes every token's state of unit mean
// square, so that logits against a table of N(0, 1/C) have variance 1, and E[ln sum exp] = ln V + 1/2. For
// tied embeddings.
double expected_initial_loss(const ModelSpec& model);

}  // namespace meshwright
