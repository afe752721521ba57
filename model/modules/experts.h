// Mixture of experts: of `experts` feed-forwards a token takes the `choices` with the best scores, weighted by their gates,
// and all shared experts. Hidden channels of every expert are cut over tp, all experts are on every rank.
#pragma once

#include <cstdint>
#include <variant>

#include "model/modules/forward.h"
#include "model/modules/parameter.h"
#include "model/program/op.h"

namespace meshwright {

// Linear maps C -> C that every token takes, held as one kernel (C, count * C), with a bias (JAXformer).
struct LinearShared {
  std::int64_t count = 0;  // 0: none
  bool operator==(const LinearShared&) const = default;
};
// One gated feed-forward without biases that every token takes (DeepSeek: as wide as all its shared experts together).
struct GatedShared {
  std::int64_t hidden = 1;
  bool operator==(const GatedShared&) const = default;
};

struct Experts {
  std::int64_t experts = 1;
  std::int64_t choices = 1;
  std::int64_t hidden = 1;
  ActivationKind activation = ActivationKind::kGeluTanh;
  bool gated = false;
  bool bias = true;  // of the experts and of the router

  enum class Score : std::uint8_t { kSigmoid, kSoftmax } score = Score::kSigmoid;
  RoutingRule rule;
  bool correction = false;  // a buffer that is added to the scores for the choice only (DeepSeek-V3)

  // Rows that an expert accepts of one sequence of T tokens in training: floor(T * choices * capacity_factor / experts),
  // and never more than T, as a token's choices are distinct. 0: nothing is dropped. In evaluation nothing ever is.
  double capacity_factor = 1;
  std::variant<LinearShared, GatedShared> shared;
  double dropout = 0;  // of every expert's output, before the gate

  bool operator==(const Experts&) const = default;

  Experts reduced(std::int64_t most) const;          // at most so many hidden channels each
  std::int64_t capacity(std::int64_t tokens) const;  // 0: dropless
  void list(ParameterList& list) const;
  View forward(Forward& f, const View& own) const;  // as MultiHeadAttention's
  View output_bias(Forward& f) const;               // of the linear shared experts: `count` chunks, to be summed
  std::int64_t bias_chunks() const;
};

}  // namespace meshwright
