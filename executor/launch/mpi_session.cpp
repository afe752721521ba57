#include "executor/launch/mpi_session.h"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <limits>
#include <utility>

#include "executor/launch/launcher.h"
#include "executor/launch/resources.h"
#include "model/input/diagnostics.h"
#include "model/program/check.h"

namespace meshwright {

namespace {

// For the life of the process: an exception that ends it must find the page, to mark how it ended.
HeartbeatPage* page = nullptr;

// The page of the process that started these ranks, if it did.
HeartbeatPage* page_of_launcher() {
  const char* path = std::getenv(kHeartbeatVariable);
  if (!path) return nullptr;
  auto found = HeartbeatPage::open(path, started_ranks());
  return found ? new HeartbeatPage(std::move(*found)) : nullptr;
}

// The ranks of one machine share a page that the first of them makes. Collective. `own`: found already.
HeartbeatPage* page_of_machine(HeartbeatPage* own, int rank, int ranks) {
  MPI_Comm machine = MPI_COMM_NULL;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &machine);
  int all_have_one = own != nullptr, first = 0;
  MPI_Allreduce(MPI_IN_PLACE, &all_have_one, 1, MPI_INT, MPI_MIN, machine);
  MPI_Comm_rank(machine, &first);
  if (!all_have_one) {
    std::array<char, 64> path{};
    if (first == 0) {
      own = new HeartbeatPage(ranks);
      std::snprintf(path.data(), path.size(), "%s", own->path().c_str());
    }
    MPI_Bcast(path.data(), static_cast<int>(path.size()), MPI_CHAR, 0, machine);
    auto found = HeartbeatPage::open(path.data(), ranks);
    if (first != 0)
      own = new HeartbeatPage(found ? std::move(*found) : HeartbeatPage(ranks));  // or alone: seen by none
  }
  MPI_Barrier(machine);  // the first keeps it until all have opened it
  MPI_Comm_free(&machine);
  return own;
}

}  // namespace

MpiSession::MpiSession() {
  bind_to_claimed_core();
  page = page_of_launcher();
  const char* rank_text = std::getenv("OMPI_COMM_WORLD_RANK");
  const int expected_rank = rank_text ? std::atoi(rank_text) : 0;
  if (page && expected_rank >= 0 && expected_rank < page->ranks()) page->join(expected_rank);

  int provided = 0;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
  if (ranks() != started_ranks()) {
    const int world = ranks();
    MPI_Finalize();
    throw InputError(Diagnostic{
        .source = "environment",
        .path = "OMPI_COMM_WORLD_SIZE",
        .value = std::to_string(started_ranks()),
        .allowed =
            "the number of ranks that Open MPI's mpirun started; MPI says that there is " + std::to_string(world),
        .hint = "left over from another mpirun, or set by one of another MPI: unset it, and the ranks are started for "
                "you"});
  }
  HeartbeatPage* const given = page;
  page = page_of_machine(given, rank(), ranks());
  if (page != given) page->join(rank());
  own_beat().now(Activity::kPreparing);
}

MpiSession::~MpiSession() {
  if (std::uncaught_exceptions() > 0) return;
  own_beat().now(Activity::kEnding);
  MPI_Finalize();
  own_beat().exits(0);
}

HeartbeatPage& MpiSession::heartbeat() const { return *page; }

int MpiSession::rank() const {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

int MpiSession::ranks() const {
  int ranks = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  return ranks;
}

std::string MpiSession::from_rank_0(const std::function<std::string()>& make) const {
  std::string text = rank() == 0 ? make() : "";
  check(text.size() <= static_cast<std::size_t>(std::numeric_limits<int>::max()), "a text of {} bytes", text.size());
  int size = static_cast<int>(text.size());
  MPI_Bcast(&size, 1, MPI_INT, 0, MPI_COMM_WORLD);
  text.resize(static_cast<std::size_t>(size));
  MPI_Bcast(text.data(), size, MPI_CHAR, 0, MPI_COMM_WORLD);
  return text;
}

bool MpiSession::active() {
  int begun = 0, ended = 0;
  MPI_Initialized(&begun);
  MPI_Finalized(&ended);
  return begun && !ended;
}

void MpiSession::abort(int code) {
  own_beat().exits(code);
  MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

}  // namespace meshwright
