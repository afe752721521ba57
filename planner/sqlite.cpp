#include "planner/sqlite.h"

#include <fmt/format.h>
#include <sys/vfs.h>

#include <system_error>
#include <utility>

#include "model/input/diagnostics.h"
#include "model/input/printable.h"

namespace meshwright::sqlite {
namespace {

struct Meaning {
  std::string value, allowed, hint;
};

// What a result code means for the user.
Meaning meaning(int code, const std::string& message, std::chrono::milliseconds patience) {
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
      return {fmt::format("locked by another process for {} s", patience.count() / 1e3), "one writer at a time",
              "wait for the other meshwright to finish, or name another file with --db"};
    case SQLITE_FULL:
      return {"the disk is full", "room for the results", "free some, or name a file on another disk with --db"};
    default:
      return {message, "a database that can be read and written", "check the disk, or name another file with --db"};
  }
}

// The name by which SQLite reads a file without locks and without a log (https://www.sqlite.org/uri.html).
std::string immutable_uri(const std::filesystem::path& file) {
  std::string uri = "file:";
  for (const char c : std::filesystem::absolute(file).string()) {
    if (c == '%' || c == '?' || c == '#')
      uri += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    else
      uri += c;
  }
  return uri + "?immutable=1";
}

}  // namespace

bool is_network_file_system(std::int64_t type) {
  constexpr std::int64_t kNfs = 0x6969, kSmb = 0x517B, kSmb2 = 0xFE534D42, kCifs = 0xFF534D42;
  type &= 0xFFFFFFFF;
  return type == kNfs || type == kSmb || type == kSmb2 || type == kCifs;
}

Database::Database(const std::filesystem::path& file, Access access, std::chrono::milliseconds patience)
    : file_(file.string()), patience_(patience) {
  const std::filesystem::path folder = file.has_parent_path() ? file.parent_path() : std::filesystem::path(".");
  if (struct statfs fs; ::statfs(folder.c_str(), &fs) == 0 && is_network_file_system(fs.f_type))
    refuse("on a network file system", "a file on a local disk",
           "name one with --db: databases on NFS and SMB get damaged");
  if (access != Access::kRead) {
    int code = open(file_, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
    if (access == Access::kWrite && code != SQLITE_OK) fail(code);
    if (access == Access::kWrite) return;
    // A file may be writable in a folder that is not: then a look into it fails already, for want of a log beside it.
    if (code == SQLITE_OK) code = try_to_read();
    if (code == SQLITE_OK && writable()) return;
  }
  if (const int code = open(file_, SQLITE_OPEN_READONLY); code != SQLITE_OK) fail(code);
  const int code = try_to_read();
  std::error_code no_log;
  const auto log_bytes = std::filesystem::file_size(file_ + "-wal", no_log);
  if (((code & 0xff) == SQLITE_CANTOPEN || (code & 0xff) == SQLITE_READONLY) && (no_log || log_bytes == 0)) {
    // Readers of a database with a write-ahead log share memory through a file beside it. Where that can't be made and there is
    // no log, the database itself is all there is, and it is read as it lies.
    if (const int again = open(immutable_uri(file), SQLITE_OPEN_READONLY | SQLITE_OPEN_URI); again != SQLITE_OK)
      fail(again);
  }
}

int Database::open(const std::string& name, int flags) {
  sqlite3* db = nullptr;
  const int code = sqlite3_open_v2(name.c_str(), &db, flags | SQLITE_OPEN_NOMUTEX, nullptr);
  db_.reset(db);
  if (code == SQLITE_OK) sqlite3_busy_timeout(db, static_cast<int>(patience_.count()));
  return code;
}

int Database::try_to_read() const {
  return sqlite3_exec(db_.get(), "SELECT 1 FROM sqlite_schema", nullptr, nullptr, nullptr);
}

void Database::refuse(std::string value, std::string allowed, std::string hint) const {
  throw InputError(Diagnostic{"--db", file_, std::move(value), std::move(allowed), std::move(hint)});
}

void Database::fail(int code) const {
  Meaning m = meaning(code, db_ ? sqlite3_errmsg(db_.get()) : sqlite3_errstr(code), patience_);
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
  throw InputError(Diagnostic{db_->file(), std::move(path), std::move(value), std::move(allowed),
                              "something else than meshwright changed the database: search again, which replaces what "
                              "is wrong, or move it away"});
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
