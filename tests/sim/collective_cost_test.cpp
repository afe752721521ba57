#include "sim/collective_cost.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <vector>

#include "tests/systems.h"

namespace meshwright {
namespace {

constexpr BytesPerSecond kLink{4.5e10};
constexpr Bytes kV{450'000'000};  // 10 ms over one link
constexpr double kOneLink = 10e-3;

GroupPlacement line(int size, int stride = 1) {
  return {{{.dimension = 0, .size = size, .stride = stride, .sharing = stride}}};
}
GroupPlacement ring(int size) { return {{{.dimension = 0, .size = size, .wraps = true}}}; }
double gather(const GroupPlacement& group) { return kV.value * gather_seconds_per_byte(group, kLink); }

// An ideal network: transfers only.
const LinkNetwork kIdeal{
    .link = kLink, .link_efficiency = 1, .hop_latency = {}, .collective_overhead = {}, .message_overhead = {}};
Seconds ideal(CollectiveKind kind, const GroupPlacement& group) {
  return collective_time(kIdeal, kind, Algorithm::kRing, group, kV);
}

TEST(CollectiveCost, TwoChipsExchangeHalves) {
  EXPECT_DOUBLE_EQ(gather(line(2)), kOneLink / 2);  // V/(2w)
}

TEST(CollectiveCost, AnOpenLineCostsTwiceARing) {
  // the end of a line has one port: (V/w)(n-1)/n; on a ring two
  EXPECT_DOUBLE_EQ(gather(line(4)), kOneLink * 3 / 4);
  EXPECT_DOUBLE_EQ(gather(ring(4)), kOneLink * 3 / 8);
}

TEST(CollectiveCost, ACornerOf2x4x4GathersThroughThreePorts) {
  const GroupPlacement slice{{{.dimension = 0, .size = 2}, {.dimension = 1, .size = 4}, {.dimension = 2, .size = 4}}};
  EXPECT_DOUBLE_EQ(gather(slice), kOneLink * 31 / 32 / 3);  // V(N-1)/(N d w)
}

TEST(CollectiveCost, ATorusGathersThroughTwicePorts) {
  const GroupPlacement cube{{{.dimension = 0, .size = 4, .wraps = true},
                             {.dimension = 1, .size = 4, .wraps = true},
                             {.dimension = 2, .size = 4, .wraps = true}}};
  EXPECT_DOUBLE_EQ(gather(cube), kOneLink * 63 / 64 / 6);  // V(N-1)/(N 2d w)
}

TEST(CollectiveCost, AReduceScatterIsAnAllGatherBackwardsAndAnAllReduceIsBoth) {
  const double once = kOneLink * 3 / 4;
  EXPECT_DOUBLE_EQ(ideal(CollectiveKind::kAllGather, line(4)).value, once);
  EXPECT_DOUBLE_EQ(ideal(CollectiveKind::kReduceScatter, line(4)).value, once);
  EXPECT_DOUBLE_EQ(ideal(CollectiveKind::kAllReduce, line(4)).value, 2 * once);
}

TEST(CollectiveCost, AGroupOfOneCostsNothing) {
  EXPECT_EQ(ideal(CollectiveKind::kAllReduce, {}).value, 0);
  EXPECT_EQ(collective_time(kIdeal, CollectiveKind::kAllReduce, Algorithm::kDirect, {}, kV).value, 0);
}

TEST(CollectiveCost, StepsOfOneHopAreBoundByPortsWhateverTheSides) {
  for (const int a : {2, 3, 16}) {
    for (const int b : {2, 4, 5}) {
      const GroupPlacement grid{
          {{.dimension = 0, .size = a}, {.dimension = 1, .size = b}, {.dimension = 2, .size = 2}}};
      const double members = a * b * 2;
      EXPECT_DOUBLE_EQ(gather(grid), kOneLink * (members - 1) / members / 3);
    }
  }
}

TEST(CollectiveCost, AFactorOfLongStepsIsBoundByItsOwnLinks) {
  // 2 x 2 with steps of 1 and 4: ports allow 3/4 / (1 + 1/4) = 0.6 V/w; but half of V must cross the two
  // links of the second factor, each shared by four groups: 1/4 * 4 = 1 V/w
  const GroupPlacement group{{{.dimension = 0, .size = 2}, {.dimension = 1, .size = 2, .stride = 4, .sharing = 4}}};
  EXPECT_DOUBLE_EQ(gather(group), kOneLink);
}

constexpr std::array<Group, kGroups> kAllGroups{Group::kTp, Group::kDp, Group::kPp, Group::kPpEnds};

// The chips of every instance of a group, its members in order.
std::vector<std::vector<int>> instances(const MeshMapping& mapping, Group group) {
  const MeshShape mesh = mapping.mesh();
  std::vector<std::vector<int>> all;
  for (int d = 0; d < (group == Group::kDp ? 1 : mesh.dp); ++d)
    for (int p = 0; p < (group == Group::kPp || group == Group::kPpEnds ? 1 : mesh.pp); ++p)
      for (int t = 0; t < (group == Group::kTp ? 1 : mesh.tp); ++t) {
        std::vector<int>& members = all.emplace_back();
        for (int i = 0; i < group_size(mesh, group); ++i) {
          MeshCoordinates rank{d, p, t};
          if (group == Group::kTp) rank.tp = i;
          if (group == Group::kDp) rank.dp = i;
          if (group == Group::kPp) rank.pp = i;
          if (group == Group::kPpEnds) rank.pp = i * (mesh.pp - 1);
          members.push_back(mapping.chip(rank));
        }
      }
  return all;
}

// Bytes that every link carries when all instances of a group gather at once, each shard passed from member to
// neighbouring member in both directions, by the routes of the topology: the largest, in units of V.
double busiest_link(const MeshMapping& mapping, Group group) {
  std::map<LinkId, double> load;
  for (const std::vector<int>& chips : instances(mapping, group)) {
    const auto members = static_cast<double>(chips.size());
    for (std::size_t i = 0; i + 1 < chips.size(); ++i) {
      const auto below = static_cast<double>(i + 1);  // members on this side
      for (const LinkId id : mapping.topology().route(chips[i], chips[i + 1])) load[id] += below / members;
      for (const LinkId id : mapping.topology().route(chips[i + 1], chips[i])) load[id] += (members - below) / members;
    }
  }
  double most = 0;
  for (const auto& [id, bytes] : load) most = std::max(most, bytes);
  return most;
}

// Whoever gathers, however: on each side of a cut across a dimension lies what the members on the other side lack.
// The largest of those bytes over the links that cross in that direction, in units of V.
double cut_bound(const MeshMapping& mapping, Group group) {
  const Topology& chips = mapping.topology();
  const auto all = instances(mapping, group);
  double most = 0;
  for (int d = 0; d < chips.dimensions(); ++d)
    for (int cut = 1; cut < chips.shape()[d]; ++cut) {
      double upwards = 0, downwards = 0;
      for (const std::vector<int>& members : all) {
        const auto below = static_cast<double>(
            std::ranges::count_if(members, [&](int chip) { return chips.coordinates(chip)[d] < cut; }));
        const auto size = static_cast<double>(members.size());
        if (below == 0 || below == size) continue;
        upwards += below / size;
        downwards += (size - below) / size;
      }
      const double links = chips.chips() / chips.shape()[d] * (chips.wraps(d) ? 2.0 : 1.0);
      most = std::max({most, upwards / links, downwards / links});
    }
  return most;
}

template <class F>
void for_each_mapping(F&& f) {
  const auto on = [&](std::vector<int> shape, bool wrapped) {
    const Topology chips = Topology::grid(shape, std::vector<bool>(shape.size(), wrapped));
    for (int dp = 1; dp <= chips.chips(); ++dp)
      for (int pp = 1; dp * pp <= chips.chips(); ++pp)
        if (chips.chips() % (dp * pp) == 0)
          for (const MeshMapping& m : mappings(chips, {.dp = dp, .pp = pp, .tp = chips.chips() / dp / pp})) f(m);
  };
  for (const bool wrapped : {false, true}) {
    on({8}, wrapped);
    on({12}, wrapped);
    on({3, 6}, wrapped);
    on({2, 4, 4}, wrapped);
  }
}

TEST(CollectiveCost, NoGroupCostsLessThanTheCutsOfTheTopologyAllow) {
  int looked_at = 0;
  for_each_mapping([&](const MeshMapping& mapping) {
    for (const Group group : kAllGroups) {
      if (group_size(mapping.mesh(), group) == 1) continue;
      ++looked_at;
      EXPECT_GE(gather_seconds_per_byte(mapping.placement(group), BytesPerSecond{1}),
                cut_bound(mapping, group) * (1 - 1e-12))
          << name(group) << " of " << to_string(mapping.mesh()) << ": " << mapping.describe();
    }
  });
  EXPECT_GT(looked_at, 500);
}

TEST(CollectiveCost, AGroupOnOneLineCostsWhatItsBusiestLinkCarriesByRoute) {
  int ends = 0, others = 0;
  for_each_mapping([&](const MeshMapping& mapping) {
    for (const Group group : kAllGroups) {
      const GroupPlacement& placement = mapping.placement(group);
      if (placement.factors.size() != 1 || placement.factors[0].wraps) continue;
      ++(group == Group::kPpEnds ? ends : others);
      EXPECT_NEAR(gather_seconds_per_byte(placement, BytesPerSecond{1}), busiest_link(mapping, group), 1e-12)
          << name(group) << " of " << to_string(mapping.mesh()) << ": " << mapping.describe();
    }
  });
  EXPECT_GT(ends, 100);
  EXPECT_GT(others, 100);
}

TEST(CollectiveCost, TheTiedTableIsReducedAtTheRateOfALinkHoweverFarItsStagesAreApart) {
  // Two members all-reduce V: half of it each way, twice: V/w = 10 ms, over one hop or three.
  const auto reduce = [](const Topology& chips, const MeshShape& mesh) {
    return ideal(CollectiveKind::kAllReduce, mappings(chips, mesh).front().placement(Group::kPpEnds)).value;
  };
  for (const int stages : {2, 4, 8}) {
    EXPECT_DOUBLE_EQ(reduce(Topology::grid({stages}, {false}), {.pp = stages}), kOneLink) << stages;
    EXPECT_DOUBLE_EQ(reduce(Topology::grid({stages}, {true}), {.pp = stages}), kOneLink) << stages;
  }
  // Two ranks of a stage side by side on the line share its links, whichever axis they are of.
  EXPECT_DOUBLE_EQ(reduce(Topology::grid({8}, {false}), {.pp = 4, .tp = 2}), 2 * kOneLink);
  EXPECT_DOUBLE_EQ(reduce(Topology::grid({8}, {true}), {.dp = 2, .pp = 4}), 2 * kOneLink);

  // Hops cost latency: 10 us + 2 passes * 3 hops * 1 us + 8 bytes
  const LinkNetwork network{.link = kLink,
                            .link_efficiency = 1,
                            .hop_latency = {1e-6},
                            .collective_overhead = {10e-6},
                            .message_overhead = {10e-6}};
  const MeshMapping line = mappings(Topology::grid({4}, {false}), {.pp = 4}).front();
  EXPECT_NEAR(
      collective_time(network, CollectiveKind::kAllReduce, Algorithm::kRing, line.placement(Group::kPpEnds), {8}).value,
      16e-6, 1e-9);
}

TEST(CollectiveCost, HopsAddUpOverFactors) {
  EXPECT_EQ(hops_across(line(4)), 3);
  EXPECT_EQ(hops_across(ring(4)), 2);
  EXPECT_EQ(hops_across(line(4, 2)), 6);
  EXPECT_EQ(hops_across({{{.size = 2}, {.size = 4}, {.size = 4}}}), 1 + 3 + 3);
}

TEST(CollectiveCost, ATinyDirectAllReduceIsLatency) {
  // 10 us + 3 hops of 1 us + 4 members * 8 bytes * (3/4) / 4.5e10 = 13.0005 us
  const LinkNetwork network{.link = kLink,
                            .link_efficiency = 1,
                            .hop_latency = {1e-6},
                            .collective_overhead = {10e-6},
                            .message_overhead = {10e-6}};
  EXPECT_NEAR(collective_time(network, CollectiveKind::kAllReduce, Algorithm::kDirect, line(4), {8}).value, 13.0005e-6,
              1e-10);
  // by rings: 10 us + 2 * 3 us
  EXPECT_NEAR(collective_time(network, CollectiveKind::kAllReduce, Algorithm::kRing, line(4), {8}).value, 16e-6, 1e-9);
}

TEST(CollectiveCost, TheBooksReduceScatterOverTwoChipsOfTpuV2) {
  // How to Scale Your Model, profiling.md: 134 MB over 2 chips at 6e10: 1.118 ms, measured 1.13 ms
  const LinkNetwork v2{
      .link = {6e10}, .link_efficiency = 1, .hop_latency = {}, .collective_overhead = {}, .message_overhead = {}};
  EXPECT_NEAR(collective_time(v2, CollectiveKind::kReduceScatter, Algorithm::kRing, line(2), {134217728}).value,
              1.1184810666666667e-3, 1e-15);
}

TEST(CollectiveCost, PredictsTheMeasuredAllGatherOnAnOpenLineOfV5e) {
  // 34 MB over 4 chips took 680 us: 10 + 3 + 34e6 * 3/4 / (0.87 * 4.5e10) = 664 us
  const System v4 = load_system("v4:2x4x4");
  const auto& network = std::get<LinkNetwork>(v4.network);
  const double us =
      1e6 * collective_time(network, CollectiveKind::kAllGather, Algorithm::kRing, line(4), {34'000'000}).value;
  EXPECT_NEAR(us, 664.3, 0.1);
  EXPECT_NEAR(us / 680, 1, 0.05);
}

TEST(CollectiveCost, PredictsTheMeasuredAllGathersOn2x2OfV7x) {
  // tpu-recipes, ironwood/collectives: bytes received by a chip, and their rate; links of 1e11, our v4
  // constants
  LinkNetwork v7x = std::get<LinkNetwork>(load_system("v4:2x4x4").network);
  v7x.link = {1e11};
  const GroupPlacement square{{{.dimension = 0, .size = 2}, {.dimension = 1, .size = 2}}};
  const std::vector<std::pair<double, double>> measured{
      {1.6e6, 71.8e9}, {6.3e6, 129.2e9}, {25e6, 161.9e9}, {101e6, 174.8e9}, {403e6, 178.8e9}};
  for (const auto& [received, rate] : measured) {
    const Bytes whole{static_cast<std::int64_t>(received * 4 / 3)};
    const double seconds = collective_time(v7x, CollectiveKind::kAllGather, Algorithm::kRing, square, whole).value;
    EXPECT_NEAR(seconds / (received / rate), 1, 0.05) << received;
  }
}

TEST(CollectiveCost, AMessageCrossesItsHopsWithAsManyOthers) {
  const System v4 = load_system("v4:2x4x4");
  // pp on the outer half of y: 2 hops, 2 messages a link: 10 us + 2 * (1 us + 1 MB / (0.87 * 4.5e10))
  // = 63.086 us
  const MeshMapping mapping(v4.topology, {{{2, 1, 1}, {1, 2, 4}, {1, 2, 1}}});
  EXPECT_NEAR(1e6 * message_time(v4, mapping, {1'000'000}).value, 63.086, 0.001);
  EXPECT_EQ(message_time(v4, mappings(v4.topology, {.dp = 32}).front(), {1'000'000}).value, 0);
}

TEST(ChooseMapping, GivesTheHeaviestAxisTheBestPlace) {
  const System v4 = load_system("v4:2x4x4");
  const MeshShape mesh{.dp = 4, .pp = 2, .tp = 4};
  // tp 4 as 2 x 2 neighbours has two ports, 3/8 V/w; in a line one, 3/4
  const MeshMapping for_tp = choose_mapping(v4, mesh, {.tp = {1'000'000'000}, .dp = {1000}, .pp = {1000}});
  EXPECT_EQ(for_tp.placement(Group::kTp).factors.size(), 2u) << for_tp.describe();
  const MeshMapping for_dp = choose_mapping(v4, mesh, {.tp = {1000}, .dp = {1'000'000'000}, .pp = {1000}});
  EXPECT_EQ(for_dp.placement(Group::kDp).factors.size(), 2u) << for_dp.describe();
  for (const AxisFactor& f : for_dp.placement(Group::kDp).factors) EXPECT_EQ(f.stride, 1) << for_dp.describe();
}

TEST(ChooseMapping, DpOfThePublishedMeshSpreadsOverThreeDimensions) {
  const System v4 = load_system("v4:2x4x4");
  // dp 8 as x2 y2 z2, of which y shares its links with the other tp rank: 7/8 / (1 + 1/2 + 1) = 0.35 V/w;
  // as y2 z4, tp on x: 7/8 / 2 = 0.4375
  const MeshMapping chosen = choose_mapping(v4, {.dp = 8, .pp = 2, .tp = 2},
                                            {.tp = {1'000'000'000}, .dp = {1'000'000'000}, .pp = {10'000'000}});
  EXPECT_EQ(chosen.describe(), "tp: y2; dp: x2 y2 (stride 2) z2; pp: z2 (stride 2)");
  EXPECT_DOUBLE_EQ(gather(chosen.placement(Group::kDp)), kOneLink * 0.35);
}

TEST(ChooseMapping, NoMappingIsFasterThanTheChosenOne) {
  const System v4 = load_system("v4:4x4x4");
  const AxisTraffic traffic{.tp = {300'000'000}, .dp = {500'000'000}, .pp = {20'000'000}};
  const auto time = [&](const MeshMapping& m) {
    const auto gather_time = [&](Group g, Bytes b) {
      return collective_time(v4, m, CollectiveKind::kAllGather, Algorithm::kRing, g, b).value;
    };
    return gather_time(Group::kTp, traffic.tp) + gather_time(Group::kDp, traffic.dp) +
           message_time(v4, m, traffic.pp).value;
  };
  for (const MeshShape& mesh : {MeshShape{8, 4, 2}, MeshShape{2, 8, 4}, MeshShape{16, 1, 4}}) {
    const MeshMapping chosen = choose_mapping(v4, mesh, traffic);
    for (const MeshMapping& other : mappings(v4.topology, mesh)) EXPECT_GE(time(other), time(chosen));
    EXPECT_EQ(choose_mapping(v4, mesh, traffic), chosen);
  }
}

TEST(MeasuredNetwork, TimesAreReadOffBetweenMeasuredSizes) {
  const System cores = load_system_file(TEST_DATA "/two_cores.json");
  const MeshMapping mapping = mappings(cores.topology, {.dp = 2}).front();
  const auto us = [&](Bytes whole) {
    return 1e6 * collective_time(cores, mapping, CollectiveKind::kAllGather, Algorithm::kRing, Group::kDp, whole).value;
  };
  EXPECT_NEAR(us({1024}), 0.4, 1e-9);                          // a measured point
  EXPECT_NEAR(us({8}), 0.4, 1e-9);                             // below all: latency
  EXPECT_NEAR(us({128 << 20}), 12400, 1e-6);                   // above all: the last rate, 64 MiB in 6200 us
  EXPECT_NEAR(us({262144}), 3.2 * std::sqrt(24 / 3.2), 1e-9);  // half way in log size: the geometric mean
  EXPECT_EQ(message_time(cores, mapping, {64}).value, 0);      // no pipeline
  EXPECT_NEAR(1e6 * message_time(cores, mappings(cores.topology, {.pp = 2}).front(), {64}).value, 0.12, 1e-12);
}

}  // namespace
}  // namespace meshwright
