#include "executor/data/batches.h"

#include <algorithm>
#include <utility>

#include "model/input/diagnostics.h"
#include "model/program/check.h"

namespace meshwright {

Batches::Batches(TokenSource source, const BatchShape& shape) : source_(std::move(source)), shape_(shape) {
  const std::int64_t step_tokens = shape_.sequences() * shape_.tokens;
  meshwright::check(step_tokens > 0, "batches: a step of {} tokens", step_tokens);
  std::int64_t steps = 0, longest = 0;
  for (int i = 0; i < source_.shards(); ++i) {
    first_step_.push_back(steps);
    steps += std::max<std::int64_t>(source_.size(i) - 1, 0) / step_tokens;
    longest = std::max(longest, source_.size(i));
  }
  first_step_.push_back(steps);
  if (steps == 0) {
    throw InputError(Diagnostic{
        .source = "--data",
        .path =
            source_.shards() == 1 ? source_.name(0) : "the longest of " + std::to_string(source_.shards()) + " shards",
        .value = std::to_string(longest) + " tokens",
        .allowed = std::to_string(step_tokens + 1) + " or more: a step of " + std::to_string(shape_.sequences()) +
                   " sequences of " + std::to_string(shape_.tokens) + " tokens, and the target of the last",
        .hint = "give more data, or train on fewer or shorter sequences a step"});
  }
}

void Batches::read(std::int64_t step, std::int64_t m, std::int64_t d, std::int64_t t0, std::int64_t tl,
                   std::span<std::int32_t> inputs, std::span<std::int32_t> targets) {
  const std::int64_t B = shape_.batch, T = shape_.tokens;
  meshwright::check(step >= 0 && m >= 0 && m < shape_.microbatches && d >= 0 && d < shape_.dp,
                    "batches: no microbatch {} of dp shard {} in step {}", m, d, step);
  meshwright::check(t0 >= 0 && tl >= 0 && t0 + tl <= T, "batches: no tokens {} to {} of {}", t0, t0 + tl, T);
  meshwright::check(static_cast<std::int64_t>(inputs.size()) == tl * B && inputs.size() == targets.size(),
                    "batches: {} inputs and {} targets for {} tokens", inputs.size(), targets.size(), tl * B);
  const std::int64_t in_epoch = step % steps_per_epoch();
  // The last shard that starts at or before this step (a shard without a whole step starts where the next one
  // does).
  const auto next = std::upper_bound(first_step_.begin(), first_step_.end(), in_epoch);
  const auto shard = static_cast<int>(next - first_step_.begin()) - 1;
  const std::int64_t g = in_epoch - first_step_[shard];
  std::vector<std::int32_t> s(static_cast<std::size_t>(tl + 1));  // of one sequence, and the target of the last
  for (std::int64_t b = 0; b < B; ++b) {
    const std::int64_t first = (g * shape_.sequences() + shape_.sequence(m, d, b)) * T + t0;
    source_.read(shard, first, s);
    for (std::int64_t t = 0; t < tl; ++t) {
      inputs[t * B + b] = s[static_cast<std::size_t>(t)];
      targets[t * B + b] = s[static_cast<std::size_t>(t + 1)];
    }
  }
}

}  // namespace meshwright
