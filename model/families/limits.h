// Upper limits of what configurations say: beyond anything that is trained, and such that no product of sizes leaves 63 bits.
// The widest, FLOPs of a layer's gated experts over a sequence, is 2 * 3 C F k T <= 2^(1 + 1.6 + 16 + 18 + 6 + 20) < 2^63.
#pragma once

#include <cstdint>

namespace meshwright {

constexpr std::int64_t kMaxWidth = 1 << 16;   // C, latents
constexpr std::int64_t kMaxHidden = 1 << 18;  // F
constexpr std::int64_t kMaxVocab = 1 << 22;
constexpr std::int64_t kMaxHeads = 1 << 10;
constexpr std::int64_t kMaxHeadDim = 1 << 10;
constexpr std::int64_t kMaxLayers = 1 << 12;
constexpr std::int64_t kMaxPositions = 1 << 24;  // that a file promises; sequences are shorter
constexpr std::int64_t kMaxExperts = 1 << 12;
constexpr std::int64_t kMaxChoices = 1 << 6;
constexpr std::int64_t kMaxShared = 1 << 8;
constexpr std::int64_t kMaxTokens = 1 << 20;  // of a sequence
constexpr std::int64_t kMaxBatch = 1 << 20;   // sequences
constexpr std::int64_t kMaxSteps = 1'000'000'000'000;
constexpr std::int64_t kMaxTokensPerStep = std::int64_t{1} << 40;  // and per evaluation

}  // namespace meshwright
