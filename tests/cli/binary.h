// Runs the built `meshwright` as a user would.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace meshwright {

struct Outcome {
  int code = 0;
  std::string out, err;
};

// A folder that is gone afterwards.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "meshwright_cli_XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ / name) << text;
    return (path_ / name).string();
  }

 private:
  std::filesystem::path path_;
};

inline std::string text_of(const std::filesystem::path& file) {
  std::ostringstream text;
  text << std::ifstream(file).rdbuf();
  return text.str();
}

// In a folder of its own, so that no database of another call is found; its calibration and cache, too. `folder`: instead.
inline Outcome meshwright(const std::vector<std::string>& arguments, const TemporaryFolder* folder = nullptr) {
  const TemporaryFolder own;
  const std::filesystem::path at = folder ? folder->path() : own.path();
  std::string line = "cd ";
  const auto add = [&](const std::string& word) {  // quoted for the shell
    line += '\'';
    for (const char c : word) line += c == '\'' ? std::string("'\\''") : std::string(1, c);
    line += "' ";
  };
  add(at.string());
  line += "&& MESHWRIGHT_CACHE=";
  add((at / "cache").string());
  add(MESHWRIGHT_BINARY);
  for (const std::string& word : arguments) add(word);
  const int status = std::system((line + ">stdout.txt 2>stderr.txt </dev/null").c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), text_of(at / "stdout.txt"),
          text_of(at / "stderr.txt")};
}

inline const std::string kPublished = std::string(REPOSITORY) + "/configs/jaxformer-moe1b.json";
inline const std::string kSmall = std::string(REPOSITORY) + "/configs/moe-small.json";

// The small configuration with a few overrides, as a command line's beginning.
inline std::vector<std::string> with(std::vector<std::string> words, const std::vector<std::string>& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

}  // namespace meshwright
