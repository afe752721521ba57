#include "planner/sqlite.h"

#include <fmt/format.h>
#include <sys/vfs.h>

#include <utility>

#include "model/input/diagnostics.h"
#include "model/input/printable.h"

namespace meshwright::sqlite {
namespace {

constexpr int kBusyTimeoutMs = 10'000;

struct Meaning {
  std::string value, allowed, hint;
};

// What a result code means for the user.
Meaning meaning(int code, const std::string& message) {
  switch (code & 0xff) {
    case SQLITE_NOTADB:
      return {"not an SQLite database", "a database that meshwright made", "name another file with --db"};
    case SQLITE_CORRUPT:
      return {"damaged: " + message, "an undamaged database",
              "move it away together with its -wal and -shm files; the searches can be repeated"};
    case SQLITE_CANTOPEN:
      return {"can't be opened", "a file in a folder that exists and can be written",
              "make the folder, check its permissions, or name another file with --db"};
    case SQLITE_READONLY:
    case SQLITE_PERM:
      return {"can't be written", "a file and a folder that can be written",
              "check the permissions of both, or name another file with --db"};
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return {"locked by another process for 10 s", "one writer at a time",
              "wait for the other meshwright to finish, or name another file with --db"};
    case SQLITE_FULL:
      return {"the disk is full", "room for the results", "free some, or name a file on another disk with --db"};
    default:
      return {message, "a database that can be read and written", "check the disk, or name another file with --db"};
  }
}

}  // namespace

bool is_network_file_system(std::int64_t type) {
  constexpr std::int64_t kNfs = 0x6969, kSmb = 0x517B, kSmb2 = 0xFE534D42, kCifs = 0xFF534D42;
  type &= 0xFFFFFFFF;
  return type == kNfs || type == kSmb || type == kSmb2 || type == kCifs;
}

Database::Database(const std::filesystem::path& file, Access access) : file_(file.string()) {
  const std::filesystem::path folder = file.has_parent_path() ? file.parent_path() : std::filesystem::path(".");
  if (struct statfs fs; ::statfs(folder.c_str(), &fs) == 0 && is_network_file_system(fs.f_type))
    refuse("on a network file system", "a file on a local disk",
           "name one with --db: databases on NFS and SMB get damaged");
  const int flags = access == Access::kRead ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE;
  sqlite3* db = nullptr;
  const int code = sqlite3_open_v2(file_.c_str(), &db, flags | SQLITE_OPEN_NOMUTEX, nullptr);
  db_.reset(db);
  if (code != SQLITE_OK) fail(code);
  sqlite3_busy_timeout(db, kBusyTimeoutMs);
}

void Database::refuse(std::string value, std::string allowed, std::string hint) const {
  throw InputError(Diagnostic{"--db", file_, std::move(value), std::move(allowed), std::move(hint)});
}

void Database::fail(int code) const {
  Meaning m = meaning(code, db_ ? sqlite3_errmsg(db_.get()) : sqlite3_errstr(code));
  refuse(std::move(m.value), std::move(m.allowed), std::move(m.hint));
}

void Database::run(const std::string& sql) const {
  if (const int code = sqlite3_exec(db_.get(), sql.c_str(), nullptr, nullptr, nullptr); code != SQLITE_OK) fail(code);
}

std::int64_t Database::pragma(const std::string& name) const {
  Statement statement(*this, "PRAGMA " + name);
  return statement.step() ? statement.integer() : 0;
}

Statement::Statement(const Database& db, std::string_view sql) : db_(&db) {
  sqlite3_stmt* statement = nullptr;
  check(sqlite3_prepare_v2(db.get(), sql.data(), static_cast<int>(sql.size()), &statement, nullptr));
  statement_.reset(statement);
}

void Statement::check(int code) const {
  if (code != SQLITE_OK) db_->fail(code);
}

Statement& Statement::bind(std::int64_t value) {
  check(sqlite3_bind_int64(statement_.get(), ++parameter_, value));
  return *this;
}
Statement& Statement::bind(double value) {
  check(sqlite3_bind_double(statement_.get(), ++parameter_, value));
  return *this;
}
Statement& Statement::bind(std::string_view value) {
  check(sqlite3_bind_text(statement_.get(), ++parameter_, value.data(), static_cast<int>(value.size()),
                          SQLITE_TRANSIENT));
  return *this;
}
Statement& Statement::bind_null() {
  check(sqlite3_bind_null(statement_.get(), ++parameter_));
  return *this;
}

bool Statement::step() {
  column_ = 0;
  const int code = sqlite3_step(statement_.get());
  if (code != SQLITE_ROW && code != SQLITE_DONE) db_->fail(code);
  return code == SQLITE_ROW;
}

void Statement::reset() {
  parameter_ = 0;
  sqlite3_reset(statement_.get());
  sqlite3_clear_bindings(statement_.get());
}

std::int64_t Statement::integer(const IntegerRange& range) {
  const int column = column_++;
  if (sqlite3_column_type(statement_.get(), column) != SQLITE_INTEGER) refuse_last(describe(range));
  const std::int64_t value = sqlite3_column_int64(statement_.get(), column);
  if (!contains(range, value)) refuse_last(describe(range));
  return value;
}

double Statement::number(const NumberRange& range) {
  const int column = column_++;
  const int type = sqlite3_column_type(statement_.get(), column);
  const double value = sqlite3_column_double(statement_.get(), column);
  if ((type != SQLITE_FLOAT && type != SQLITE_INTEGER) || !contains(range, value)) refuse_last(describe(range));
  return value;
}

std::string Statement::bytes() {
  const int column = column_++;
  if (sqlite3_column_type(statement_.get(), column) != SQLITE_TEXT) refuse_last("text");
  const auto* bytes = reinterpret_cast<const char*>(sqlite3_column_text(statement_.get(), column));
  const int size = sqlite3_column_bytes(statement_.get(), column);
  return bytes ? std::string(bytes, static_cast<std::size_t>(size)) : std::string();
}

std::string Statement::text() {
  std::string value = bytes();
  if (printable(value) != value) refuse_last("text without control characters");
  return value;
}

bool Statement::next_is_null() const { return sqlite3_column_type(statement_.get(), column_) == SQLITE_NULL; }

std::optional<int> Statement::index(std::string_view column) const {
  for (int i = 0; i < sqlite3_column_count(statement_.get()); ++i)
    if (sqlite3_column_name(statement_.get(), i) == column) return i;
  return std::nullopt;
}

bool Statement::has(std::string_view column) const { return index(column).has_value(); }

std::string Statement::shown(int column) const {
  constexpr std::size_t kLongest = 80;
  sqlite3_stmt* s = statement_.get();
  const int type = sqlite3_column_type(s, column);
  if (type == SQLITE_NULL) return "(null)";
  if (type == SQLITE_BLOB) return fmt::format("(a blob of {} bytes)", sqlite3_column_bytes(s, column));
  const std::string_view text(reinterpret_cast<const char*>(sqlite3_column_text(s, column)),
                              static_cast<std::size_t>(sqlite3_column_bytes(s, column)));
  if (type != SQLITE_TEXT) return std::string(text);
  return fmt::format("\"{}\"{}", printable(text.substr(0, kLongest)), text.size() > kLongest ? "..." : "");
}

void Statement::refuse(int column, std::string value, std::string allowed) const {
  sqlite3_stmt* s = statement_.get();
  const char* table = sqlite3_column_table_name(s, column);
  std::string path = table ? table : "";
  if (std::string_view(sqlite3_column_name(s, 0)) == "id") path += fmt::format("[{}]", sqlite3_column_int64(s, 0));
  path += fmt::format("{}{}", path.empty() ? "" : ".", sqlite3_column_name(s, column));
  throw InputError(
      Diagnostic{db_->file(), std::move(path), std::move(value), std::move(allowed),
                 "something else than meshwright changed the database: move it away, searches can be repeated"});
}

void Statement::refuse(std::string_view column, std::string value, std::string allowed) const {
  refuse(index(column).value_or(0), std::move(value), std::move(allowed));
}

void Statement::refuse_last(std::string allowed) const { refuse(column_ - 1, shown(column_ - 1), std::move(allowed)); }

void Transaction::commit() {
  db_.run("COMMIT");
  open_ = false;
}

Transaction::~Transaction() {
  if (open_)
    sqlite3_exec(db_.get(), "ROLLBACK", nullptr, nullptr, nullptr);  // if it fails: rolled back when next opened
}

}  // namespace meshwright::sqlite
