// SQLite with C++ lifetimes: a connection, prepared statements, transactions. Failures are InputErrors about
// the file.
#pragma once

#include <sqlite3.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

namespace meshwright::sqlite {

enum class Access : std::uint8_t { kRead, kWrite, kWriteIfPossible };
constexpr std::chrono::milliseconds kPatience{10'000};  // how long a lock is waited for, unless said otherwise

class Database {
 public:
  // kWrite makes the file if there is none; kWriteIfPossible reads one that can't be written.
  Database(const std::filesystem::path& file, Access access, std::chrono::milliseconds patience = kPatience);
  bool writable() const { return sqlite3_db_readonly(db_.get(), "main") == 0; }
  // Runs statements that return nothing of interest.
  void run(const std::string& sql) const;
  std::int64_t pragma(const std::string& name) const;  // an integer one
  std::int64_t last_row() const { return sqlite3_last_insert_rowid(db_.get()); }
  sqlite3* get() const { return db_.get(); }
  // Throws the InputError that this result code means for the file.
  [[noreturn]] void fail(int code) const;
  [[noreturn]] void refuse(std::string value, std::string allowed, std::string hint) const;

 private:
  // These return SQLite's result code: of opening, and of a first look into the file.
  int open(const std::string& name, int flags);
  int try_to_read() const;

  struct Close {
    void operator()(sqlite3* db) const { sqlite3_close(db); }
  };
  std::string file_;
  std::chrono::milliseconds patience_;
  std::unique_ptr<sqlite3, Close> db_;
};

// A prepared statement. Parameters are bound, and columns read, in order.
class Statement {
 public:
  Statement(const Database& db, std::string_view sql);

  Statement& bind(std::int64_t value);
  Statement& bind(double value);
  Statement& bind(std::string_view value);  // copied
  Statement& bind_null();

  bool step();   // true: there is a row; false: done
  void reset();  // to be run again; unbinds

  std::int64_t integer();
  double number();
  std::string text();

 private:
  struct Finalize {
    void operator()(sqlite3_stmt* s) const { sqlite3_finalize(s); }
  };
  void check(int code) const;
  const Database* db_;
  std::unique_ptr<sqlite3_stmt, Finalize> statement_;
  int parameter_ = 0, column_ = 0;
};

// All or nothing: rolled back unless committed.
class Transaction {
 public:
  explicit Transaction(const Database& db) : db_(db) { db_.run("BEGIN IMMEDIATE"); }
  ~Transaction();
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;
  void commit();

 private:
  const Database& db_;
  bool open_ = true;
};

// True for file systems over a network, where a write-ahead log does not work, as it shares memory between
// processes. `type`: of statfs(2).
bool is_network_file_system(std::int64_t type);

}  // namespace meshwright::sqlite
