// The residual stream to logits and loss: a final norm, then a map to the vocabulary, which may be the embedding's table.
#pragma once

#include <cstdint>
#include <optional>

#include "model/modules/forward.h"
#include "model/modules/norm.h"
#include "model/modules/parameter.h"

namespace meshwright {

struct Head {
  std::optional<Norm> norm = Norm{};
  bool tied = true;  // to embedding.embedding; else head.kernel (V, C)
  bool bias = false;

  bool operator==(const Head&) const = default;

  void list(ParameterList& list, std::int64_t vocab) const;
  void forward(Forward& f, std::int64_t vocab, const View& x) const;  // cross-entropy into kMetrics
};

}  // namespace meshwright
