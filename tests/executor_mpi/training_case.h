// A model, its weights and its tokens for one step, and running it under a plan on the first ranks of the world.
#pragma once

#include <gtest/gtest.h>
#include <mpi.h>

#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "executor/executor.h"
#include "model/accounting.h"
#include "model/lowering/lower.h"

namespace meshwright {

// A communicator of the first `ranks` ranks of the world; null on the others.
class FirstRanks {
 public:
  explicit FirstRanks(int ranks) {
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_split(MPI_COMM_WORLD, rank < ranks ? 0 : MPI_UNDEFINED, rank, &comm_);
  }
  ~FirstRanks() {
    if (comm_ != MPI_COMM_NULL) MPI_Comm_free(&comm_);
  }
  FirstRanks(const FirstRanks&) = delete;
  FirstRanks& operator=(const FirstRanks&) = delete;
  explicit operator bool() const { return comm_ != MPI_COMM_NULL; }
  MPI_Comm get() const { return comm_; }

 private:
  MPI_Comm comm_ = MPI_COMM_NULL;
};

struct TrainingCase {
  ModelSpec model;
  TrainingShape shape;
  // Token t of sequence q of step s, and the one after it.
  std::function<std::int32_t(std::int64_t s, std::int64_t q, std::int64_t t)> input, target;
};

// Writes the ids that one rank holds of a microbatch.
inline std::function<void(int, std::int32_t*, std::int32_t*)> token_filler(const TrainingCase& c, const MeshComm& mesh,
                                                                           const StepShape& step, std::int64_t number) {
  return [&c, &mesh, step, number](int m, std::int32_t* inputs, std::int32_t* targets) {
    const std::int64_t own = step.tokens / mesh.shape().tp, first = mesh.coordinates().tp * own;
    for (std::int64_t t = 0; t < own; ++t)
      for (std::int64_t b = 0; b < step.microbatch; ++b) {
        const std::int64_t q =
            (static_cast<std::int64_t>(m) * mesh.shape().dp + mesh.coordinates().dp) * step.microbatch + b;
        *inputs++ = c.input(number, q, first + t);
        *targets++ = c.target(number, q, first + t);
      }
  };
}

// Whether a test has failed on any rank of the world: all ranks must leave together. Collective over the world.
inline bool failed_anywhere() {
  int failed = testing::Test::HasFailure();
  MPI_Allreduce(MPI_IN_PLACE, &failed, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  return failed != 0;
}

// |a - b| / |b| over a tensor, 0 if both are 0.
template <class A, class B>
double relative_distance(const std::vector<A>& a, const std::vector<B>& b) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
    difference += (x - y) * (x - y);
    norm += y * y;
  }
  return difference == 0 ? 0 : std::sqrt(difference / norm);
}

}  // namespace meshwright
