#include "executor/data/regular_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "model/input/diagnostics.h"

namespace meshwright {
namespace {

// What a file is that can't be read at offsets; "" for a regular one.
std::string other_kind(const struct stat& s) {
  if (S_ISREG(s.st_mode)) return "";
  if (S_ISDIR(s.st_mode)) return "a folder";
  if (S_ISFIFO(s.st_mode)) return "a FIFO";
  if (S_ISSOCK(s.st_mode)) return "a socket";
  return "a device";
}

}  // namespace

RegularFile::RegularFile(const std::filesystem::path& path, std::string allowed, std::string hint)
    : path_(path), allowed_(std::move(allowed)), hint_(std::move(hint)) {
  struct stat s {};
  // Looked at before it is opened, as opening a device can have effects; and after, in case it was replaced meanwhile.
  if (stat(path.c_str(), &s) != 0) refuse("", std::strerror(errno));
  if (const std::string kind = other_kind(s); !kind.empty()) refuse("", kind);
  descriptor_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (descriptor_ < 0) refuse("", std::strerror(errno));
  const int code = fstat(descriptor_, &s) == 0 ? 0 : errno;
  const std::string kind = code == 0 ? other_kind(s) : std::strerror(code);
  if (!kind.empty()) {
    close(descriptor_);
    refuse("", kind);
  }
  size_ = s.st_size;
}

RegularFile::~RegularFile() { close(descriptor_); }

void RegularFile::refuse(const std::string& where, const std::string& value) const {
  throw InputError(Diagnostic{path_.string(), where, value, allowed_, hint_});
}

void RegularFile::read(std::int64_t offset, void* to, std::int64_t count) const {
  for (auto* at = static_cast<char*>(to); count > 0;) {
    const ssize_t n = pread(descriptor_, at, static_cast<std::size_t>(count), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) refuse("byte " + std::to_string(offset), std::strerror(errno));
    if (n == 0)
      refuse("byte " + std::to_string(offset),
             "the end of a file that had " + std::to_string(size_) + " bytes: it was cut while it was used");
    at += n;
    offset += n;
    count -= n;
  }
}

std::string RegularFile::all() const {
  std::string bytes(static_cast<std::size_t>(size_), '\0');
  read(0, bytes.data(), size_);
  return bytes;
}

}  // namespace meshwright
