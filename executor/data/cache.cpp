#include "executor/data/cache.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <pwd.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <utility>
#include <vector>

#include "executor/data/regular_file.h"
#include "model/input/content_key.h"
#include "model/input/diagnostics.h"

namespace meshwright {
namespace {

// The home of this process's user, by the account; "" if it has none.
std::filesystem::path home_of_account() {
  std::vector<char> texts(1 << 14);
  passwd entry{}, *found = nullptr;
  if (getpwuid_r(geteuid(), &entry, texts.data(), texts.size(), &found) != 0 || !found || !entry.pw_dir) return {};
  std::error_code error;
  return std::filesystem::is_directory(entry.pw_dir, error) && access(entry.pw_dir, W_OK) == 0 ? entry.pw_dir : "";
}

// A folder under the shared temporary one that is this user's alone.
std::filesystem::path private_temporary_folder() {
  std::error_code error;
  std::filesystem::path parent = std::filesystem::temp_directory_path(error);
  if (error) parent = "/tmp";
  const std::filesystem::path folder = parent / fmt::format("meshwright-{}", geteuid());
  const auto refuse = [&](const std::string& value) {
    throw InputError(Diagnostic{folder.string(), "", value, "a folder of this user that nobody else can write",
                                "there is no home folder to keep files in: set MESHWRIGHT_CACHE to a folder"});
  };
  struct stat s {};
  if (mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) refuse(std::strerror(errno));
  if (lstat(folder.c_str(), &s) != 0) refuse(std::strerror(errno));
  if (S_ISLNK(s.st_mode)) refuse("a link");
  if (!S_ISDIR(s.st_mode)) refuse("not a folder");
  if (s.st_uid != geteuid()) refuse(fmt::format("owned by user {}", s.st_uid));
  if ((s.st_mode & (S_IWGRP | S_IWOTH)) != 0) refuse(fmt::format("permissions {:o}", s.st_mode & 07777));
  return folder;
}

[[noreturn]] void cannot_write(const std::filesystem::path& folder, int code) {
  throw InputError(
      Diagnostic{.source = folder.string(),
                 .path = "",
                 .value = std::strerror(code),
                 .allowed = "a folder in which files can be made, on a disk that has room",
                 .hint = "set MESHWRIGHT_CACHE to another folder if this is the cache, output_dir if it is the "
                         "run's"});
}

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

// A new file beside `path`, which is removed unless it takes its place.
class NewFile {
 public:
  explicit NewFile(const std::filesystem::path& path) : path_(path), folder_(folder_of(path)) {
    std::error_code error;
    std::filesystem::create_directories(folder_, error);
    if (error) cannot_write(folder_, error.value());
    do {
      std::uint64_t name = 0;
      if (getrandom(&name, sizeof name, 0) != sizeof name) cannot_write(folder_, errno);
      temporary_ = path_;
      temporary_ += fmt::format(".{:016x}.tmp", name);
      descriptor_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    } while (descriptor_ < 0 && errno == EEXIST);
    if (descriptor_ < 0) cannot_write(folder_, errno);
  }
  ~NewFile() {
    if (descriptor_ >= 0) close(descriptor_);
    if (!temporary_.empty()) unlink(temporary_.c_str());
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  // To the disk: only then is there known to be room for it.
  void write(std::string_view content) {
    while (!content.empty()) {
      const ssize_t n = ::write(descriptor_, content.data(), content.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) cannot_write(folder_, errno);
      content.remove_prefix(static_cast<std::size_t>(n));
    }
    if (fsync(descriptor_) != 0) cannot_write(folder_, errno);
    if (close(std::exchange(descriptor_, -1)) != 0) cannot_write(folder_, errno);
  }

  void take_its_place() {
    if (rename(temporary_.c_str(), path_.c_str()) != 0) cannot_write(folder_, errno);
    temporary_.clear();
    const int folder = open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) return;  // a folder that may be written but not listed: the name is as durable as it can be
    const int code = fsync(folder) == 0 ? 0 : errno;
    close(folder);
    if (code != 0 && code != EINVAL) cannot_write(folder_, code);  // EINVAL: this file system has no fsync of folders
  }

 private:
  std::filesystem::path path_, folder_, temporary_;
  int descriptor_ = -1;
};

// A kept file ends with this line: the hash of its name and of all that stands before.
constexpr std::string_view kSeal = "\nkept: ";
constexpr std::size_t kSealBytes = kSeal.size() + 16 + 1;

std::string seal(const std::string& name, std::string_view content) {
  return fmt::format("{}{}\n", kSeal, content_key(content, name));
}

}  // namespace

std::filesystem::path default_cache_folder() {
  const auto from = [](const char* variable) -> std::filesystem::path {
    const char* value = std::getenv(variable);
    return value ? value : "";
  };
  if (const auto own = from("MESHWRIGHT_CACHE"); !own.empty()) return own;
  if (const auto xdg = from("XDG_CACHE_HOME"); xdg.is_absolute()) return xdg / "meshwright";  // else to be ignored
  if (const auto home = from("HOME"); !home.empty()) return home / ".cache" / "meshwright";
  if (const auto home = home_of_account(); !home.empty()) return home / ".cache" / "meshwright";
  return private_temporary_folder();
}

void write_atomically(const std::filesystem::path& path, std::string_view content) {
  NewFile file(path);
  file.write(content);
  file.take_its_place();
}

void expect_writable(const std::filesystem::path& path, std::int64_t bytes) {
  NewFile(path).write(std::string(static_cast<std::size_t>(bytes), ' '));
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) cannot_write(path, EISDIR);  // can't be replaced
}

Cache::Cache(std::filesystem::path folder, std::function<void(const std::string&)> warn)
    : folder_(std::move(folder)), warn_(std::move(warn)) {}

std::optional<std::string> Cache::find(const std::string& name) const {
  const std::filesystem::path path = folder_ / name;
  struct stat s {};
  if (lstat(path.c_str(), &s) != 0 && errno == ENOENT) return std::nullopt;
  try {
    std::string content = RegularFile(path, "a file that was kept here", "").all();
    if (content.size() >= kSealBytes) {
      const std::string found = content.substr(content.size() - kSealBytes);
      content.resize(content.size() - kSealBytes);
      if (found == seal(name, content)) return content;
    }
    warn(name, "it was altered since it was made");
  } catch (const InputError& error) {
    warn(name, error.what());
  }
  return std::nullopt;
}

void Cache::keep(const std::string& name, std::string content) const {
  content += seal(name, content);
  write_atomically(folder_ / name, content);
}

void Cache::warn(const std::string& name, const std::string& why) const {
  if (warn_) warn_(fmt::format("{} is not used, but made anew: {}", (folder_ / name).string(), why));
}

}  // namespace meshwright
