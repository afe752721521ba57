// Which tokens a step trains on, and where they lie on the mesh.
//
// Symbols. Q: sequences of a step, T: tokens of a sequence; M microbatches, dp data ranks, B sequences of a
// microbatch on one dp rank, Q = M*dp*B; m, d, b count these. q = (m*dp + d)*B + b: the sequence's number in
// its step.
//
// Of a shard s[0..n), inputs are s[0..n-1) and targets s[1..n), cut into steps of Q sequences of T tokens:
// token t of sequence q of step g is input s[(g*Q + q)*T + t], target the token after it; floor((n-1)/(Q*T))
// steps, the rest of a shard is dropped. Steps run through the shards in order, then start again with the
// first. (JAXformer's layout (G, M, dp*B, T), row-major; its gradient accumulation over grad_step is M times
// as many microbatches.)
//
// So a step consists of the same Q sequences, with the same numbers, whatever M, dp and B are.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "executor/data/token_source.h"

namespace meshwright {

struct BatchShape {
  std::int64_t microbatches = 1;  // M
  std::int64_t dp = 1;
  std::int64_t batch = 1;   // B
  std::int64_t tokens = 1;  // T

  std::int64_t sequences() const { return microbatches * dp * batch; }  // Q
  std::int64_t sequence(std::int64_t m, std::int64_t d, std::int64_t b) const { return (m * dp + d) * batch + b; }
};

class Batches {
 public:
  // Throws InputError if no shard has the Q*T + 1 tokens of a step.
  Batches(TokenSource source, const BatchShape& shape);

  const BatchShape& shape() const { return shape_; }
  std::int64_t steps_per_epoch() const { return first_step_.back(); }  // until the data repeats

  // Reads all data once: see TokenSource::check().
  void check(const std::function<void(int shard)>& progress = {}) const { source_.check(progress); }
  int shards() const { return source_.shards(); }

  // Ids of microbatch m on dp rank d, tokens [t0, t0 + tl) of each sequence, token by token:
  // inputs[t*B + b], t from 0 to tl-1; targets likewise. Both hold tl*B. step >= 0, of any size.
  // Reads no more than these from the shard, and throws InputError for what it finds there, a shard of another size than at
  // first included.
  void read(std::int64_t step, std::int64_t m, std::int64_t d, std::int64_t t0, std::int64_t tl,
            std::span<std::int32_t> inputs, std::span<std::int32_t> targets);

 private:
  TokenSource source_;
  BatchShape shape_;
  std::vector<std::int64_t> first_step_;  // of each shard within an epoch; then the number of steps in all
};

}  // namespace meshwright
