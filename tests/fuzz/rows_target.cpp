#include <sqlite3.h>

#include <charconv>
#include <cmath>
#include <map>
#include <memory>

#include "planner/store.h"
#include "reports/search_report.h"
#include "tests/fuzz/support.h"

namespace meshwright::fuzz {
namespace {

const SearchKey kKey{R"({"name": "small"})", "v4:2x2x1", "v4, every number of it"};

PlanResult some_result(int i) {
  PlanResult r{.plan = {.mesh = {2, 1, 2}, .fsdp = i % 4, .microbatches = 1 + i},
               .step_time_s = 0.1 + i,
               .tokens_per_s = 1e6,
               .mfu = 0.25,
               .hfu = 0.5,
               .peak_memory_bytes = std::int64_t{1} << 30,
               .exposed_comm_s = 0.01,
               .bubble_fraction = 0.125,
               .model_flops = 1e12,
               .executed_flops = 2e12,
               .stage_layers = {4},
               .mapping = "tp: x2; dp: y2"};
  r.memory_bytes.fill(1000);
  return r;
}

// A database of ours with a row in every table, and a second connection that changes its cells as somebody else would.
class Victim {
 public:
  Victim() : file_(scratch_.path() / "rows.db") {
    {
      Store store(file_);
      SearchResult result;
      for (int i = 0; i < 3; ++i) result.plans.push_back(some_result(i));
      result.too_large = {{parse_plan("4x1x1,schedule=gpipe,microbatches=2,fsdp=2,recompute=full"), {1000}, {10}}};
      result.illegal = {{{1, 1, 4}, std::nullopt, {"tp does not divide the heads", "2 heads, tp 4", "tp from 1, 2"}},
                        {{1, 4, 1}, 3, {"FSDP without data parallelism", "fsdp 3, dp 1", "fsdp=0"}}};
      result.evaluated = result.legal = 4;
      search_ = store.save(kKey, result);
      StoredRun run{.plan = store.plans(search_).front().id, .steps = 10};
      run.predicted = run.measured = {.step_time_s = 0.1, .flops = 1e12, .sent_bytes = 5, .peak_memory_bytes = 6};
      store.save(run);
    }
    sqlite3* db = nullptr;
    require(sqlite3_open(file_.c_str(), &db) == SQLITE_OK, "can't open {}", file_.string());
    db_.reset(db);
    run("PRAGMA synchronous = OFF; PRAGMA foreign_keys = OFF");
    std::vector<std::string> tables;
    each("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'",
         [&](const auto& row) { tables.push_back(row[0]); });
    for (const std::string& table : tables) {
      run(fmt::format("CREATE TEMP TABLE kept_{0} AS SELECT * FROM main.{0}", table));
      each(fmt::format("PRAGMA table_info({})", table), [&](const auto& row) { columns_.push_back({table, row[1]}); });
    }
    for (const auto& [table, column] : columns_) tables_[table].push_back(column);
  }

  struct Column {
    std::string table, name;
  };
  const std::vector<Column>& columns() const { return columns_; }
  const std::filesystem::path& file() const { return file_; }
  std::int64_t search() const { return search_; }

  void restore() {
    run("BEGIN");
    for (const auto& [table, columns] : tables_) run(fmt::format("DELETE FROM main.{}", table));
    for (const auto& [table, columns] : tables_) run(fmt::format("INSERT INTO main.{0} SELECT * FROM kept_{0}", table));
    run("COMMIT");
  }

  // Puts `value` into every row of the column where the schema allows it: whole numbers, numbers and "null" as such, x'..'
  // as bytes, all else as text.
  void change(const Column& column, std::string_view value) {
    sqlite3_stmt* made = nullptr;
    const std::string sql = fmt::format("UPDATE OR IGNORE main.{} SET {} = ?", column.table, column.name);
    require(sqlite3_prepare_v2(db_.get(), sql.c_str(), -1, &made, nullptr) == SQLITE_OK, "can't prepare {}", sql);
    const std::unique_ptr<sqlite3_stmt, int (*)(sqlite3_stmt*)> statement(made, sqlite3_finalize);
    const char* const end = value.data() + value.size();
    std::int64_t whole = 0;
    double number = 0;
    if (value == "null") {
      sqlite3_bind_null(made, 1);
    } else if (const auto [at, error] = std::from_chars(value.data(), end, whole); error == std::errc() && at == end) {
      sqlite3_bind_int64(made, 1, whole);
    } else if (const auto [stop, wrong] = std::from_chars(value.data(), end, number);
               wrong == std::errc() && stop == end) {
      sqlite3_bind_double(made, 1, number);
    } else if (value.starts_with("x'")) {
      sqlite3_bind_blob(made, 1, value.data() + 2, static_cast<int>(value.size() - 2), SQLITE_TRANSIENT);
    } else {
      sqlite3_bind_text(made, 1, value.data(), static_cast<int>(value.size()), SQLITE_TRANSIENT);
    }
    sqlite3_step(made);  // what the schema forbids (NULL, a second rank 1) stays as it was
  }

 private:
  void run(const std::string& sql) {
    require(sqlite3_exec(db_.get(), sql.c_str(), nullptr, nullptr, nullptr) == SQLITE_OK, "{}: {}", sql,
            sqlite3_errmsg(db_.get()));
  }
  template <class F>
  void each(const std::string& sql, F&& f) {
    sqlite3_stmt* made = nullptr;
    require(sqlite3_prepare_v2(db_.get(), sql.c_str(), -1, &made, nullptr) == SQLITE_OK, "can't prepare {}", sql);
    const std::unique_ptr<sqlite3_stmt, int (*)(sqlite3_stmt*)> statement(made, sqlite3_finalize);
    while (sqlite3_step(made) == SQLITE_ROW) {
      std::vector<std::string> row;
      for (int i = 0; i < sqlite3_column_count(made); ++i) {
        const auto* text = reinterpret_cast<const char*>(sqlite3_column_text(made, i));
        row.emplace_back(text != nullptr ? text : "");
      }
      f(row);
    }
  }

  ScratchFolder scratch_;
  std::filesystem::path file_;
  std::unique_ptr<sqlite3, int (*)(sqlite3*)> db_{nullptr, sqlite3_close};
  std::int64_t search_ = 0;
  std::vector<Column> columns_;
  std::map<std::string, std::vector<std::string>> tables_;
};

Victim& victim() {
  static Victim one;
  return one;
}

template <class F>
void each_line(std::string_view text, F&& f) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    f(text.substr(at, end - at));
    at = end + 1;
  }
}

void require_plan(const Plan& plan) {
  Plan again;
  require(accepts([&] { again = parse_plan(to_text(plan)); }) && again == plan,
          "a stored plan that --plan would refuse: {}", to_text(plan));
}

void require_possible(const PlanResult& r) {
  require_plan(r.plan);
  require(std::isfinite(r.step_time_s) && r.step_time_s > 0, "a step of {} s", r.step_time_s);
  for (const double figure : {r.tokens_per_s, r.mfu, r.hfu, r.exposed_comm_s, r.bubble_fraction, r.model_flops,
                              r.executed_flops, static_cast<double>(r.peak_memory_bytes)})
    require(std::isfinite(figure) && figure >= 0, "a figure of {}", figure);
  constexpr double kMost = 1 + 1e-9;
  require(r.bubble_fraction <= kMost && r.mfu <= kMost && r.hfu <= kMost, "bubble {}, MFU {}, HFU {}",
          r.bubble_fraction, r.mfu, r.hfu);
}

}  // namespace

// What is read from a database is a plan that could have been typed, with possible figures, and can be printed; or it is
// refused.
void rows(std::string_view input) {
  Victim& db = victim();
  db.restore();
  each_line(input, [&](std::string_view line) {
    const auto equals = line.find(" = ");
    if (equals == std::string_view::npos) return;
    for (const Victim::Column& column : db.columns())
      if (line.substr(0, equals) == fmt::format("{}.{}", column.table, column.name))
        db.change(column, line.substr(equals + 3));
  });

  const auto read = [&](auto&& question) { accepts([&] { question(Store(db.file(), Store::Access::kRead)); }); };
  read([&](const Store& store) {
    const auto search = store.search(db.search());
    if (!search) return;
    for (const PlanResult& r : search->result.plans) require_possible(r);
    for (const TooLarge& large : search->result.too_large) require_plan(large.plan);
    const SearchHeading heading{.config = "small",
                                .system = "v4:2x2x1",
                                .devices = 4,
                                .usable_memory = {std::int64_t{1} << 40},
                                .published = some_result(0).plan};
    require(!search_report(search->result, heading, SearchView{}, 80).empty(), "an empty report");
    require(!to_json(search->result, heading, SearchView{}).dump().empty(), "empty JSON");
  });
  read([&](const Store& store) {
    for (const StoredPlan& stored : store.plans(db.search())) {
      require_possible(stored.result);
      require(store.plan(stored.id) == stored, "plan {} alone is another one", stored.id);
      for (const StoredRun& run : store.runs(stored.id))
        for (const RunFigures* figures : {&run.predicted, &run.measured})
          require(std::isfinite(figures->step_time_s) && figures->step_time_s >= 0, "a run's step of {} s",
                  figures->step_time_s);
    }
  });
  read([&](const Store& store) { store.latest(kKey); });
}

std::string mutate_rows(std::string_view input, std::mt19937& random) {
  static const std::vector<std::string> values{"0",
                                               "-1",
                                               "1",
                                               "2",
                                               "3",
                                               "4",
                                               "1000000",
                                               "1000001",
                                               "2147483647",
                                               "2147483648",
                                               "1e308",
                                               "-0.5",
                                               "1e-320",
                                               "0.5",
                                               "inf",
                                               "nan",
                                               "null",
                                               "gpipe",
                                               "1f1b",
                                               "full",
                                               "none",
                                               "1f1B",
                                               "4x1x1",
                                               "",
                                               "4,0",
                                               "2,-1,99999",
                                               "x'\xff\xfe",
                                               "\x1b[31mred",
                                               "\xc3\x28",
                                               "9223372036854775807",
                                               "-9223372036854775808"};
  std::vector<std::string> lines;
  each_line(input, [&](std::string_view line) { lines.emplace_back(line); });
  const Victim::Column& column = any_of(victim().columns(), random);
  std::string line = fmt::format("{}.{} = {}", column.table, column.name, any_of(values, random));
  constexpr std::size_t kMostLines = 6;
  if (lines.size() < kMostLines && (lines.empty() || random() % 2 == 0))
    lines.push_back(std::move(line));
  else
    lines[random() % lines.size()] = std::move(line);
  return fmt::format("{}\n", fmt::join(lines, "\n"));
}

}  // namespace meshwright::fuzz
