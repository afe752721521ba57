// Reading files that others may hold, change or have put there: each refusal is an InputError about the file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace meshwright {

// A regular file, open for reading. What is none (a folder, a FIFO, a device, a socket, a link to nowhere or to itself) is
// refused before it could block. Nothing is mapped: a file that is cut while it is used gives an InputError, no SIGBUS.
class RegularFile {
 public:
  // `allowed` completes "allowed: ..." where the file is refused, `hint` says what to do.
  RegularFile(const std::filesystem::path& path, std::string allowed, std::string hint);
  ~RegularFile();
  RegularFile(const RegularFile&) = delete;
  RegularFile& operator=(const RegularFile&) = delete;

  std::int64_t size() const { return size_; }  // bytes, when it was opened
  // Exactly the bytes [offset, offset + count). Throws InputError if the file ends before, or can't be read.
  void read(std::int64_t offset, void* to, std::int64_t count) const;
  std::string all() const;  // its size() bytes

 private:
  [[noreturn]] void refuse(const std::string& where, const std::string& value) const;

  std::filesystem::path path_;
  std::string allowed_, hint_;
  int descriptor_ = -1;
  std::int64_t size_ = 0;
};

}  // namespace meshwright
