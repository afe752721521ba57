#include "sim/topology.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <queue>
#include <set>
#include <utility>

namespace meshwright {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

Topology open_mesh(std::vector<int> shape) {
  const std::size_t dimensions = shape.size();
  return Topology::grid(std::move(shape), std::vector<bool>(dimensions, false));
}
Topology torus(std::vector<int> shape) {
  const std::size_t dimensions = shape.size();
  return Topology::grid(std::move(shape), std::vector<bool>(dimensions, true));
}

// Fewest links between two chips, searched breadth first without any knowledge of coordinates.
int distance(const Topology& topology, int from, int to) {
  std::vector<int> seen(topology.chips() + 1, -1);
  std::queue<int> next({from});
  seen[from] = 0;
  while (!next.empty()) {
    const int here = next.front();
    next.pop();
    for (const Link& link : topology.links()) {
      if (link.from != here || seen[link.to] >= 0) continue;
      seen[link.to] = seen[here] + 1;
      next.push(link.to);
    }
  }
  return seen[to];
}

TEST(Topology, ASliceOf32ChipsIsAnOpenMeshOf64Wires) {
  // x: 1 step * 4 * 4 = 16; y: 3 steps * 2 * 4 = 24; z: 24
  const Topology slice = open_mesh({2, 4, 4});
  EXPECT_EQ(slice.chips(), 32);
  EXPECT_EQ(slice.wires(), 16 + 24 + 24);
  EXPECT_EQ(slice.describe(), "2x4x4 open mesh, 32 chips, 64 wires");
}

TEST(Topology, ACubeOf64ChipsIsATorusOf192Wires) {
  // every chip has six ports, a wire has two ends: 64 * 6 / 2
  const Topology cube = torus({4, 4, 4});
  EXPECT_EQ(cube.wires(), 192);
  for (int chip = 0; chip < cube.chips(); ++chip) EXPECT_EQ(cube.ports(chip), 6);
  EXPECT_EQ(cube.describe(), "4x4x4 torus, 64 chips, 192 wires");
}

TEST(Topology, ACornerOfAnOpenMeshHasOnePortPerDimension) {
  EXPECT_EQ(open_mesh({2, 4, 4}).ports(0), 3);
  EXPECT_EQ(open_mesh({4, 4}).ports(0), 2);
}

TEST(Topology, ADimensionOfTwoNeverGetsASecondWire) {
  const Topology pair = torus({2, 4});
  EXPECT_FALSE(pair.wraps(0));
  EXPECT_TRUE(pair.wraps(1));
  EXPECT_EQ(pair.wires(), 1 * 4 + 4 * 2);
  std::set<std::pair<int, int>> ends;
  for (const Link& link : pair.links()) EXPECT_TRUE(ends.insert({link.from, link.to}).second);
}

TEST(Topology, ADimensionOfOneHasNoLinks) {
  EXPECT_EQ(torus({1, 1, 1}).wires(), 0);
  EXPECT_EQ(torus({4, 1, 1}).wires(), 4);
}

TEST(Topology, XIsTheFastestCoordinate) {
  const Topology slice = open_mesh({2, 4, 4});
  EXPECT_THAT(slice.coordinates(0), ElementsAre(0, 0, 0));
  EXPECT_THAT(slice.coordinates(1), ElementsAre(1, 0, 0));
  EXPECT_THAT(slice.coordinates(2), ElementsAre(0, 1, 0));
  EXPECT_THAT(slice.coordinates(31), ElementsAre(1, 3, 3));
}

TEST(Topology, RoutesGoDimensionByDimension) {
  const Topology slice = open_mesh({2, 4, 4});
  // (0,0,0) to (1,2,1): x once, y twice, z once
  std::vector<int> dimensions;
  for (const LinkId id : slice.route(0, slice.chip_at({1, 2, 1}))) dimensions.push_back(slice.links()[id].dimension);
  EXPECT_THAT(dimensions, ElementsAre(0, 1, 1, 2));
}

TEST(Topology, RoutesTakeTheShorterWayRoundARing) {
  EXPECT_EQ(torus({8}).hops(0, 3), 3);
  EXPECT_EQ(torus({8}).hops(0, 6), 2);
  EXPECT_EQ(open_mesh({8}).hops(0, 6), 6);
  const Topology ring = torus({4});  // two steps either way: upwards
  EXPECT_EQ(ring.links()[ring.route(1, 3)[0]].to, 2);
}

TEST(Topology, RoutesAreConnectedAndShortest) {
  rc::check([] {
    const auto shape = *rc::gen::container<std::vector<int>>(3, rc::gen::inRange(1, 6));
    const auto wraps = *rc::gen::container<std::vector<bool>>(3, rc::gen::arbitrary<bool>());
    const Topology grid = Topology::grid(shape, wraps);
    const int from = *rc::gen::inRange(0, grid.chips()), to = *rc::gen::inRange(0, grid.chips());
    int here = from;
    for (const LinkId id : grid.route(from, to)) {
      RC_ASSERT(grid.links()[id].from == here);
      here = grid.links()[id].to;
    }
    RC_ASSERT(here == to);
    RC_ASSERT(grid.hops(from, to) == distance(grid, from, to));
  });
}

TEST(Topology, EveryLinkHasItsOpposite) {
  for (const Topology& topology : {open_mesh({2, 4, 4}), torus({4, 4, 8}), Topology::shared(5)}) {
    std::set<std::pair<int, int>> ends;
    for (const Link& link : topology.links()) ends.insert({link.from, link.to});
    for (const Link& link : topology.links()) EXPECT_TRUE(ends.contains({link.to, link.from}));
  }
}

TEST(Topology, CoordinatesAndChipsAreInverse) {
  const Topology grid = torus({4, 8, 12});
  for (int chip = 0; chip < grid.chips(); ++chip) EXPECT_EQ(grid.chip_at(grid.coordinates(chip)), chip);
}

TEST(Topology, TheBisectionCutsTheLongestDimension) {
  EXPECT_EQ(open_mesh({2, 4, 4}).bisection_wires(), 8);       // 32 / 4
  EXPECT_EQ(torus({4, 4, 4}).bisection_wires(), 32);          // 2 * 64 / 4
  EXPECT_EQ(torus({16, 16, 16}).bisection_wires(), 2 * 256);  // the v4 pod: 512 * 4.5e10 = 23.0 TB/s
  EXPECT_EQ(torus({16, 16}).bisection_wires(), 32);
  EXPECT_EQ(Topology::grid({8, 16}, {false, true}).bisection_wires(), 16);  // 2 * 128/16 = 128/8
  EXPECT_EQ(open_mesh({1, 1, 1}).bisection_wires(), 0);
}

TEST(Topology, DevicesOnASwitchAreTwoLinksApart) {
  const Topology shared = Topology::shared(4);
  EXPECT_EQ(shared.chips(), 4);
  EXPECT_EQ(shared.wires(), 4);
  EXPECT_EQ(shared.hops(0, 3), 2);
  EXPECT_THAT(shared.route(2, 2), IsEmpty());
  EXPECT_EQ(shared.bisection_wires(), 2);
}

TEST(Extents, AreNumbersJoinedByX) {
  EXPECT_THAT(parse_extents("2x4x4"), ElementsAre(2, 4, 4));
  EXPECT_THAT(parse_extents("16"), ElementsAre(16));
  for (const char* bad : {"", "x", "2x", "x2", "2xx4", "0x4", "-2x4", "2*4", "2x4 ", "9999999999x1"}) {
    EXPECT_THAT(parse_extents(bad), IsEmpty()) << bad;
  }
  EXPECT_EQ(extents_text({2, 4, 4}), "2x4x4");
}

}  // namespace
}  // namespace meshwright
