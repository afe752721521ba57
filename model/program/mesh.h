// The logical mesh of ranks, dp x pp x tp, and the groups that communicate on it. Nothing here names a rank by number:
// peers are a group along an axis, or the neighbour one step along pp.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace meshwright {

struct MeshShape {
  int dp = 1;  // replicas of the model, or shards of its state under ZeRO/FSDP
  int pp = 1;  // pipeline stages
  int tp = 1;  // shards of each layer and of the sequence between layers

  bool operator==(const MeshShape&) const = default;
  int ranks() const { return dp * pp * tp; }
};

std::string to_string(const MeshShape& mesh);  // "8x2x2"

// Where a rank sits. Rank number = (dp * shape.pp + pp) * shape.tp + tp: tp is the innermost axis.
struct MeshCoordinates {
  int dp = 0, pp = 0, tp = 0;
  bool operator==(const MeshCoordinates&) const = default;
};

// Ranks that take part in one collective: those that differ along one axis only. kPpEnds: the first and the last stage
// only, which hold the two copies of a tied embedding.
enum class Group : std::uint8_t { kTp, kDp, kPp, kPpEnds };
constexpr int kGroups = 4;
constexpr std::array<std::string_view, kGroups> kGroupNames{"tp", "dp", "pp", "pp-ends"};
constexpr std::string_view name(Group g) { return kGroupNames[static_cast<int>(g)]; }

constexpr int group_size(const MeshShape& mesh, Group group) {
  switch (group) {
    case Group::kTp:
      return mesh.tp;
    case Group::kDp:
      return mesh.dp;
    case Group::kPp:
      return mesh.pp;
    case Group::kPpEnds:
      return mesh.pp > 1 ? 2 : 1;
  }
  return 1;
}

}  // namespace meshwright
