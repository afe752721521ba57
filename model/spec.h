// What is trained, without any plan: one description for JAXformer's MoE, GPT-2 and their kin. A new kind of
// attention or feed-forward is a new alternative of a variant, and stops the build wherever it must be
// handled.
//
// Legend: C width, V vocabulary, T tokens a sequence, H heads, dh head width, l latent, R rope width, F
// hidden width of a feed-forward, E experts, k choices, S shared experts.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace meshwright {

enum class NormKind : std::uint8_t {
  kRmsNormWithShift,  // x / sqrt(mean(x^2) + 1e-6) * gamma + beta
  kLayerNorm,         // (x - mean) / sqrt(variance + 1e-5) * gamma + beta
};

enum class Activation : std::uint8_t {
  kGeluTanh,  // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
  kSilu,      // x / (1 + exp(-x))
};

// Multi-head latent attention with decoupled rotary positions (DeepSeek-V2; JAXformer). Every projection has
// a bias.
//   z = h Wdown (kv_latent | q_latent);  k, v = z_kv Wkvup;  q = z_q Wqup
//   rope_width > 0:  kr = rope(z Wkr), one for all heads;  qr = rope(z Wqr), per head
//   scores = (q.k + qr.kr) / sqrt(head_dim + rope_width), causal
struct MlaSpec {
  std::int64_t heads = 1;
  std::int64_t head_dim = 1;
  std::int64_t kv_latent = 1;
  std::int64_t q_latent = 1;
  std::int64_t rope_width = 0;  // per head; 0: no rotary part, no Wkr and Wqr

  bool operator==(const MlaSpec&) const = default;
};

// Multi-head attention; kv_heads < heads is grouped-query, 1 is multi-query attention. One joint q|k|v
// projection.
struct MhaSpec {
  std::int64_t heads = 1;
  std::int64_t kv_heads = 1;
  std::int64_t head_dim = 1;
  bool bias = true;  // on both projections

  bool operator==(const MhaSpec&) const = default;
};

// activation(h W0) W1, or gated: (activation(h W0) * (h Wgate)) W1.
struct DenseFfnSpec {
  std::int64_t hidden = 1;
  Activation activation = Activation::kGeluTanh;
  bool gated = false;
  bool bias = true;

  bool operator==(const DenseFfnSpec&) const = default;
};

// E routed experts, each gelu(h W0 + b0) W1 + b1 with F = hidden, of which a token chooses k by sigmoid gates
// normalised over its choices; and `shared` linear maps C -> C that every token takes, held as one kernel (C,
// S*C) with bias.
struct MoeSpec {
  std::int64_t experts = 1;
  std::int64_t choices = 1;
  std::int64_t shared = 0;
  std::int64_t hidden = 1;
  double capacity_factor = 1;

  bool operator==(const MoeSpec&) const = default;
};

using AttentionSpec = std::variant<MlaSpec, MhaSpec>;
using FfnSpec = std::variant<DenseFfnSpec, MoeSpec>;

// x1 = x + dropout(attention(norm0(x)));  y = x1 + dropout(ffn(norm1(x1))). In a mixture of experts the
// dropout sits on every expert's output, before the gate.
struct LayerSpec {
  NormKind norm = NormKind::kRmsNormWithShift;
  AttentionSpec attention;
  FfnSpec ffn;

  bool operator==(const LayerSpec&) const = default;
};

struct ModelSpec {
  std::string name;
  std::int64_t vocab = 1;
  std::int64_t width = 1;
  std::vector<LayerSpec> layers;
  bool tied_embedding = true;          // logits = x * embedding^T; else a head of its own, without bias
  std::int64_t learned_positions = 0;  // rows of a learned position table; 0: none
  NormKind final_norm = NormKind::kRmsNormWithShift;
  double dropout = 0;         // probability of dropping, in [0, 1)
  double balance_weight = 0;  // alpha: loss = cross-entropy + alpha * balance

  bool operator==(const ModelSpec&) const = default;
};

// Heads that tensor parallelism may cut: every rank holds whole heads, of keys and values too.
std::int64_t heads(const AttentionSpec& attention);
std::int64_t kv_heads(const AttentionSpec& attention);

// Rows that an expert accepts of one sequence of `tokens` tokens in training: floor(tokens * k *
// capacity_factor / E), and never more than `tokens`, as a token's choices are distinct. In evaluation
// nothing is dropped: `tokens`.
std::int64_t expert_capacity(const MoeSpec& moe, std::int64_t tokens);

// A JAXformer model, in the words of its configuration.
struct JaxformerDimensions {
  std::int64_t model_dimension = 768;
  std::int64_t vocab_size = 100277;
  std::int64_t n_head = 12;
  std::int64_t blocks = 8;
  std::int64_t layers_per_block = 6;
  std::int64_t latent_dim = 128;
  std::int64_t dhR = 128;
  double dropout_rate = 0.2;
  std::int64_t k = 2;
  std::int64_t n_experts = 16;
  std::int64_t n_shared = 2;
  double capacity_factor = 1.5;

  bool operator==(const JaxformerDimensions&) const = default;
};

// blocks x (layers_per_block - 1 dense layers with rope, then one mixture of experts without). n_head must
// divide model_dimension.
ModelSpec jaxformer(const std::string& name, const JaxformerDimensions& dimensions, double balance_weight);

// GPT-2 as released; the defaults are the small one (Radford et al. 2019).
struct Gpt2Dimensions {
  std::int64_t vocab = 50257;
  std::int64_t positions = 1024;
  std::int64_t width = 768;
  std::int64_t layers = 12;
  std::int64_t heads = 12;  // divides width
  double dropout = 0.1;
};
ModelSpec gpt2(const std::string& name, const Gpt2Dimensions& dimensions = {});

}  // namespace meshwright
