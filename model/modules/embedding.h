// Token ids to the residual stream: scale * table[token] [+ positions[t]], dropped out.
#pragma once

#include <cstdint>

#include "model/modules/forward.h"
#include "model/modules/parameter.h"

namespace meshwright {

struct Embedding {
  std::int64_t vocab = 1;
  std::int64_t positions = 0;  // rows of a learned table, at least the tokens of a sequence; 0: none
  double scale = 1;
  double dropout = 0;
  std::int64_t padding = -1;  // this token's row begins at 0 and gets no gradient from the look-up; -1: none

  bool operator==(const Embedding&) const = default;

  void list(ParameterList& list) const;
  void forward(Forward& f, const View& tokens, const View& y) const;
};

}  // namespace meshwright
