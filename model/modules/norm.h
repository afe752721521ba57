// Norms over the channels of a row. Parameters: NAME.gamma (n), and NAME.beta (n) where there is a shift.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "model/modules/forward.h"
#include "model/modules/parameter.h"

namespace meshwright {

struct Norm {
  enum class Kind : std::uint8_t {
    kRms,    // x / sqrt(mean(x^2) + epsilon) * gamma [+ beta]
    kLayer,  // (x - mean) / sqrt(mean((x - mean)^2) + epsilon) * gamma + beta
  } kind = Kind::kRms;
  double epsilon = 1e-6;
  bool shift = true;        // beta
  bool around_one = false;  // multiplies by 1 + gamma, which begins at 0 (Gemma)

  bool operator==(const Norm&) const = default;

  void list(ParameterList& list, const std::string& name, std::int64_t width, ModuleKind module) const;
  // Of every row of x, (rows, width), as a new value. `rows` may be those of heads: x seen as (rows x heads, head width).
  View forward(Forward& f, const View& x, const std::string& name, std::string_view as) const;
  void forward_into(Forward& f, const View& x, const std::string& name, const View& out) const;
};

}  // namespace meshwright
