// Exact counts of parameters and matrix multiplications, from a ModelSpec alone: no plan, no hardware. Parameters are counted
// from the lists of the modules, multiplications from the operations that they write for one rank.
//
// Legend: C width, V vocabulary, T tokens a sequence, H heads, E experts, k choices.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/program/tensor.h"
#include "model/program/units.h"
#include "model/spec.h"

namespace meshwright {

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
  std::int64_t embedding = 0;
  std::int64_t positions = 0;
  std::vector<LayerParameters> layers;
  std::int64_t final_norm = 0;
  std::int64_t head = 0;  // of an untied embedding

  std::int64_t total() const;   // total_parameters
  std::int64_t active() const;  // active_parameters: layers only, k of E experts, shared ones included
};

ParameterCount count_parameters(const ModelSpec& model);

// Matrix multiply-adds of one layer forward over one sequence, 2 FLOPs each; biases, norms, activations, softmax and rotations
// are not counted. Causal attention at half: of T keys a query sees T/2, or fewer in a window; and of E experts a token takes
// k: every choice is kept, none dropped.
struct LayerFlops {
  Flops projections, scores, ffn, shared, router, experts;

  Flops total() const { return projections + scores + ffn + shared + router + experts; }
  bool operator==(const LayerFlops&) const = default;
};
LayerFlops layer_forward_flops(const ModelSpec& model, const Layer& layer, std::int64_t sequence_length);

// Logits of one sequence. The look-up of the embedding is no multiplication.
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
