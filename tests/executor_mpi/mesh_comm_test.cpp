#include "executor/comm/mesh_comm.h"

#include <gtest/gtest.h>
#include <mpi.h>

#include <stdexcept>
#include <vector>

#include "executor/comm/byte_counter.h"
#include "executor/comm/collectives.h"
#include "executor/comm/rank_0_first.h"

namespace meshwright {
namespace {

// World ranks of this rank's group, gathered over the group's own communicator.
std::vector<int> members(const MeshComm& mesh, Group group) {
  const std::int32_t own = mesh.rank();
  std::vector<std::int32_t> all(mesh.size(group));
  ring_all_gather<std::int32_t>(mesh.comm(group), std::span(&own, 1), all);
  return {all.begin(), all.end()};
}

TEST(MeshComm, groups_differ_in_one_coordinate_and_tp_is_innermost) {
  int ranks = 0, rank = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  for (int dp = 1; dp <= ranks; ++dp) {
    for (int pp = 1; dp * pp <= ranks; ++pp) {
      for (int tp = 1; dp * pp * tp <= ranks; ++tp) {
        const MeshShape shape{dp, pp, tp};
        MPI_Comm part = MPI_COMM_NULL;
        MPI_Comm_split(MPI_COMM_WORLD, rank < shape.ranks() ? 0 : MPI_UNDEFINED, rank, &part);
        if (part == MPI_COMM_NULL) continue;
        SCOPED_TRACE(std::to_string(dp) + "x" + std::to_string(pp) + "x" + std::to_string(tp));
        {
          const MeshComm mesh(part, shape);
          EXPECT_EQ(mesh.rank(), rank);
          const auto [d, p, t] = mesh.coordinates();
          const auto rank_at = [&](int d, int p, int t) { return (d * pp + p) * tp + t; };
          std::vector<int> want;
          for (int i = 0; i < tp; ++i) want.push_back(rank_at(d, p, i));
          EXPECT_EQ(members(mesh, Group::kTp), want);
          EXPECT_EQ(want[mesh.index(Group::kTp)], rank);
          want.clear();
          for (int i = 0; i < dp; ++i) want.push_back(rank_at(i, p, t));
          EXPECT_EQ(members(mesh, Group::kDp), want);
          EXPECT_EQ(want[mesh.index(Group::kDp)], rank);
          want.clear();
          for (int i = 0; i < pp; ++i) want.push_back(rank_at(d, i, t));
          EXPECT_EQ(members(mesh, Group::kPp), want);
          EXPECT_EQ(want[mesh.index(Group::kPp)], rank);
          EXPECT_EQ(mesh.member(Group::kPpEnds), p == 0 || p == pp - 1);
          if (mesh.member(Group::kPpEnds)) {
            want = {rank_at(d, 0, t)};
            if (pp > 1) want.push_back(rank_at(d, pp - 1, t));
            EXPECT_EQ(members(mesh, Group::kPpEnds), want);
            EXPECT_EQ(want[mesh.index(Group::kPpEnds)], rank);
          }
        }
        MPI_Comm_free(&part);
      }
    }
  }
}

TEST(MeshComm, bytes_count_for_the_group_they_are_sent_in) {
  const MeshComm mesh(MPI_COMM_WORLD, {2, 2, 2});
  std::vector<float> x(6, 1), scratch(3);
  reset_traffic();
  ring_all_reduce<float>(mesh.comm(Group::kDp), x, scratch);  // 2 * 24 * 1/2 bytes
  const float own = 1;
  std::vector<float> pair(2);
  ring_all_gather<float>(mesh.comm(Group::kTp), std::span(&own, 1), pair);  // 8 * 1/2 bytes
  const int other = 1 - mesh.index(Group::kPp);
  PendingSend send = isend<float>(mesh.comm(Group::kPp), other, std::span<const float>(x));
  std::vector<float> got(6);
  recv<float>(mesh.comm(Group::kPp), other, got);
  send.wait();
  ring_all_reduce<float>(mesh.comm(Group::kPpEnds), x, scratch);
  const Traffic want = {{{"all-reduce", "dp"}, Bytes{24}},
                        {{"all-gather", "tp"}, Bytes{4}},
                        {{"send", "pp"}, Bytes{24}},
                        {{"all-reduce", "pp-ends"}, Bytes{24}}};
  EXPECT_EQ(traffic(), want);
}

TEST(MeshComm, of_another_size_than_the_world_is_refused_and_an_exception_frees_nothing) {
  EXPECT_THROW(MeshComm(MPI_COMM_WORLD, {1, 1, 1}), std::logic_error);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  // One rank leaves by an exception while the others are still at work: it must not wait for them.
  MPI_Comm group = MPI_COMM_NULL;
  try {
    const MeshComm mesh(MPI_COMM_WORLD, {2, 2, 2});
    group = mesh.comm(Group::kDp);
    throw std::runtime_error("one rank fails");
  } catch (const std::runtime_error&) {
  }
  int size = 0;
  MPI_Comm_size(group, &size);  // still there
  EXPECT_EQ(size, 2);
  MPI_Comm_free(&group);
}

TEST(Rank0First, the_others_start_when_rank_0_has_finished_or_failed) {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Win window = MPI_WIN_NULL;
  int* made = nullptr;  // lies on rank 0, seen by all
  MPI_Win_allocate_shared(rank == 0 ? sizeof(int) : 0, sizeof(int), MPI_INFO_NULL, MPI_COMM_WORLD, &made, &window);
  MPI_Aint size = 0;
  int unit = 0;
  MPI_Win_shared_query(window, 0, &size, &unit, &made);
  if (rank == 0) *made = 0;
  MPI_Barrier(MPI_COMM_WORLD);
  const int seen = rank_0_first(MPI_COMM_WORLD, [&] {
    if (rank == 0) *made = 42;
    return *made;
  });
  EXPECT_EQ(seen, 42);
  EXPECT_THROW(rank_0_first(MPI_COMM_WORLD, []() -> int { throw std::runtime_error("bad input"); }),
               std::runtime_error);
  MPI_Win_free(&window);
}

}  // namespace
}  // namespace meshwright
