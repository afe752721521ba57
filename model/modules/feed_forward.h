// activation(h W0) W1, or gated: (activation(h Wgate) * (h Wup)) W1, where W0 is (gate | up). Hidden channels are cut over tp.
#pragma once

#include <cstdint>

#include "model/modules/forward.h"
#include "model/modules/parameter.h"
#include "model/program/op.h"

namespace meshwright {

struct FeedForward {
  std::int64_t hidden = 1;
  ActivationKind activation = ActivationKind::kGeluTanh;
  bool gated = false;
  bool bias = true;

  bool operator==(const FeedForward&) const = default;

  FeedForward reduced(std::int64_t most) const;  // at most so many hidden channels
  void list(ParameterList& list) const;
  View forward(Forward& f, const View& own) const;  // as MultiHeadAttention's
  View output_bias(Forward& f) const;
};

}  // namespace meshwright
