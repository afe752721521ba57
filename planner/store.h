// What searches found and what runs measured, kept in an SQLite database: written by one process at a time,
// read by any.
//
// A search is stored in one transaction: after a crash at any moment the database holds all of it or nothing
// of it. The journal is a write-ahead log (readers don't wait for a writer), and a commit is on the disk when
// save() returns (synchronous = FULL). Don't copy the file without its -wal while someone writes.
//
// Tables: searches (one row per search: what was searched, when, counts), plans (every plan that fits, with
// its figures and rank), rejections (every other one, with the reason and its numbers), runs (predicted
// against measured). Columns of plans are those of visit_fields(PlanResult); PRAGMA user_version is the
// schema's version.
#pragma once

#include <chrono>
#include <concepts>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "planner/search.h"

namespace meshwright {

constexpr int kSchemaVersion = 2;  // 1: did not say whether a search is complete
constexpr std::int32_t kApplicationId = 0x4D574854;  // "MWHT", in the file's header

// What was searched: two searches with equal keys are answers to the same question.
struct SearchKey {
  std::string config_json;         // the resolved configuration
  std::string system;              // its name: "v4:2x4x4"
  std::string system_description;  // every number in it, by describe(): a new calibration differs
  bool operator==(const SearchKey&) const = default;
};

struct StoredSearch {
  std::int64_t id = 0;
  SearchKey key;
  std::string created;  // UTC, "2025-01-31T12:00:00Z"
  SearchResult result;
};

struct StoredPlan {
  std::int64_t id = 0;  // never used again, not even after the plan is deleted
  std::int64_t search = 0;
  std::int64_t rank = 0;  // in its search; 1 is the best
  PlanResult result;
  bool operator==(const StoredPlan&) const = default;
};

// A run of a stored plan: what was predicted for it on the machine where it ran, and what was measured there.
// Of a step; FLOPs and bytes sent of all ranks, peak bytes of the rank that needs the most.
struct RunFigures {
  double step_time_s = 0;
  double flops = 0;
  std::int64_t sent_bytes = 0;
  std::int64_t peak_memory_bytes = 0;
  bool operator==(const RunFigures&) const = default;
};
// Calls v(name, field) for every field under its name.
template <class Figures, class V>
requires std::same_as<std::remove_const_t<Figures>, RunFigures>
void visit_fields(Figures& f, V&& v) {
  v("step_time_s", f.step_time_s);
  v("flops", f.flops);
  v("sent_bytes", f.sent_bytes);
  v("peak_memory_bytes", f.peak_memory_bytes);
}
struct StoredRun {
  std::int64_t plan = 0;
  std::string created;  // set by save()
  std::int64_t steps = 0;
  RunFigures predicted, measured;
  bool operator==(const StoredRun&) const = default;
};

// A connection. Used by one thread at a time, and not across a fork. Every function throws InputError where
// the file or its folder is at fault (not there, not writable, not a database, not ours, damaged, full,
// locked by someone for longer than patience), naming the file and what to do.
class Store {
 public:
  enum class Access : std::uint8_t { kRead, kWrite, kWriteIfPossible };
  // kWrite makes the file if there is none. kRead needs an existing one. kWriteIfPossible is kRead where a file
  // is there that can't be written: save functions then throw. Refuses databases of other programs,
  // and those of a newer schema. patience: how long each function waits for a lock.
  explicit Store(const std::filesystem::path& file, Access access = Access::kWrite,
                 std::chrono::milliseconds patience = std::chrono::seconds(10));
  ~Store();
  Store(Store&&) noexcept;
  Store& operator=(Store&&) noexcept;

  // The id of the new search. Precondition: not opened with kRead, like all save functions.
  std::int64_t save(const SearchKey& key, const SearchResult& result);

  // The newest search of exactly this question that was not interrupted.
  std::optional<std::int64_t> latest(const SearchKey& key) const;
  std::optional<StoredSearch> search(std::int64_t id) const;  // all of it, as it was saved

  std::optional<StoredPlan> plan(std::int64_t id) const;
  // Of a search, best first; at most `limit`.
  std::vector<StoredPlan> plans(std::int64_t search, std::int64_t limit = -1) const;
  std::optional<StoredPlan> best(std::int64_t search) const;
  std::optional<StoredPlan> best_runnable(std::int64_t search) const;
  // The one that is exactly this plan, if it fits.
  std::optional<StoredPlan> find(std::int64_t search, const Plan& plan) const;

  // Precondition: run.plan is the id of a stored plan. The run's own id.
  std::int64_t save(const StoredRun& run);
  std::vector<StoredRun> runs(std::int64_t plan) const;  // oldest first

  // What SQLite finds wrong with the file (PRAGMA integrity_check and foreign_key_check); empty: nothing.
  std::vector<std::string> faults() const;

 private:
  class Connection;
  std::unique_ptr<Connection> db_;
};

// The statements that make an empty database of kSchemaVersion.
std::string schema();

}  // namespace meshwright
