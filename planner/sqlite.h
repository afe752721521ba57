// SQLite with C++ lifetimes: a connection, prepared statements, transactions. Failures are InputErrors about
// the file.
#pragma once

#include <sqlite3.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "model/input/json_reader.h"

namespace meshwright::sqlite {

enum class Access : std::uint8_t { kRead, kWrite };

class Database {
 public:
  // kWrite makes the file if there is none. Waits up to 10 s for a lock.
  Database(const std::filesystem::path& file, Access access);
  // Runs statements that return nothing of interest.
  void run(const std::string& sql) const;
  std::int64_t pragma(const std::string& name) const;  // an integer one
  std::int64_t last_row() const { return sqlite3_last_insert_rowid(db_.get()); }
  sqlite3* get() const { return db_.get(); }
  // Throws the InputError that this result code means for the file.
  [[noreturn]] void fail(int code) const;
  [[noreturn]] void refuse(std::string value, std::string allowed, std::string hint) const;
  const std::string& file() const { return file_; }

 private:
  struct Close {
    void operator()(sqlite3* db) const { sqlite3_close(db); }
  };
  std::string file_;
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

  // The next column. Throws InputError if it is of another type, or out of range; text: if it is not what printable()
  // leaves as it is.
  std::int64_t integer(const IntegerRange& range = {});
  double number(const NumberRange& range = {});
  std::string text();
  std::string bytes();  // any text
  bool next_is_null() const;
  void skip() { ++column_; }

  bool has(std::string_view column) const;
  // Throws the InputError that a column of the row is at fault: "file: table[row].column = value: ...". The row's key is
  // the first column, if that is called id. The last: the one that was read last, with its value.
  [[noreturn]] void refuse(std::string_view column, std::string value, std::string allowed) const;
  [[noreturn]] void refuse_last(std::string allowed) const;

 private:
  struct Finalize {
    void operator()(sqlite3_stmt* s) const { sqlite3_finalize(s); }
  };
  void check(int code) const;
  std::optional<int> index(std::string_view column) const;
  std::string shown(int column) const;  // its value, for a message
  [[noreturn]] void refuse(int column, std::string value, std::string allowed) const;
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
