// What searches found and what runs measured, kept in an SQLite database: written by one process at a time,
// read by any.
//
// A search is stored in one transaction: after a crash at any moment the database holds all of it or nothing
// of it. The journal is a write-ahead log (readers don't wait for a writer), and a commit is on the disk when
// save() returns (synchronous = FULL). Don't copy the file without its -wal while someone writes.
//
// Tables (PRAGMA user_version is the schema's version, kSchemaVersion):
//   searches    one row a search: the question (config_json, system, system_description, each hash beside it for finding
//               the row), the build of the program that answered, whether it is complete or was interrupted, when (UTC), how many plans
//               it evaluated, of how many that are legal, how many fit,
//               how long it took. One row for each question and build: to search again does not add another.
//   plans       every plan that fits: its search and rank there (1 is the best), plan_id (plan_id() of model/plan.h, by
//               which people name it), and the columns of visit_fields(PlanResult). A plan is found in several searches:
//               the same plan_id, other figures. `id` is the row's own key, for runs, and is shown to nobody.
//   rejections  everything else, with the reason: illegal meshes (fsdp is null) or stages of FSDP on a mesh (it is not) with
//               detail and hint; plans that need too much memory, by their text (`plan`), with needed and excess bytes.
//   runs        of a row of plans: when, how many steps, and the columns of visit_fields(RunFigures), predicted_ and
//               measured_.
// What is read is input like any other: whoever wrote it, a value of the wrong type or out of its range, a plan that
// parse_plan() refuses, or one whose plan_id is not its own, is an InputError that names file, table, row, column, value
// and what is allowed.
#pragma once

#include <chrono>
#include <concepts>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "planner/search.h"

namespace meshwright {

constexpr int kSchemaVersion = 2;                    // 1: no plan_id, no build, no complete
constexpr std::int32_t kApplicationId = 0x4D574854;  // "MWHT", in the file's header

// What was searched, and by what: two searches with equal keys have the same answer.
struct SearchKey {
  std::string config_json;         // the resolved configuration
  std::string system;              // its name: "v4:2x4x4"
  std::string system_description;  // every number in it, by describe(): a new calibration differs
  std::string build;               // of the program, by build_id(): other code may answer otherwise
  bool operator==(const SearchKey&) const = default;
};

struct StoredSearch {
  std::int64_t id = 0;
  SearchKey key;
  std::string created;  // UTC, "2025-01-31T12:00:00Z"
  SearchResult result;
};

struct StoredPlan {
  std::int64_t id = 0;  // of the row; never used again, not even after the plan is deleted
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
  auto& [step_time_s, flops, sent_bytes, peak_memory_bytes] = f;  // a new field stops the build: name it below, too
  v("step_time_s", step_time_s);
  v("flops", flops);
  v("sent_bytes", sent_bytes);
  v("peak_memory_bytes", peak_memory_bytes);
}
struct StoredRun {
  std::int64_t plan = 0;
  std::string created;  // set by save()
  std::int64_t steps = 0;
  RunFigures predicted, measured;
  bool operator==(const StoredRun&) const = default;
};

// A connection. Used by one thread at a time, and not across a fork. Every function throws InputError where
// the file or its folder is at fault (not there, not writable, not a database, not ours, of another schema, damaged, full,
// locked by someone for longer than patience), naming the file and what to do, and where a value in it can't be.
class Store {
 public:
  enum class Access : std::uint8_t { kRead, kWrite, kWriteIfPossible };
  // kWrite makes the file if there is none. kRead needs an existing one. kWriteIfPossible is kRead where a file is there that
  // can't be written: save functions then throw. Refuses databases of other programs and of other versions of the schema.
  // patience: how long each function waits for a lock.
  explicit Store(const std::filesystem::path& file, Access access = Access::kWrite,
                 std::chrono::milliseconds patience = std::chrono::seconds(10));
  ~Store();
  Store(Store&&) noexcept;
  Store& operator=(Store&&) noexcept;

  // The id of the search. Where the database holds this very answer to this key already, those rows stay, and take the
  // new time; another answer to it is deleted, but for the plans that runs refer to. Precondition: not opened with kRead, like
  // all save functions. An interrupted search replaces an interrupted one only.
  std::int64_t save(const SearchKey& key, const SearchResult& result);

  // The newest search with exactly this key that was not interrupted.
  std::optional<std::int64_t> latest(const SearchKey& key) const;
  std::optional<StoredSearch> search(std::int64_t id) const;  // all of it, as it was saved

  std::optional<StoredPlan> plan(std::int64_t id) const;
  // Of a search, best first; at most `limit`.
  std::vector<StoredPlan> plans(std::int64_t search, std::int64_t limit = -1) const;
  // Exactly this plan, of the key's question: of a search with this key, else of the newest by another build.
  std::optional<StoredPlan> find(const SearchKey& key, const Plan& plan) const;
  // All plans whose plan_id begins with `prefix`, whatever they were found for, each once, by plan_id and text.
  std::vector<Plan> named(std::string_view prefix) const;

  // Precondition: run.plan is the id of a stored plan. The run's own id.
  std::int64_t save(const StoredRun& run);
  std::vector<StoredRun> runs(std::int64_t plan) const;  // oldest first

  // What SQLite finds wrong with the file (PRAGMA integrity_check and foreign_key_check); empty: nothing.
  std::vector<std::string> faults() const;

 private:
  std::optional<std::int64_t> newest(const SearchKey& key, bool complete) const;
  class Connection;
  std::unique_ptr<Connection> db_;
};

// The statements that make an empty database of kSchemaVersion.
std::string schema();

}  // namespace meshwright
