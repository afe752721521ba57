#include "sim/compute_cost.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string_view>

#include "model/input/diagnostics.h"
#include "tests/systems.h"

namespace meshwright {
namespace {

constexpr Tile kMxu{.rows = 8, .columns = 128, .depth = 128};

OpKind kind(std::string_view name) {
  for (int k = 0; k < kOpKinds; ++k) {
    if (kind_name(static_cast<OpKind>(k)) == name) return static_cast<OpKind>(k);
  }
  ADD_FAILURE() << name;
  return 0;
}

Work product(std::int64_t m, std::int64_t n, std::int64_t k, DType dtype = DType::kBF16) {
  return {.flops = {2 * m * n * k},
          .bytes = {size_of(dtype) * (m * k + k * n + m * n)},
          .m = m,
          .n = n,
          .k = k,
          .batch = 1,
          .dtype = dtype,
          .kind = kind("gemm")};
}

Work elementwise(std::int64_t bytes, std::string_view name = "activation") {
  return {.flops = {}, .bytes = {bytes}, .m = 0, .n = 0, .k = 0, .batch = 1, .dtype = DType::kBF16, .kind = kind(name)};
}

TEST(TileEfficiency, WholeTilesWasteNothing) {
  EXPECT_DOUBLE_EQ(tile_efficiency(kMxu, 8, 128, 256), 1);
  EXPECT_DOUBLE_EQ(tile_efficiency(kMxu, 0, 0, 0), 1);  // no product
}

TEST(TileEfficiency, PartialTilesArePadded) {
  EXPECT_DOUBLE_EQ(tile_efficiency(kMxu, 4, 128, 128), 0.5);          // 4 of 8 rows
  EXPECT_DOUBLE_EQ(tile_efficiency(kMxu, 8, 129, 128), 129.0 / 256);  // one column too many
  EXPECT_DOUBLE_EQ(tile_efficiency(kMxu, 8, 64, 64), 0.25);           // a head of 64: a quarter of the unit
}

TEST(Roofline, ALargeProductRunsAtTheCeiling) {
  const System v4 = load_system("v4:2x4x4");
  // 2 * 8192^3 / (2.75e14 * 0.9) + 1 us = 4443.5 us; its 403 MB take 385 us meanwhile
  EXPECT_NEAR(1e6 * compute_time(v4, product(8192, 8192, 8192)).value, 2 * std::pow(8192, 3) / 2.475e14 * 1e6 + 1,
              1e-6);
}

TEST(Roofline, FewTokensAreBoundByTheWeights) {
  const System v4 = load_system("v4:2x4x4");
  // 8 x 8192 x 8192: 134.5 MB / (1.23e12 * 0.85) = 128.6 us, against 4.3 us of FLOPs
  const Work work = product(8, 8192, 8192);
  EXPECT_NEAR(compute_time(v4, work).value, 1e-6 + work.bytes.value / (1.23e12 * 0.85), 1e-15);
}

TEST(Roofline, APlainCopyIsBytesOverBandwidth) {
  const System v4 = load_system("v4:2x4x4");
  EXPECT_NEAR(compute_time(v4, elementwise(1'045'500'000)).value, 1e-6 + 1e-3,
              1e-12);  // 1.23e12 * 0.85 * 1 ms
}

TEST(Roofline, F32ProductsTakeSixPasses) {
  const System v4 = load_system("v4:2x4x4");
  const double f32 = compute_time(v4, product(8192, 8192, 8192, DType::kF32)).value - 1e-6;
  const double bf16 = compute_time(v4, product(8192, 8192, 8192)).value - 1e-6;
  EXPECT_NEAR(f32 / bf16, 6, 0.01);
}

TEST(MeasuredCompute, ASmallProductRunsAtItsMeasuredRate) {
  const System cores = load_system_file(TEST_DATA "/two_cores.json");
  // smallest dimension 64: 1e11 FLOP/s; 2 * 64 * 768 * 768 = 75.5 MFLOP: 754.97 us + 1 us
  EXPECT_NEAR(1e6 * compute_time(cores, product(64, 768, 768, DType::kF32)).value, 755.97, 0.01);
  // 32 lies half way between 16 and 64 in log size: sqrt(5e10 * 1e11); beyond 768 the rate stays
  EXPECT_NEAR(compute_time(cores, product(32, 768, 768, DType::kF32)).value - 1e-6,
              2.0 * 32 * 768 * 768 / std::sqrt(5e21), 1e-12);
  EXPECT_NEAR(compute_time(cores, product(1024, 1024, 1024, DType::kF32)).value - 1e-6, std::pow(1024, 3) * 2 / 2e11,
              1e-12);
}

TEST(MeasuredCompute, KindsThatAreNotListedCostAsOthers) {
  const System cores = load_system_file(TEST_DATA "/two_cores.json");
  EXPECT_NEAR(1e6 * compute_time(cores, elementwise(50'000, "adamw")).value, 2 + 1,
              1e-9);                                                                             // listed: 5e10 bytes/s
  EXPECT_NEAR(1e6 * compute_time(cores, elementwise(20'000, "activation")).value, 3 + 1, 1e-9);  // other: 2e10
}

TEST(ComputeTime, OfAProductWithoutAPeakForItsTypeIsRefused) {
  System v4 = load_system("v4:2x4x4");
  std::get<RooflineCompute>(v4.compute).peak.erase(DType::kF32);
  EXPECT_NO_THROW(compute_time(v4, product(8, 128, 128)));
  EXPECT_THROW(compute_time(v4, product(8, 128, 128, DType::kF32)), InputError);
  EXPECT_THROW(compute_time(v4, product(8, 128, 128, DType::kF16)), InputError);  // fp16 is not bf16
  const System cores = load_system_file(TEST_DATA "/two_cores.json");
  EXPECT_THROW(compute_time(cores, product(64, 768, 768)), InputError);
}

}  // namespace
}  // namespace meshwright
