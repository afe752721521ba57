#include "executor/diverged.h"

#include <fmt/format.h>

#include <utility>

namespace meshwright {
namespace {

std::string sentence(const Diverged::Facts& f) {
  const std::string where = f.tensor.empty()
                                ? "every element of the gradients is finite, but their norm or the loss is not"
                                : fmt::format(
                                      "the gradient of {} is not finite (on rank {}, stage {}; the first of {} such "
                                      "tensors of {})",
                                      f.tensor, f.rank, f.stage, f.tensors, f.of_tensors);
  return fmt::format(
      "training diverged in step {}: {}; loss {:.6g}, gradient norm {:.6g}; the update was not made, weights and "
      "moments are those of before the step",
      f.step + 1, where, f.loss, f.gradient_norm);
}

}  // namespace

Diverged::Diverged(Facts facts, const std::string& more)
    : facts_(std::move(facts)), text_(sentence(facts_) + (more.empty() ? "" : "; " + more)) {}

}  // namespace meshwright
