#include "planner/store.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <limits>
#include <map>
#include <tuple>
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

template <class T>
void put(Statement& s, const T& value) {
  if constexpr (std::is_enum_v<T> || std::is_same_v<T, Recompute>)
    s.bind(name(value));
  else if constexpr (std::is_same_v<T, std::vector<int>>)
    s.bind(fmt::format("{}", fmt::join(value, ",")));
  else if constexpr (std::is_integral_v<T>)
    s.bind(std::int64_t{value});
  else
    s.bind(value);
}

// Figures are counts, sizes, times and fractions: nothing is below 0. Plans and relations are checked by read_plan().
template <class T>
void get(Statement& s, T& value) {
  if constexpr (std::is_enum_v<T>) {
    const std::string text = s.text();
    const auto& names = names_of(T{});
    const auto found = std::ranges::find(names, text);
    if (found == names.end()) s.refuse_last(fmt::format("{}", fmt::join(names, ", ")));
    value = static_cast<T>(found - names.begin());
  } else if constexpr (std::is_same_v<T, Recompute>) {
    const auto recompute = recompute_named(s.text());
    if (!recompute) s.refuse_last(fmt::format("{}", fmt::join(recompute_words(), ", ")));
    value = *recompute;
  } else if constexpr (std::is_same_v<T, std::vector<int>>) {
    const std::string text = s.text();
    value.clear();
    for (std::string_view rest = text; !rest.empty();) {
      const std::size_t comma = std::min(rest.find(','), rest.size());
      int number = 0;
      const auto [end, error] = std::from_chars(rest.data(), rest.data() + comma, number);
      if (error != std::errc() || end != rest.data() + comma || number < 0 || comma + 1 == rest.size())
        s.refuse_last("whole numbers joined by commas");
      value.push_back(number);
      rest.remove_prefix(std::min(comma + 1, rest.size()));
    }
  } else if constexpr (std::is_same_v<T, double>) {
    value = s.number({.min = 0});
  } else if constexpr (std::is_integral_v<T>) {
    value = static_cast<T>(s.integer({0, std::int64_t{std::numeric_limits<T>::max()}}));
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

std::string select_plans() { return "SELECT id, search, rank, plan_id" + plan_columns() + " FROM plans "; }

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

// The plan of this text, which stands in the given column or is made of several. What parse_plan() refuses in it is a fault
// of the column that is named like the part, if there is one.
Plan checked_plan(const Statement& s, std::string_view column, const std::string& text) {
  try {
    return parse_plan(text);
  } catch (const InputError& error) {
    const Diagnostic& fault = error.diagnostics().front();
    s.refuse(s.has(fault.path) ? fault.path : column, fmt::format("\"{}\"", text),
             fmt::format("a plan; {}: {}", fault.path.empty() ? "its text" : fault.path, fault.allowed));
  }
}

StoredPlan read_plan(Statement& s) {
  StoredPlan stored{.id = s.integer(), .search = s.integer(), .rank = s.integer({.min = 1})};
  PlanResult& r = stored.result;
  const std::string id = s.text();
  visit_fields(r, [&](std::string_view, auto& field) { get(s, field); });
  r.plan = checked_plan(s, "dp", to_text(r.plan));
  if (id != plan_id(r.plan))
    s.refuse("plan_id", fmt::format("\"{}\"", id), fmt::format("{}, the id of {}", plan_id(r.plan), to_text(r.plan)));
  if (r.step_time_s <= 0)  // others are divided by it
    s.refuse("step_time_s", fmt::format("{}", r.step_time_s), describe(NumberRange{.min = 0, .min_open = true}));
  // Far more than any step takes or does, and little enough to be added up and printed as whole numbers.
  constexpr double kRounding = 1e-9, kMostSeconds = 1e9, kMostRate = 1e18, kMostFlops = 1e40;
  for (const auto& [column, value, most] : {std::tuple{"step_time_s", r.step_time_s, kMostSeconds},
                                            {"exposed_comm_s", r.exposed_comm_s, kMostSeconds},
                                            {"tokens_per_s", r.tokens_per_s, kMostRate},
                                            {"model_flops", r.model_flops, kMostFlops},
                                            {"executed_flops", r.executed_flops, kMostFlops},
                                            {"mfu", r.mfu, 1.0},
                                            {"hfu", r.hfu, 1.0},
                                            {"bubble_fraction", r.bubble_fraction, 1.0}})
    if (value > most + kRounding)
      s.refuse(column, fmt::format("{}", value), describe(NumberRange{.min = 0, .max = most}));
  if (r.stage_layers.size() != static_cast<std::size_t>(r.plan.mesh.pp))
    s.refuse("stage_layers", fmt::format("{} numbers", r.stage_layers.size()),
             fmt::format("{}, as many as pp", r.plan.mesh.pp));
  if (r.largest_stage >= r.plan.mesh.pp)
    s.refuse("largest_stage", fmt::format("{}", r.largest_stage), describe(IntegerRange{0, r.plan.mesh.pp - 1}));
  return stored;
}

std::optional<StoredPlan> read_one(Statement& s) {
  if (!s.step()) return std::nullopt;
  return read_plan(s);
}

// The searches of a question, by whatever build.
constexpr std::string_view kQuestion =
    "config_hash = ? AND system_hash = ? AND system = ? AND config_json = ? AND system_description = ?";
void bind_question(Statement& s, const SearchKey& key) {
  s.bind(content_key(key.config_json))
      .bind(content_key(key.system_description))
      .bind(key.system)
      .bind(key.config_json)
      .bind(key.system_description);
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
  build TEXT NOT NULL,
  created TEXT NOT NULL,
  evaluated INTEGER NOT NULL,
  legal INTEGER NOT NULL,
  fitting INTEGER NOT NULL,
  elapsed_s REAL NOT NULL,
  complete INTEGER NOT NULL
);
CREATE INDEX searches_by_question ON searches (config_hash, system_hash, system);
CREATE TABLE plans (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  search INTEGER NOT NULL REFERENCES searches (id),
  rank INTEGER NOT NULL,
  plan_id TEXT NOT NULL{},
  UNIQUE (search, rank)
);
CREATE INDEX plans_by_id ON plans (plan_id);
CREATE TABLE rejections (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  search INTEGER NOT NULL REFERENCES searches (id),
  reason TEXT NOT NULL,
  dp INTEGER NOT NULL,
  pp INTEGER NOT NULL,
  tp INTEGER NOT NULL,
  fsdp INTEGER,
  plan TEXT,
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
      refuse(
          fmt::format("schema version {}", version), fmt::format("schema version {}", kSchemaVersion),
          version < kSchemaVersion
              ? "an earlier meshwright made it, and its answers are not this one's: move it away and search again, or "
                "name another file with --db"
              : "a later meshwright made it: use that one, or name another file with --db");
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

namespace {

bool same_answer(const SearchResult& a, const SearchResult& b) {
  const auto same_part = [](const IllegalPart& x, const IllegalPart& y) {
    return x.mesh == y.mesh && x.fsdp == y.fsdp && x.why.reason == y.why.reason && x.why.detail == y.why.detail &&
           x.why.hint == y.why.hint;
  };
  return a.complete == b.complete && a.evaluated == b.evaluated && a.legal == b.legal && a.plans == b.plans &&
         a.too_large == b.too_large && std::ranges::equal(a.illegal, b.illegal, same_part);
}

// What is read while it lives is as it was at one moment, whatever others write. May be nested, and within a transaction.
class Snapshot {
 public:
  explicit Snapshot(const Database& db) : db_(db) { db_.run("SAVEPOINT snapshot"); }
  ~Snapshot() { sqlite3_exec(db_.get(), "RELEASE snapshot", nullptr, nullptr, nullptr); }
  Snapshot(const Snapshot&) = delete;
  Snapshot& operator=(const Snapshot&) = delete;

 private:
  const Database& db_;
};

// Everything of a search that no run refers to.
void forget(const Database& db, std::int64_t search) {
  for (const char* sql : {"DELETE FROM rejections WHERE search = ?",
                          "DELETE FROM plans WHERE search = ? AND id NOT IN (SELECT plan FROM runs)",
                          "DELETE FROM searches WHERE id = ? AND id NOT IN (SELECT search FROM plans)"})
    Statement(db, sql).bind(search).step();
}

void add_plans(const Database& db, std::int64_t search, const std::vector<PlanResult>& plans) {
  Statement s(db, insert("plans", "search, rank, plan_id" + plan_columns()));
  for (std::size_t i = 0; i < plans.size(); ++i) {
    s.reset();
    s.bind(search).bind(static_cast<std::int64_t>(i + 1)).bind(plan_id(plans[i].plan));
    visit_fields(plans[i], [&](std::string_view, const auto& field) { put(s, field); });
    s.step();
  }
}

void add_rejections(const Database& db, std::int64_t search, const SearchResult& result) {
  Statement s(db,
              insert("rejections", "search, reason, dp, pp, tp, fsdp, plan, detail, hint, needed_bytes, excess_bytes"));
  const auto reject = [&](std::string_view reason, const MeshShape& mesh) -> Statement& {
    s.reset();
    return s.bind(search)
        .bind(reason)
        .bind(std::int64_t{mesh.dp})
        .bind(std::int64_t{mesh.pp})
        .bind(std::int64_t{mesh.tp});
  };
  for (const IllegalPart& part : result.illegal) {
    reject(part.why.reason, part.mesh);
    part.fsdp ? s.bind(std::int64_t{*part.fsdp}) : s.bind_null();
    s.bind_null().bind(part.why.detail).bind(part.why.hint).bind_null().bind_null();
    s.step();
  }
  for (const TooLarge& t : result.too_large) {
    reject(kDoesNotFit, t.plan.mesh)
        .bind(std::int64_t{t.plan.fsdp})
        .bind(to_text(t.plan))
        .bind_null()
        .bind_null()
        .bind(t.needed.value)
        .bind(t.excess.value);
    s.step();
  }
}

}  // namespace

std::int64_t Store::save(const SearchKey& key, const SearchResult& result) {
  Transaction transaction(*db_);
  if (const auto earlier = newest(key, result.complete)) {
    bool same = false;
    try {
      same = same_answer(search(*earlier)->result, result);
    } catch (const InputError&) {  // rows that something else changed: they are replaced
    }
    if (same) {
      Statement(*db_, "UPDATE searches SET created = ?, elapsed_s = ? WHERE id = ?")
          .bind(utc_now())
          .bind(result.elapsed_s)
          .bind(*earlier)
          .step();
      transaction.commit();
      return *earlier;
    }
    forget(*db_, *earlier);
  }
  Statement s(*db_,
              insert("searches",
                     "config_hash, config_json, system, system_hash, system_description, build, created, evaluated, "
                     "legal, fitting, elapsed_s, complete"));
  s.bind(content_key(key.config_json))
      .bind(key.config_json)
      .bind(key.system)
      .bind(content_key(key.system_description))
      .bind(key.system_description)
      .bind(key.build)
      .bind(utc_now())
      .bind(result.evaluated)
      .bind(result.legal)
      .bind(static_cast<std::int64_t>(result.plans.size()))
      .bind(result.elapsed_s)
      .bind(std::int64_t{result.complete});
  s.step();
  const std::int64_t id = db_->last_row();
  add_plans(*db_, id, result.plans);
  add_rejections(*db_, id, result);
  transaction.commit();
  return id;
}

std::optional<std::int64_t> Store::latest(const SearchKey& key) const { return newest(key, true); }

std::optional<std::int64_t> Store::newest(const SearchKey& key, bool complete) const {
  Statement s(*db_,
              fmt::format("SELECT id FROM searches WHERE {} AND build = ? AND complete = ? ORDER BY id DESC LIMIT 1",
                          kQuestion));
  bind_question(s, key);
  s.bind(key.build).bind(std::int64_t{complete});
  if (!s.step()) return std::nullopt;
  return s.integer();
}

std::optional<StoredSearch> Store::search(std::int64_t id) const {
  const Snapshot all_of_one_moment(*db_);
  Statement s(*db_,
              "SELECT id, config_json, system, system_description, build, created, evaluated, elapsed_s, "
              "complete, legal FROM searches WHERE id = ?");
  s.bind(id);
  if (!s.step()) return std::nullopt;
  StoredSearch stored{.id = s.integer(), .key = {s.bytes(), s.text(), s.bytes(), s.text()}, .created = s.text()};
  stored.result.evaluated = s.integer({.min = 0});
  stored.result.elapsed_s = s.number({.min = 0});
  stored.result.complete = s.integer({.min = 0, .max = 1}) != 0;
  IntegerRange legal{.min = stored.result.evaluated};
  if (stored.result.complete) legal.max = legal.min;
  stored.result.legal = s.integer(legal);
  for (StoredPlan& plan : plans(id)) stored.result.plans.push_back(std::move(plan.result));

  constexpr IntegerRange kExtent{1, 1'000'000}, kFsdp{0, 3};
  Statement illegal(*db_,
                    "SELECT id, dp, pp, tp, fsdp, reason, detail, hint FROM rejections "
                    "WHERE search = ? AND plan IS NULL ORDER BY id");
  illegal.bind(id);
  while (illegal.step()) {
    IllegalPart part;
    illegal.skip();
    for (int* extent : {&part.mesh.dp, &part.mesh.pp, &part.mesh.tp})
      *extent = static_cast<int>(illegal.integer(kExtent));
    if (illegal.next_is_null())
      illegal.skip();
    else
      part.fsdp = static_cast<int>(illegal.integer(kFsdp));
    part.why = {illegal.text(), illegal.text(), illegal.text()};
    stored.result.illegal.push_back(std::move(part));
  }

  Statement large(*db_,
                  "SELECT id, plan, needed_bytes, excess_bytes FROM rejections "
                  "WHERE search = ? AND plan IS NOT NULL ORDER BY id");
  large.bind(id);
  while (large.step()) {
    large.skip();
    const Plan plan = checked_plan(large, "plan", large.text());
    stored.result.too_large.push_back({plan, {large.integer({.min = 0})}, {large.integer({.min = 0})}});
  }
  return stored;
}

std::optional<StoredPlan> Store::plan(std::int64_t id) const {
  Statement s(*db_, select_plans() + "WHERE id = ?");
  return read_one(s.bind(id));
}

std::vector<StoredPlan> Store::plans(std::int64_t search, std::int64_t limit) const {
  Statement s(*db_, select_plans() + "WHERE search = ? ORDER BY rank LIMIT ?");
  s.bind(search).bind(limit);
  std::vector<StoredPlan> all;
  while (s.step()) all.push_back(read_plan(s));
  return all;
}

std::optional<StoredPlan> Store::find(const SearchKey& key, const Plan& plan) const {
  Statement s(*db_, select_plans() +
                        fmt::format("WHERE plan_id = ? AND search IN (SELECT id FROM searches WHERE {}) "
                                    "ORDER BY search IN (SELECT id FROM searches WHERE build = ?) DESC, search DESC",
                                    kQuestion));
  s.bind(plan_id(plan));
  bind_question(s, key);
  s.bind(key.build);
  while (s.step())
    if (StoredPlan stored = read_plan(s); stored.result.plan == plan) return stored;
  return std::nullopt;
}

std::vector<Plan> Store::named(std::string_view prefix) const {
  Statement s(*db_, select_plans() + "WHERE plan_id >= ? AND plan_id < ?");
  s.bind(prefix).bind(std::string(prefix) + "g");  // the first letter after the digits
  std::map<std::string, Plan> found;
  while (s.step()) {
    const Plan plan = read_plan(s).result.plan;
    found.emplace(plan_id(plan) + to_text(plan), plan);
  }
  std::vector<Plan> plans;
  for (const auto& [text, plan] : found) plans.push_back(plan);
  return plans;
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
  Statement s(*db_, "SELECT id, " + run_columns() + " FROM runs WHERE plan = ? ORDER BY id");
  s.bind(plan);
  std::vector<StoredRun> all;
  while (s.step()) {
    s.skip();
    StoredRun run{.plan = s.integer(), .created = s.text(), .steps = s.integer({.min = 0})};
    for (RunFigures* figures : {&run.predicted, &run.measured})
      visit_fields(*figures, [&](std::string_view, auto& field) { get(s, field); });
    all.push_back(std::move(run));
  }
  return all;
}

std::vector<std::string> Store::faults() const {
  std::vector<std::string> found;
  Statement integrity(*db_, "PRAGMA integrity_check");
  while (integrity.step())
    if (std::string text = integrity.bytes(); text != "ok") found.push_back(std::move(text));
  Statement keys(*db_, "PRAGMA foreign_key_check");
  while (keys.step()) found.push_back("a row of " + keys.bytes() + " refers to one that is not there");
  return found;
}

}  // namespace meshwright
