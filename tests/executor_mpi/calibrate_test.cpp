#include "executor/calibrate.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "executor/launch/heartbeat.h"
#include "tests/executor_mpi/training_case.h"

namespace meshwright {
namespace {

TEST(Calibrate, PeaksAreMeasuredOnAllRanksAtOnceAndAreTheSameOnEach) {
  const FirstRanks ranks(2);
  if (!ranks) return;
  const MachineRates rates = measure_machine(ranks.get());
  double least[2] = {rates.flops_per_s, rates.bytes_per_s}, most[2] = {least[0], least[1]};
  MPI_Allreduce(MPI_IN_PLACE, least, 2, MPI_DOUBLE, MPI_MIN, ranks.get());
  MPI_Allreduce(MPI_IN_PLACE, most, 2, MPI_DOUBLE, MPI_MAX, ranks.get());
  for (const int i : {0, 1}) {
    EXPECT_EQ(least[i], most[i]);
    EXPECT_GT(least[i], 1e6);
    EXPECT_LT(most[i], 1e15);
  }
}

// After the last step of a run: the watchdog must still see that it reports, however long a database is locked.
TEST(Calibrate, TheRateOfProductsIsMeasuredUnseenByTheWatchdog) {
  const FirstRanks ranks(1);
  if (!ranks) return;
  HeartbeatPage page(1);
  page.join(0);
  own_beat().step = 6;
  own_beat().now(Activity::kReporting);
  EXPECT_GT(product_rate(ranks.get()).flops_per_s, 1e6);
  EXPECT_EQ(page.doing(0), "step 7: reporting it");
}

}  // namespace
}  // namespace meshwright
