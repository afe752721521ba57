#include "planner/store.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <type_traits>

#include "model/input/content_key.h"
#include "planner/sqlite.h"

namespace meshwright {
namespace {

using sqlite::Database;
using sqlite::Statement;
using sqlite::Transaction;

// ---- C++ values as columns
// ------------------------------------------------------------------------------------------

template <class T>
constexpr std::string_view sql_type() {
  if constexpr (std::is_same_v<T, double>)
    return "REAL";
  else if constexpr (std::is_integral_v<T>)
    return "INTEGER";
  else
    return "TEXT";
}

constexpr const auto& names_of(Schedule) { return kScheduleNames; }
constexpr const auto& names_of(Recompute) { return kRecomputeNames; }

template <class T>
void put(Statement& s, const T& value) {
  if constexpr (std::is_enum_v<T>)
    s.bind(name(value));
  else if constexpr (std::is_same_v<T, std::vector<int>>)
    s.bind(fmt::format("{}", fmt::join(value, ",")));
  else if constexpr (std::is_integral_v<T>)
    s.bind(std::int64_t{value});
  else
    s.bind(value);
}

template <class T>
void get(const Database& db, Statement& s, T& value) {
  if constexpr (std::is_enum_v<T>) {
    const std::string text = s.text();
    const auto& names = names_of(T{});
    const auto found = std::ranges::find(names, text);
    if (found == names.end())
      db.refuse(fmt::format("a plan with \"{}\"", text), fmt::format("{}", fmt::join(names, ", ")),
                "the database was changed by something else than this meshwright");
    value = static_cast<T>(found - names.begin());
  } else if constexpr (std::is_same_v<T, std::vector<int>>) {
    const std::string text = s.text();
    value.clear();
    for (std::size_t at = 0; at < text.size(); at = std::min(text.find(',', at), text.size() - 1) + 1)
      value.push_back(std::atoi(text.c_str() + at));
  } else if constexpr (std::is_same_v<T, double>) {
    value = s.number();
  } else if constexpr (std::is_integral_v<T>) {
    value = static_cast<T>(s.integer());
  } else {
    value = s.text();
  }
}

std::string plan_columns() {
  std::string columns;
  const PlanResult fields;
  visit_fields(fields, [&](std::string_view name, const auto&) { columns += fmt::format(", {}", name); });
  return columns;
}

std::string select_plans() { return "SELECT id, search, rank" + plan_columns() + " FROM plans "; }

std::string run_columns() {
  std::string columns = "plan, created, steps";
  const RunFigures fields;
  for (const std::string_view side : {"predicted", "measured"})
    visit_fields(fields, [&](std::string_view name, const auto&) { columns += fmt::format(", {}_{}", side, name); });
  return columns;
}

// "?, ?, ?": one for each column of a list.
std::string marks(std::string_view columns) {
  std::string text = "?";
  for (const char c : columns)
    if (c == ',') text += ", ?";
  return text;
}

std::string insert(std::string_view table, std::string_view columns) {
  return fmt::format("INSERT INTO {} ({}) VALUES ({})", table, columns, marks(columns));
}

std::string utc_now() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

// FNV-1a, 64 bit, in hexadecimal: for finding rows; equality is decided by the texts themselves.
StoredPlan read_plan(const Database& db, Statement& s) {
  StoredPlan stored{.id = s.integer(), .search = s.integer(), .rank = s.integer()};
  visit_fields(stored.result, [&](std::string_view, auto& field) { get(db, s, field); });
  return stored;
}

std::optional<StoredPlan> read_one(const Database& db, Statement& s) {
  if (!s.step()) return std::nullopt;
  return read_plan(db, s);
}

}  // namespace

std::string schema() {
  std::string plans, predicted, measured;
  const PlanResult plan;
  visit_fields(plan, [&]<class T>(std::string_view name, const T&) {
    plans += fmt::format(",\n  {} {} NOT NULL", name, sql_type<T>());
  });
  const RunFigures figures;
  visit_fields(figures, [&]<class T>(std::string_view name, const T&) {
    predicted += fmt::format(",\n  predicted_{} {} NOT NULL", name, sql_type<T>());
    measured += fmt::format(",\n  measured_{} {} NOT NULL", name, sql_type<T>());
  });
  return fmt::format(R"(CREATE TABLE searches (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  config_hash TEXT NOT NULL,
  config_json TEXT NOT NULL,
  system TEXT NOT NULL,
  system_hash TEXT NOT NULL,
  system_description TEXT NOT NULL,
  created TEXT NOT NULL,
  evaluated INTEGER NOT NULL,
  fitting INTEGER NOT NULL,
  elapsed_s REAL NOT NULL,
  complete INTEGER NOT NULL
);
CREATE INDEX searches_by_question ON searches (config_hash, system_hash, system);
CREATE TABLE plans (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  search INTEGER NOT NULL REFERENCES searches (id),
  rank INTEGER NOT NULL{},
  UNIQUE (search, rank)
);
CREATE TABLE rejections (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  search INTEGER NOT NULL REFERENCES searches (id),
  reason TEXT NOT NULL,
  dp INTEGER NOT NULL,
  pp INTEGER NOT NULL,
  tp INTEGER NOT NULL,
  fsdp INTEGER,
  microbatches INTEGER,
  schedule TEXT,
  recompute TEXT,
  layers TEXT,
  detail TEXT,
  hint TEXT,
  needed_bytes INTEGER,
  excess_bytes INTEGER
);
CREATE INDEX rejections_by_search ON rejections (search);
CREATE TABLE runs (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  plan INTEGER NOT NULL REFERENCES plans (id),
  created TEXT NOT NULL,
  steps INTEGER NOT NULL{}{}
);
CREATE INDEX runs_by_plan ON runs (plan);
)",
                     plans, predicted, measured);
}

class Store::Connection : public Database {
 public:
  Connection(const std::filesystem::path& file, sqlite::Access access, std::chrono::milliseconds patience)
      : Database(file, access, patience) {
    // Who it belongs to comes before anything that would change it.
    const bool fresh = blank();
    const bool reads = access == sqlite::Access::kRead || (access == sqlite::Access::kWriteIfPossible && !writable());
    if (fresh && reads)
      refuse("an empty database", "a database that meshwright made", "search first, or name another file with --db");
    if (!fresh) require_ours();
    if (reads) return;
    if (!writable()) fail(SQLITE_READONLY);
    run("PRAGMA journal_mode = WAL");
    run("PRAGMA synchronous = FULL");
    run("PRAGMA foreign_keys = ON");
    if (!fresh) return;
    Transaction transaction(*this);
    if (blank())  // still: nobody else made it meanwhile
      run(schema() +
          fmt::format("PRAGMA application_id = {}; PRAGMA user_version = {};", kApplicationId, kSchemaVersion));
    else
      require_ours();
    transaction.commit();
  }

 private:
  bool blank() const {
    return pragma("application_id") == 0 && pragma("user_version") == 0 &&
           !Statement(*this, "SELECT 1 FROM sqlite_schema").step();
  }
  void require_ours() const {
    if (pragma("application_id") != kApplicationId)
      refuse("a database of another program", "a database that meshwright made", "name another file with --db");
    if (const std::int64_t version = pragma("user_version"); version != kSchemaVersion)
      refuse(fmt::format("schema version {}", version), fmt::format("schema version {}", kSchemaVersion),
             "it was made by another release of meshwright: use that one, or name another file with --db");
  }
};

// One enumeration under two names, as the header does not show SQLite.
static_assert(static_cast<int>(Store::Access::kRead) == static_cast<int>(sqlite::Access::kRead) &&
              static_cast<int>(Store::Access::kWrite) == static_cast<int>(sqlite::Access::kWrite) &&
              static_cast<int>(Store::Access::kWriteIfPossible) == static_cast<int>(sqlite::Access::kWriteIfPossible));

Store::Store(const std::filesystem::path& file, Access access, std::chrono::milliseconds patience)
    : db_(std::make_unique<Connection>(file, static_cast<sqlite::Access>(access), patience)) {}
Store::~Store() = default;
Store::Store(Store&&) noexcept = default;
Store& Store::operator=(Store&&) noexcept = default;

std::int64_t Store::save(const SearchKey& key, const SearchResult& result) {
  Transaction transaction(*db_);
  Statement search(*db_,
                   insert("searches",
                          "config_hash, config_json, system, system_hash, system_description, created, evaluated, "
                          "fitting, elapsed_s, complete"));
  search.bind(content_key(key.config_json))
      .bind(key.config_json)
      .bind(key.system)
      .bind(content_key(key.system_description))
      .bind(key.system_description)
      .bind(utc_now())
      .bind(result.evaluated)
      .bind(static_cast<std::int64_t>(result.plans.size()))
      .bind(result.elapsed_s)
      .bind(std::int64_t{result.complete});
  search.step();
  const std::int64_t id = db_->last_row();

  Statement plan(*db_, insert("plans", "search, rank" + plan_columns()));
  for (std::size_t i = 0; i < result.plans.size(); ++i) {
    plan.reset();
    plan.bind(id).bind(static_cast<std::int64_t>(i + 1));
    visit_fields(result.plans[i], [&](std::string_view, const auto& field) { put(plan, field); });
    plan.step();
  }

  Statement rejection(
      *db_, insert("rejections",
                   "search, reason, dp, pp, tp, fsdp, microbatches, schedule, recompute, layers, detail, hint, "
                   "needed_bytes, excess_bytes"));
  const auto reject = [&](std::string_view reason, const MeshShape& mesh) -> Statement& {
    rejection.reset();
    return rejection.bind(id)
        .bind(reason)
        .bind(std::int64_t{mesh.dp})
        .bind(std::int64_t{mesh.pp})
        .bind(std::int64_t{mesh.tp});
  };
  for (const IllegalPart& part : result.illegal) {
    Statement& s = reject(part.why.reason, part.mesh);
    part.fsdp ? s.bind(std::int64_t{*part.fsdp}) : s.bind_null();
    s.bind_null().bind_null().bind_null().bind_null().bind(part.why.detail).bind(part.why.hint).bind_null().bind_null();
    s.step();
  }
  for (const TooLarge& t : result.too_large) {
    Statement& s = reject(kDoesNotFit, t.plan.mesh);
    s.bind(std::int64_t{t.plan.fsdp})
        .bind(std::int64_t{t.plan.microbatches})
        .bind(name(t.plan.schedule))
        .bind(name(t.plan.recompute));
    put(s, t.plan.layers);
    s.bind_null().bind_null().bind(t.needed.value).bind(t.excess.value);
    s.step();
  }
  transaction.commit();
  return id;
}

std::optional<std::int64_t> Store::latest(const SearchKey& key) const {
  Statement s(
      *db_,
      "SELECT id FROM searches WHERE config_hash = ? AND system_hash = ? AND system = ? AND config_json = ? AND "
      "system_description = ? AND complete ORDER BY id DESC LIMIT 1");
  s.bind(content_key(key.config_json))
      .bind(content_key(key.system_description))
      .bind(key.system)
      .bind(key.config_json)
      .bind(key.system_description);
  if (!s.step()) return std::nullopt;
  return s.integer();
}

std::optional<StoredSearch> Store::search(std::int64_t id) const {
  Statement s(*db_,
              "SELECT config_json, system, system_description, created, evaluated, elapsed_s, complete FROM searches "
              "WHERE id = ?");
  s.bind(id);
  if (!s.step()) return std::nullopt;
  StoredSearch stored{.id = id, .key = {s.text(), s.text(), s.text()}, .created = s.text()};
  stored.result.evaluated = s.integer();
  stored.result.elapsed_s = s.number();
  stored.result.complete = s.integer() != 0;
  for (StoredPlan& plan : plans(id)) stored.result.plans.push_back(std::move(plan.result));

  Statement illegal(*db_,
                    "SELECT dp, pp, tp, fsdp IS NOT NULL, fsdp, reason, detail, hint FROM rejections "
                    "WHERE search = ? AND needed_bytes IS NULL ORDER BY id");
  illegal.bind(id);
  while (illegal.step()) {
    IllegalPart part;
    for (int* extent : {&part.mesh.dp, &part.mesh.pp, &part.mesh.tp}) get(*db_, illegal, *extent);
    const bool one_stage = illegal.integer() != 0;
    if (const auto fsdp = static_cast<int>(illegal.integer()); one_stage) part.fsdp = fsdp;
    part.why = {illegal.text(), illegal.text(), illegal.text()};
    stored.result.illegal.push_back(std::move(part));
  }

  Statement large(
      *db_,
      "SELECT dp, pp, tp, fsdp, microbatches, schedule, recompute, layers, needed_bytes, excess_bytes FROM rejections "
      "WHERE search = ? AND needed_bytes IS NOT NULL ORDER BY id");
  large.bind(id);
  while (large.step()) {
    Plan plan;
    for (int* number : {&plan.mesh.dp, &plan.mesh.pp, &plan.mesh.tp, &plan.fsdp, &plan.microbatches})
      get(*db_, large, *number);
    get(*db_, large, plan.schedule);
    get(*db_, large, plan.recompute);
    get(*db_, large, plan.layers);
    stored.result.too_large.push_back({plan, {large.integer()}, {large.integer()}});
  }
  return stored;
}

std::optional<StoredPlan> Store::plan(std::int64_t id) const {
  Statement s(*db_, select_plans() + "WHERE id = ?");
  return read_one(*db_, s.bind(id));
}

std::vector<StoredPlan> Store::plans(std::int64_t search, std::int64_t limit) const {
  Statement s(*db_, select_plans() + "WHERE search = ? ORDER BY rank LIMIT ?");
  s.bind(search).bind(limit);
  std::vector<StoredPlan> all;
  while (s.step()) all.push_back(read_plan(*db_, s));
  return all;
}

std::optional<StoredPlan> Store::best(std::int64_t search) const {
  Statement s(*db_, select_plans() + "WHERE search = ? ORDER BY rank LIMIT 1");
  return read_one(*db_, s.bind(search));
}

std::optional<StoredPlan> Store::best_runnable(std::int64_t search) const {
  Statement s(*db_, select_plans() + "WHERE search = ? AND runnable ORDER BY rank LIMIT 1");
  return read_one(*db_, s.bind(search));
}

std::optional<StoredPlan> Store::find(std::int64_t search, const Plan& plan) const {
  Statement s(
      *db_, select_plans() +
                "WHERE search = ? AND dp = ? AND pp = ? AND tp = ? AND fsdp = ? AND microbatches = ? AND schedule = ? "
                "AND recompute = ? AND layers = ?");
  s.bind(search);
  for (const int number : {plan.mesh.dp, plan.mesh.pp, plan.mesh.tp, plan.fsdp, plan.microbatches}) put(s, number);
  put(s, plan.schedule);
  put(s, plan.recompute);
  put(s, plan.layers);
  return read_one(*db_, s);
}

std::int64_t Store::save(const StoredRun& run) {
  Transaction transaction(*db_);
  Statement s(*db_, insert("runs", run_columns()));
  s.bind(run.plan).bind(utc_now()).bind(run.steps);
  for (const RunFigures* figures : {&run.predicted, &run.measured})
    visit_fields(*figures, [&](std::string_view, const auto& field) { put(s, field); });
  s.step();
  const std::int64_t id = db_->last_row();
  transaction.commit();
  return id;
}

std::vector<StoredRun> Store::runs(std::int64_t plan) const {
  Statement s(*db_, "SELECT " + run_columns() + " FROM runs WHERE plan = ? ORDER BY id");
  s.bind(plan);
  std::vector<StoredRun> all;
  while (s.step()) {
    StoredRun run{.plan = s.integer(), .created = s.text(), .steps = s.integer()};
    for (RunFigures* figures : {&run.predicted, &run.measured})
      visit_fields(*figures, [&](std::string_view, auto& field) { get(*db_, s, field); });
    all.push_back(std::move(run));
  }
  return all;
}

std::vector<std::string> Store::faults() const {
  std::vector<std::string> found;
  Statement integrity(*db_, "PRAGMA integrity_check");
  while (integrity.step())
    if (std::string text = integrity.text(); text != "ok") found.push_back(std::move(text));
  Statement keys(*db_, "PRAGMA foreign_key_check");
  while (keys.step()) found.push_back("a row of " + keys.text() + " refers to one that is not there");
  return found;
}

}  // namespace meshwright
