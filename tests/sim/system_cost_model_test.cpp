#include "sim/system_cost_model.h"

#include <gtest/gtest.h>

#include "model/program/op_work.h"
#include "sim/compute_cost.h"
#include "sim/simulate.h"
#include "tests/sim/handmade.h"

namespace meshwright {
namespace {

System eight_devices(bool overlaps) {
  System system;
  system.compute = RooflineCompute{.peak = {{DType::kF32, {1e12}}},
                                   .matmul_efficiency = 0.5,
                                   .tile = {},
                                   .memory_bandwidth = {1e9},
                                   .op_overhead = {1e-6}};
  system.network = LinkNetwork{.link = {1e9},
                               .link_efficiency = 1,
                               .hop_latency = {1e-6},
                               .collective_overhead = {0},
                               .message_overhead = {2e-6}};
  system.overlaps_compute = overlaps;
  system.topology = Topology::grid({8}, {false});
  return system;
}

// A product of 4 x 4 x 4, its gather over tp, and a message.
ProgramSet program() {
  ProgramSet set;
  set.mesh = {2, 2, 2};
  Piece piece{"piece", {}, {}, 0};
  for (int i = 0; i < 2; ++i) piece.tensors.push_back({"t", {4, 4}, DType::kF32, Frame::kWorkspace, 64 * i});
  const View a{0, 4, 4, 4, 0}, b{1, 4, 4, 4, 0};
  piece.ops = {
      Gemm{.a = a, .b = a, .c = b},
      Collective{.kind = CollectiveKind::kAllReduce, .group = Group::kTp, .src = b, .dst = b, .in_place = true},
      Send{b, Direction::kNext}};
  set.pieces.push_back(piece);
  Program stage;
  stage.chunks.push_back({"chunk", {Call{}, Call{}}});
  stage.slots.resize(3);
  set.stages.push_back(stage);
  return set;
}

TEST(SystemCostModel, CostsEveryKindOfOperationOnTheSystem) {
  const System system = eight_devices(true);
  const ProgramSet set = program();
  const SystemCostModel cost(system, set);
  const Piece& piece = set.pieces[0];
  // 3 operands of 64 bytes at 1 GB/s are 192 ns, above 128 FLOPs at 0.5 TFLOP/s; and 1 us of overhead.
  EXPECT_EQ(duration(piece.ops[0], piece, set, cost), 1'000'000 + work_of(piece.ops[0], piece).bytes.value * 1000);
  EXPECT_EQ(
      duration(piece.ops[1], piece, set, cost),
      to_time(collective_time(system, cost.mapping(), CollectiveKind::kAllReduce, Algorithm::kRing, Group::kTp, {64})));
  EXPECT_EQ(duration(piece.ops[2], piece, set, cost), to_time(message_time(system, cost.mapping(), {64})));
  EXPECT_GT(duration(piece.ops[2], piece, set, cost), 0);
  EXPECT_EQ(cost.mapping().mesh(), set.mesh);
}

TEST(SystemCostModel, CommunicationTakesTheComputeStreamWhereTheSystemDoesNotOverlap) {
  const ProgramSet set = program();
  const System apart = eight_devices(true), together = eight_devices(false);
  const SystemCostModel overlaps(apart, set), stops(together, set);
  const auto& ops = set.pieces[0].ops;
  EXPECT_EQ(occupied_stream(ops[1], overlaps), Stream::kTp);
  EXPECT_EQ(occupied_stream(ops[1], stops), Stream::kCompute);
  EXPECT_EQ(occupied_stream(ops[2], stops), Stream::kSendNext);
}

TEST(SystemCostModel, TrafficOfAnAxisCountsCallsSlotsAndAllReducesTwice) {
  // 3 slots of 2 calls: an all-reduce of 64 bytes and a message of 64 bytes each.
  const AxisTraffic traffic = axis_traffic(program());
  EXPECT_EQ(traffic.tp.value, 3 * 2 * 2 * 64);
  EXPECT_EQ(traffic.dp.value, 0);
  EXPECT_EQ(traffic.pp.value, 3 * 2 * 64);
}

}  // namespace
}  // namespace meshwright
