// How one training step is cut over ranks.
#pragma once

#include <array>
#include <concepts>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "model/program/mesh.h"

namespace meshwright {

enum class Schedule : std::uint8_t { kGPipe, k1F1B };
constexpr std::array<std::string_view, 2> kScheduleNames{"gpipe", "1f1b"};
constexpr std::string_view name(Schedule s) { return kScheduleNames[static_cast<int>(s)]; }

// What a layer's values come from, as recomputation names it.
enum class RecomputeKind : std::uint8_t {
  kAttentionCore,         // scores, probabilities and what heads attend to, from queries, keys and values
  kAttentionProjections,  // latents, queries, keys and values
  kFeedForward,           // a dense feed-forward's hidden channels
  kExperts,               // routing, and the hidden channels of routed and shared experts
};
constexpr std::array<std::string_view, 4> kRecomputeKindNames{"attention-core", "attention-projections", "feed-forward",
                                                              "experts"};

// What a backward pass computes again, from the layer's input and what is kept, instead of keeping it. Beside that it always
// computes again what costs little more than reading it (norms, activations, rows sent to experts).
//   none       nothing
//   selective  of what would be kept, all but the half of the bytes that takes the most FLOPs a byte (computed_again() of
//              model/lowering/stash_policy.h)
//   full       all
//   or kinds   "attention-core", "feed-forward+experts"
struct Recompute {
  std::uint8_t bits = 0;  // of RecomputeKind; or one of the policies below

  static const Recompute kNone, kSelective, kFull;
  static constexpr Recompute of(RecomputeKind kind) {
    return {static_cast<std::uint8_t>(1u << static_cast<int>(kind))};
  }
  constexpr bool has(RecomputeKind kind) const { return bits < 0x40 && (bits & of(kind).bits) != 0; }
  constexpr bool operator==(const Recompute&) const = default;
};
inline constexpr Recompute Recompute::kNone{0}, Recompute::kSelective{0x40}, Recompute::kFull{0x80};
constexpr std::array<Recompute, 3> kRecomputePolicies{Recompute::kNone, Recompute::kSelective, Recompute::kFull};
std::string name(Recompute recompute);
std::optional<Recompute> recompute_named(std::string_view name);
// What there is, for messages: the policies, then the kinds.
std::vector<std::string> recompute_words();

struct Plan {
  MeshShape mesh;
  int fsdp = 0;          // ZeRO stage over dp. 0: nothing sharded; 1: optimizer state; 2: + gradients; 3: + parameters
  int microbatches = 1;  // per dp shard and step
  Schedule schedule = Schedule::k1F1B;
  Recompute recompute{};
  std::vector<int>
      layers;  // of each stage, the first one first; empty: a command cuts by simulated cost, lowering alone by executed FLOPs

  bool operator==(const Plan&) const = default;
};

// Calls v(name, field) for every field beside the mesh, under its name in a plan's text, in JSON and in the store.
template <class P, class V>
requires std::same_as<std::remove_const_t<P>, Plan>
void visit_choices(P& plan, V&& v) {
  auto& [mesh, fsdp, microbatches, schedule, recompute, layers] =
      plan;  // a new field stops the build: name it below, too
  static_cast<void>(mesh);
  v("fsdp", fsdp);
  v("microbatches", microbatches);
  v("schedule", schedule);
  v("recompute", recompute);
  v("layers", layers);
}
// The same for every field, of the mesh one for each axis.
template <class P, class V>
requires std::same_as<std::remove_const_t<P>, Plan>
void visit_fields(P& plan, V&& v) {
  auto& [dp, pp, tp] = plan.mesh;
  v("dp", dp);
  v("pp", pp);
  v("tp", tp);
  visit_choices(plan, v);
}

// "8x4x1,schedule=1f1b,microbatches=8,fsdp=3,recompute=full,layers=13-12-12-11", without layers where they are empty.
// parse_plan() reads that, in any order after the mesh, and what is left out has the values above (fsdp: 0). Throws
// InputError with source "--plan", listing every fault; whether the layers are the model's is for illegalities() to say.
std::string to_text(const Plan& plan);
Plan parse_plan(std::string_view text);

// What tables, JSON, the database and --plan call a plan: the first 8 hexadecimal digits of content_key(to_text(plan)).
std::string plan_id(const Plan& plan);

}  // namespace meshwright
