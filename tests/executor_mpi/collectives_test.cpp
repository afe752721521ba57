// The collectives against straightforward sums, on every number of ranks from 1 to 8, and what they send
// against the formulas of executor/comm/collectives.h.
#include "executor/comm/collectives.h"

#include <gtest/gtest.h>
#include <mpi.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "executor/comm/byte_counter.h"
#include "executor/comm/message_tag.h"

namespace meshwright {
namespace {

// Calls f(comm, p, r) on the first p ranks of the world, for every p.
void for_each_size(const std::function<void(MPI_Comm, int, int)>& f) {
  int ranks = 0, rank = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  for (int p = 1; p <= ranks; ++p) {
    MPI_Comm comm = MPI_COMM_NULL;
    MPI_Comm_split(MPI_COMM_WORLD, rank < p ? 0 : MPI_UNDEFINED, rank, &comm);
    if (comm == MPI_COMM_NULL) continue;
    SCOPED_TRACE("p = " + std::to_string(p));
    register_group(comm, Group::kDp);
    f(comm, p, rank);
    MPI_Comm_free(&comm);
  }
}

// What rank r holds, in [-1, 1): every rank can compute what the others have. (A splitmix64 of seed, rank and
// index.)
template <class T>
std::vector<T> values_of(int r, std::size_t n, std::uint64_t seed = 0) {
  std::vector<T> v(n);
  for (std::size_t i = 0; i < n; ++i) {
    std::uint64_t x = ((seed * 64 + r) << 32 | i) * 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    v[i] = static_cast<T>(static_cast<double>(static_cast<std::int64_t>(x ^ (x >> 31))) / 9.3e18);
  }
  return v;
}

template <class T>
std::vector<long double> sum_of_ranks(int p, std::size_t n, int seed = 0) {
  std::vector<long double> sum(n, 0);
  for (int r = 0; r < p; ++r) {
    const std::vector<T> v = values_of<T>(r, n, seed);
    for (std::size_t i = 0; i < n; ++i) sum[i] += v[i];
  }
  return sum;
}

// p summands below 1: at most p-1 additions, each rounded by half an epsilon of at most p.
template <class T>
void expect_sum(std::span<const T> got, std::span<const long double> want, int p) {
  const long double tolerance = p * p * std::numeric_limits<T>::epsilon();
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (std::abs(got[i] - want[i]) > tolerance) {
      ADD_FAILURE() << "element " << i << ": " << got[i] << " instead of " << static_cast<double>(want[i]);
      return;
    }
  }
}

template <class T>
bool same_bits(std::span<const T> a, std::span<const T> b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
}

Traffic expected(const char* operation, std::int64_t bytes) {
  Traffic t;
  if (bytes > 0) t[{operation, "dp"}] = Bytes{bytes};
  return t;
}

template <class T>
class Collectives : public testing::Test {};
using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(Collectives, Reals);

TYPED_TEST(Collectives, all_gather_puts_the_ranks_parts_one_after_another_and_sends_n_times_p_minus_1_over_p) {
  using T = TypeParam;
  for_each_size([](MPI_Comm comm, int p, int r) {
    for (const std::size_t chunk : {1, 7, 1000, 140'000}) {
      const std::vector<T> own = values_of<T>(r, chunk);
      std::vector<T> gathered(chunk * p, T(99)), in_place(chunk * p, T(99));
      reset_traffic();
      ring_all_gather<T>(comm, own, gathered);
      EXPECT_EQ(traffic(), expected("all-gather", chunk * sizeof(T) * (p - 1)));  // n/p (p-1)
      std::copy(own.begin(), own.end(), in_place.begin() + r * chunk);
      ring_all_gather<T>(comm, std::span<const T>(in_place).subspan(r * chunk, chunk), in_place);
      for (int q = 0; q < p; ++q) {
        const std::vector<T> part = values_of<T>(q, chunk);
        EXPECT_TRUE(same_bits<T>(part, std::span<const T>(gathered).subspan(q * chunk, chunk))) << "part of rank " << q;
      }
      EXPECT_TRUE(same_bits<T>(gathered, in_place));
    }
  });
}

TYPED_TEST(Collectives, reduce_scatter_leaves_the_sum_of_chunk_r_on_rank_r_and_only_reads_its_source) {
  using T = TypeParam;
  for_each_size([](MPI_Comm comm, int p, int r) {
    // 140'000 elements are several segments, the last one shorter.
    for (const std::size_t chunk : {1, 2, 3, 1000, 140'000}) {
      const std::size_t n = chunk * p;
      const std::vector<T> src = values_of<T>(r, n);
      const std::vector<long double> sum = sum_of_ranks<T>(p, n);
      const auto want = std::span(sum).subspan(r * chunk, chunk);
      std::vector<T> dst(chunk, T(99)), scratch(chunk);

      std::vector<T> source = src;
      reset_traffic();
      ring_reduce_scatter<T>(comm, source, dst, scratch);
      EXPECT_EQ(traffic(), expected("reduce-scatter", chunk * sizeof(T) * (p - 1)));
      expect_sum<T>(dst, want, p);
      EXPECT_TRUE(same_bits<T>(source, src)) << "the source changed";

      std::vector<T> again(chunk);
      ring_reduce_scatter<T>(comm, source, again, scratch);
      EXPECT_TRUE(same_bits<T>(dst, again)) << "the same input gave other bits";

      std::vector<T> added(chunk, T(1));
      ring_reduce_scatter<T>(comm, source, added, scratch, /*accumulate=*/true);
      std::vector<T> one_more(chunk);
      for (std::size_t i = 0; i < chunk; ++i) one_more[i] = T(1) + dst[i];
      EXPECT_TRUE(same_bits<T>(added, one_more)) << "accumulate is not dst + sum";

      std::span<T> own = std::span(source).subspan(r * chunk, chunk);
      ring_reduce_scatter<T>(comm, source, own, scratch);
      EXPECT_TRUE(same_bits<T>(own, dst)) << "in place gives other bits";
      std::copy_n(src.begin() + r * chunk, chunk, own.begin());
      EXPECT_TRUE(same_bits<T>(source, src)) << "in place changes more than the rank's own chunk";
    }
  });
}

TYPED_TEST(Collectives, ring_all_reduce_gives_all_ranks_the_same_bits_and_sends_twice_n_times_p_minus_1_over_p) {
  using T = TypeParam;
  for_each_size([](MPI_Comm comm, int p, int r) {
    for (const std::size_t chunk : {1, 5, 1000, 140'000}) {
      const std::size_t n = chunk * p;
      std::vector<T> buffer = values_of<T>(r, n), again = buffer, scratch(chunk);
      reset_traffic();
      ring_all_reduce<T>(comm, buffer, scratch);
      EXPECT_EQ(traffic(), expected("all-reduce", 2 * chunk * sizeof(T) * (p - 1)));
      expect_sum<T>(buffer, sum_of_ranks<T>(p, n), p);
      ring_all_reduce<T>(comm, again, scratch);
      EXPECT_TRUE(same_bits<T>(buffer, again)) << "the same input gave other bits";

      std::vector<T> of_rank_0 = buffer;
      MPI_Bcast(of_rank_0.data(), static_cast<int>(n * sizeof(T)), MPI_BYTE, 0, comm);
      EXPECT_TRUE(same_bits<T>(buffer, of_rank_0)) << "other bits than rank 0";
    }
  });
}

TYPED_TEST(Collectives, direct_all_reduce_sums_in_rank_order_and_sends_n_times_p_minus_1) {
  using T = TypeParam;
  for_each_size([](MPI_Comm comm, int p, int r) {
    for (const std::size_t n : {0, 1, 7, 100}) {
      std::vector<T> buffer = values_of<T>(r, n), scratch(n * p);
      reset_traffic();
      direct_all_reduce<T>(comm, buffer, scratch);
      EXPECT_EQ(traffic(), expected("all-reduce", n * sizeof(T) * (p - 1)));
      std::vector<T> want = values_of<T>(0, n);  // exactly this order
      for (int q = 1; q < p; ++q) {
        const std::vector<T> x = values_of<T>(q, n);
        for (std::size_t i = 0; i < n; ++i) want[i] += x[i];
      }
      EXPECT_TRUE(same_bits<T>(buffer, want));
    }
  });
}

TEST(PointToPoint, messages_arrive_in_order_while_several_sends_are_under_way) {
  for_each_size([](MPI_Comm comm, int p, int r) {
    if (p == 1) return;
    const std::size_t n = 100'000;  // beyond what MPI buffers
    const std::vector<float> first = values_of<float>(r, n, 1), second = values_of<float>(r, n, 2);
    reset_traffic();
    PendingSend a = isend<float>(comm, (r + 1) % p, first);
    PendingSend b = isend<float>(comm, (r + 1) % p, second);
    std::vector<float> got(n);
    const int from = (r + p - 1) % p;
    recv<float>(comm, from, got);
    EXPECT_EQ(got, values_of<float>(from, n, 1));
    recv<float>(comm, from, got);
    EXPECT_EQ(got, values_of<float>(from, n, 2));
    PendingSend moved = std::move(b);
    a.wait();
    moved.wait();
    moved.wait();  // nothing under way any more
    EXPECT_TRUE(moved.done());
    EXPECT_EQ(traffic(), expected("send", 2 * n * sizeof(float)));
  });
}

// Runs f on ranks 0 and 1.
void on_two_ranks(const std::function<void(MPI_Comm, int)>& f) {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm comm = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, rank < 2 ? 0 : MPI_UNDEFINED, rank, &comm);
  if (comm == MPI_COMM_NULL) return;
  register_group(comm, Group::kTp);
  f(comm, rank);
  MPI_Comm_free(&comm);
}

TEST(Lengths, of_messages_that_are_not_what_was_expected_are_errors_that_name_both_ends) {
  on_two_ranks([](MPI_Comm comm, int r) {
    for (const std::size_t factor : {1, 20'000}) {  // sent with its envelope, and after a handshake
      const std::size_t own = (r == 0 ? 10 : 6) * factor, other = (r == 0 ? 6 : 10) * factor;
      const std::vector<float> src(own);
      std::vector<float> dst(2 * own);
      try {
        ring_all_gather<float>(comm, src, dst);
        ADD_FAILURE() << "accepted";
      } catch (const std::logic_error& error) {
        EXPECT_EQ(std::string(error.what()), "all-gather over tp: rank " + std::to_string(r) + " expected " +
                                                 std::to_string(4 * own) + " bytes from rank " + std::to_string(1 - r) +
                                                 ", which sent " + std::to_string(4 * other) +
                                                 ": they do not run the same program");
      }
      MPI_Barrier(comm);
    }
    if (r == 0) {
      const std::vector<float> x(5);
      isend<float>(comm, 1, x).wait();
    } else {
      std::vector<float> x(7);
      try {
        recv<float>(comm, 0, x);
        ADD_FAILURE() << "accepted";
      } catch (const std::logic_error& error) {
        EXPECT_NE(std::string(error.what()).find("send over tp: rank 1 expected 28 bytes from rank 0, which sent 20"),
                  std::string::npos)
            << error.what();
      }
    }
    EXPECT_THROW(
        {
          std::vector<float> dst(3);
          ring_all_gather<float>(comm, std::vector<float>(2), dst);
        },
        std::logic_error)
        << "checked before anything is sent";
  });
}

TEST(Tags, differ_by_operation_and_are_the_same_on_all_ranks) {
  on_two_ranks([](MPI_Comm comm, int r) {
    std::set<int> seen;
    std::vector<int> tags;
    for (int i = 0; i < 3; ++i)
      for (const MessageKind kind : {MessageKind::kAllGather, MessageKind::kAllReduce})
        tags.push_back(next_collective_tag(comm, kind));
    tags.push_back(r == 0 ? next_send_tag(comm, 1) : next_recv_tag(comm, 0));
    tags.push_back(r == 0 ? next_send_tag(comm, 1) : next_recv_tag(comm, 0));
    for (const int tag : tags) EXPECT_TRUE(is_our_tag(tag) && seen.insert(tag).second) << tag;
    std::vector<int> of_rank_0 = tags;
    MPI_Bcast(of_rank_0.data(), static_cast<int>(tags.size()), MPI_INT, 0, comm);
    EXPECT_EQ(tags, of_rank_0);
    EXPECT_EQ(kind_of_tag(tags[1]), MessageKind::kAllReduce);
    for (int i = 0; i < 3 * kTagNumbers; ++i) {  // they begin anew, within what MPI promises
      const int tag = next_collective_tag(comm, MessageKind::kReduceScatter);
      ASSERT_TRUE(is_our_tag(tag) && kind_of_tag(tag) == MessageKind::kReduceScatter);
    }
  });
}

TEST(Tags, a_message_of_another_operation_is_not_taken_for_this_ones) {
  on_two_ranks([](MPI_Comm comm, int r) {
    // Rank 0 sends two messages of one length; rank 1 receives what was sent second with the second operation, though it
    // asks for it first.
    const std::vector<float> first(4, 1), second(4, 2);
    std::vector<float> a(4), b(4);
    if (r == 0) {
      PendingSend one = isend<float>(comm, 1, first), two = isend<float>(comm, 1, second);
      one.wait();
      two.wait();
    } else {
      const int tag_of_first = next_recv_tag(comm, 0);
      recv<float>(comm, 0, b);
      MPI_Recv(a.data(), 4, MPI_FLOAT, 0, tag_of_first, comm, MPI_STATUS_IGNORE);
      EXPECT_EQ(a, first);
      EXPECT_EQ(b, second);
    }
  });
}

TEST(ByteCounter, sees_messages_that_do_not_go_through_our_collectives) {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  reset_traffic();
  double x = 1, y = 0;
  MPI_Sendrecv(&x, 1, MPI_DOUBLE, rank, 7, &y, 1, MPI_DOUBLE, rank, 7, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  MPI_Allreduce(&x, &y, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
  const Traffic want = {{{"other", "none"}, Bytes{8}}, {{"mpi-collective", "none"}, Bytes{8}}};
  EXPECT_EQ(traffic(), want);
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_Irecv(&y, 1, MPI_DOUBLE, rank, 8, MPI_COMM_WORLD, &request);
  MPI_Ssend(&x, 1, MPI_DOUBLE, rank, 8, MPI_COMM_WORLD);
  MPI_Wait(&request, MPI_STATUS_IGNORE);
  EXPECT_EQ((traffic()[{"other", "none"}]), Bytes{16});
  reset_traffic();
  EXPECT_EQ(traffic(), Traffic{});
}

}  // namespace
}  // namespace meshwright
