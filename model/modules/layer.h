// A layer: attention and feed-forward, each a branch that is added to the residual stream, with norms before, behind or after.
#pragma once

#include <cstdint>
#include <variant>

#include "model/modules/attention.h"
#include "model/modules/experts.h"
#include "model/modules/feed_forward.h"
#include "model/modules/joint_latent_attention.h"
#include "model/modules/latent_attention.h"
#include "model/modules/norm.h"

namespace meshwright {

using AttentionModule = std::variant<JointLatentAttention, MultiHeadAttention, LatentAttention>;
using FfnModule = std::variant<FeedForward, Experts>;

// Where norms stand. A and M are the two branches.
enum class NormPlace : std::uint8_t {
  kBefore,    // x1 = x + A(norm0(x));           y = x1 + M(norm1(x1))            most
  kBehind,    // x1 = x + norm0(A(x));           y = x1 + norm1(M(x1))            OLMo-2
  kAfter,     // x1 = norm0(x + A(x));           y = norm1(x1 + M(x1))            the original transformer, miniGPT
  kParallel,  // h = norm0(x);                   y = x + A(h) + M(h)              Phi, Falcon
};

struct Layer {
  Norm norm;
  NormPlace place = NormPlace::kBefore;
  AttentionModule attention;
  FfnModule ffn;
  double dropout = 0;  // of what each branch adds

  bool operator==(const Layer&) const = default;

  Layer reduced() const;
  void list(ParameterList& list) const;
  // x (own rows, C) to y, alike.
  void forward(Forward& f, const View& x, const View& y) const;
};

std::int64_t heads(const AttentionModule& attention);
std::int64_t kv_heads(const AttentionModule& attention);  // latent attention expands its latent for every head

}  // namespace meshwright
