// What is not run, by its name and before it starts.
#include "executor/limits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/config.h"
#include "model/lowering/lower.h"

namespace meshwright {
namespace {

using testing::HasSubstr;

std::optional<std::string> why(DType compute, std::int64_t tokens, const Plan& plan) {
  const ModelSpec model = read_config(std::string(REPOSITORY) + "/configs/models/llama-3-8b.json").model;
  return why_not_runnable(lower(model, {.sequences = 8, .tokens = tokens, .compute = compute}, plan));
}

TEST(Limits, TypesWithoutKernelsAreNotRun) {
  EXPECT_THAT(why(DType::kF16, 64, {}).value_or(""), HasSubstr("f16, whose gradients need a scale"));
  for (const DType compute : {DType::kF32, DType::kF64, DType::kBF16}) EXPECT_EQ(why(compute, 64, {}), std::nullopt);
}

TEST(Limits, MessagesThatMpiCantCountAreNotSent) {
  // Between stages 8 sequences of 65,536 tokens of 4,096 channels are 2^31 elements, one more than an int holds; half of
  // them in each of two microbatches, or on each of two tp ranks, are sent. So it is with a gathered sequence.
  EXPECT_THAT(why(DType::kBF16, 65536, {.mesh = {1, 2, 1}}).value_or(""),
              HasSubstr("a message of more than 2147483647 elements (send of send.forward has 2147483648)"));
  EXPECT_EQ(why(DType::kBF16, 65536, {.mesh = {1, 2, 1}, .microbatches = 2}), std::nullopt);
  EXPECT_EQ(why(DType::kBF16, 65536, {.mesh = {1, 2, 2}}), std::nullopt);
  EXPECT_EQ(why(DType::kBF16, 65536, {}), std::nullopt);  // nothing is sent
  EXPECT_THAT(why(DType::kBF16, 131072, {.mesh = {1, 1, 2}}).value_or(""), HasSubstr("all-gather of dense.forward"));
  EXPECT_EQ(why(DType::kBF16, 131072, {.mesh = {1, 1, 4}}), std::nullopt);
}

}  // namespace
}  // namespace meshwright
