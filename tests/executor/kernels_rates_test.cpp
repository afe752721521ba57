// What a core can do at most: the work that the two loops claim is the work that they do.
#include "executor/kernels/machine_rates.h"
#include "tests/executor/kernel_test_support.h"

namespace meshwright::kernels {
namespace {

TEST(MachineRates, every_chain_of_multiply_adds_runs_every_round) {
  // x -> x/2 + 1 settles at 2 in every element, and a round does 2 FLOPs to each: the sum of all elements is the FLOPs of a
  // round. Were a chain left out, or a round, the sum would show it.
  float result = 0;
  const double flops = multiply_add_rounds(1000, &result);
  EXPECT_GE(result, 2 * 4 * 12);  // vectors of four floats, twelve chains at least
  EXPECT_EQ(flops, 1000.0 * result);
  // From x = 1 on one round leaves the distance to 2 halved: rounds are not skipped.
  float first = 0, second = 0;
  multiply_add_rounds(1, &first);
  multiply_add_rounds(2, &second);
  EXPECT_FLOAT_EQ(second - result, (first - result) / 2);
}

TEST(MachineRates, every_chain_of_bf16_products_runs_every_round) {
  float result = 0, next = 0;
  const double flops = bf16_multiply_add_rounds(1000, &result), f32 = multiply_add_rounds(1000, &next);
  if (flops == f32) GTEST_SKIP() << "this machine has no products of bf16";
  EXPECT_EQ(flops, 2 * f32);
  // A round adds two products of 1/2 and 1/4 to every element: 1/4, and 4 FLOPs.
  bf16_multiply_add_rounds(1001, &next);
  EXPECT_EQ(flops, 1000 * 4 * 4.0 * static_cast<double>(next - result));
}

TEST(MachineRates, a_copy_counts_what_it_reads_and_what_it_writes) {
  std::vector<std::byte> from(100001, std::byte{7}), to(from.size() + 1);
  EXPECT_EQ(copy_bytes(from.size(), from.data(), to.data()), 2.0 * 100001);
  EXPECT_TRUE(std::equal(from.begin(), from.end(), to.begin()));
  EXPECT_EQ(to.back(), std::byte{0});
}

}  // namespace
}  // namespace meshwright::kernels
