// How one training step is cut over ranks.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "model/program/mesh.h"

namespace meshwright {

enum class Schedule : std::uint8_t { kGPipe, k1F1B };
constexpr std::array<std::string_view, 2> kScheduleNames{"gpipe", "1f1b"};
constexpr std::string_view name(Schedule s) { return kScheduleNames[static_cast<int>(s)]; }

enum class Recompute : std::uint8_t { kNone, kFull };  // full: each layer's forward again, from its input
constexpr std::array<std::string_view, 2> kRecomputeNames{"none", "full"};
constexpr std::string_view name(Recompute r) { return kRecomputeNames[static_cast<int>(r)]; }

struct Plan {
  MeshShape mesh;
  int fsdp = 0;          // ZeRO stage over dp. 0: nothing sharded; 1: optimizer state; 2: + gradients; 3: + parameters
  int microbatches = 1;  // per dp shard and step
  Schedule schedule = Schedule::k1F1B;
  Recompute recompute = Recompute::kNone;
  std::vector<int>
      layers;  // of each stage, the first one first; empty: a command cuts by simulated cost, lowering alone by executed FLOPs

  bool operator==(const Plan&) const = default;
};

// "8x4x1,schedule=1f1b,microbatches=8,fsdp=3,recompute=full,layers=13-12-12-11", without layers where they are empty.
// parse_plan() reads that, in any order after the mesh, and what is left out has the values above (fsdp: 0). Throws
// InputError with source "--plan", listing every fault; whether the layers are the model's is for illegalities() to say.
std::string to_text(const Plan& plan);
Plan parse_plan(std::string_view text);

// What tables, JSON, the database and --plan call a plan: the first 8 hexadecimal digits of content_key(to_text(plan)).
std::string plan_id(const Plan& plan);

}  // namespace meshwright
