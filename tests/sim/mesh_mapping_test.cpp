#include "sim/mesh_mapping.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace meshwright {
namespace {

using ::testing::ElementsAre;

const Topology kSlice32 = Topology::grid({2, 4, 4}, {false, false, false});
const Topology kCube64 = Topology::grid({4, 4, 4}, {true, true, true});

std::vector<MeshShape> shapes_of(int ranks) {
  std::vector<MeshShape> shapes;
  for (int dp = 1; dp <= ranks; ++dp) {
    for (int pp = 1; dp * pp <= ranks; ++pp) {
      if (ranks % (dp * pp) == 0) shapes.push_back({.dp = dp, .pp = pp, .tp = ranks / dp / pp});
    }
  }
  return shapes;
}

template <class F>
void for_each_rank(const MeshShape& mesh, F&& f) {
  for (int d = 0; d < mesh.dp; ++d)
    for (int p = 0; p < mesh.pp; ++p)
      for (int t = 0; t < mesh.tp; ++t) f(MeshCoordinates{.dp = d, .pp = p, .tp = t});
}

// The one mapping of 8x2x2 on the 2x4x4 slice in which tp takes x, pp the outer half of y, and dp the rest.
MeshMapping published_mesh() { return MeshMapping(kSlice32, {{{2, 1, 1}, {1, 2, 4}, {1, 2, 1}}}); }

TEST(MeshMapping, EveryMappingOfEveryShapeOf32And64ChipsIsABijection) {
  for (const Topology& topology : {kSlice32, kCube64}) {
    for (const MeshShape& mesh : shapes_of(topology.chips())) {
      const std::vector<MeshMapping> all = mappings(topology, mesh);
      ASSERT_FALSE(all.empty()) << to_string(mesh);
      for (const MeshMapping& mapping : all) {
        EXPECT_EQ(mapping.mesh(), mesh);
        std::set<int> chips;
        for_each_rank(mesh, [&](const MeshCoordinates& rank) { chips.insert(mapping.chip(rank)); });
        EXPECT_EQ(static_cast<int>(chips.size()), topology.chips()) << mapping.describe();
        EXPECT_EQ(*chips.rbegin(), topology.chips() - 1);
      }
    }
  }
}

TEST(MeshMapping, NoMappingIsListedTwice) {
  for (const MeshShape& mesh : shapes_of(32)) {
    std::set<std::string> seen;
    for (const MeshMapping& mapping : mappings(kSlice32, mesh)) EXPECT_TRUE(seen.insert(mapping.describe()).second);
  }
}

TEST(MeshMapping, AnAxisOfTwoOn2x4x4LiesAlongAnyOfThreeDimensions) {
  // dp 16 takes what is left: tp on x, y or z
  std::vector<std::string> found;
  for (const MeshMapping& m : mappings(kSlice32, {.dp = 16, .pp = 1, .tp = 2})) found.push_back(m.describe());
  EXPECT_THAT(found, ElementsAre("tp: x2; dp: y4 z4; pp: 1", "tp: y2; dp: x2 y2 (stride 2) z4; pp: 1",
                                 "tp: z2; dp: x2 y4 z2 (stride 2); pp: 1"));
}

TEST(MeshMapping, TheMembersOfAGroupDifferAlongItsFactorsByTheirStrides) {
  for (const MeshShape& mesh : {MeshShape{8, 2, 2}, MeshShape{4, 4, 2}, MeshShape{2, 2, 8}}) {
    for (const MeshMapping& mapping : mappings(kSlice32, mesh)) {
      for (const Group group : {Group::kTp, Group::kDp, Group::kPp}) {
        const GroupPlacement& placement = mapping.placement(group);
        EXPECT_EQ(placement.members(), group_size(mesh, group));
        for (const AxisFactor& f : placement.factors) {
          std::set<int> at;  // coordinates of one group's members along the dimension
          for (int i = 0; i < group_size(mesh, group); ++i) {
            MeshCoordinates rank;
            (group == Group::kTp ? rank.tp : group == Group::kDp ? rank.dp : rank.pp) = i;
            at.insert(mapping.coordinates(rank)[f.dimension]);
          }
          std::set<int> expected;
          for (int i = 0; i < f.size; ++i) expected.insert(i * f.stride);
          EXPECT_EQ(at, expected) << mapping.describe();
        }
      }
    }
  }
}

TEST(MeshMapping, TpIsInnermostThenDpThenPp) {
  // 8 chips in a line: tp pairs neighbours, dp steps over them, pp over both
  const MeshMapping line = mappings(Topology::grid({8}, {false}), {.dp = 2, .pp = 2, .tp = 2}).front();
  EXPECT_EQ(line.chip({.tp = 1}), 1);
  EXPECT_EQ(line.chip({.dp = 1}), 2);
  EXPECT_EQ(line.chip({.pp = 1}), 4);
  EXPECT_EQ(line.describe(), "tp: x2; dp: x2 (stride 2); pp: x2 (stride 4)");
}

TEST(MeshMapping, OnlyFactorsThatSpanAWrappedDimensionAreRings) {
  const MeshMapping cube(kCube64, {{{4, 1, 1}, {1, 2, 4}, {1, 2, 1}}});
  EXPECT_EQ(cube.describe(), "tp: x4 (ring); dp: y2 z4 (ring); pp: y2 (stride 2, ring)");
  EXPECT_EQ(published_mesh().describe(), "tp: x2; dp: y2 z4; pp: y2 (stride 2)");
}

TEST(MeshMapping, ConsecutiveStagesAreOneStepApart) {
  for (const MeshShape& mesh : shapes_of(32)) {
    for (const MeshMapping& mapping : mappings(kSlice32, mesh)) {
      int worst = 0;
      for (int p = 0; p + 1 < mesh.pp; ++p) {
        const int hops = kSlice32.hops(mapping.chip({.pp = p}), mapping.chip({.pp = p + 1}));
        worst = std::max(worst, hops);
      }
      EXPECT_EQ(worst, mapping.stage_hops()) << mapping.describe();
    }
  }
}

TEST(MeshMapping, TheEndsOfAPipelineAreAsFarApartAsTheyLieAndShareLinksOnlyWithinTheirStage) {
  const auto ends = [](const MeshMapping& mapping) {
    EXPECT_EQ(mapping.placement(Group::kPpEnds).members(), 2);
    return mapping.placement(Group::kPpEnds).factors.front();
  };
  // pp 4 along z of the open slice: stages 0 and 3 are 3 hops apart, one pair a line; on a ring of 4, one hop
  const AxisFactor open = ends(MeshMapping(kSlice32, {{{2, 1, 1}, {1, 4, 1}, {1, 1, 4}}}));
  EXPECT_EQ(open.stride, 3);
  EXPECT_EQ(open.sharing, 1);
  const AxisFactor ring = ends(MeshMapping(kCube64, {{{4, 1, 1}, {1, 4, 1}, {1, 1, 4}}}));
  EXPECT_EQ(ring.stride, 1);
  EXPECT_EQ(ring.sharing, 1);
  // y: two dp ranks of a stage side by side, each 2 hops from its partner
  EXPECT_EQ(ends(published_mesh()).stride, 2);
  EXPECT_EQ(ends(published_mesh()).sharing, 2);
  // pp 9 as 3 x 3 in snake order ends at (2, 2): 2 hops along each dimension
  const AxisFactor corner = ends(MeshMapping(Topology::grid({3, 3}, {false, false}), {{{1, 1}, {1, 1}, {3, 3}}}));
  EXPECT_EQ(corner.stride, 4);
  EXPECT_EQ(corner.sharing, 1);
}

TEST(MeshMapping, ALengthOfTwelveSplitsIntoThreeAndFour) {
  const Topology slab = Topology::grid({4, 4, 12}, {true, true, true});
  const auto all = mappings(slab, {.dp = 32, .pp = 3, .tp = 2});
  ASSERT_FALSE(all.empty());
  for (const MeshMapping& m : all) EXPECT_EQ(m.placement(Group::kPp).factors.front().dimension, 2);
}

TEST(MeshMapping, DevicesOnASwitchTakeAnyMesh) {
  const Topology shared = Topology::shared(6);
  for (const MeshShape& mesh : shapes_of(6)) EXPECT_EQ(mappings(shared, mesh).size(), 1u) << to_string(mesh);
}

}  // namespace
}  // namespace meshwright
