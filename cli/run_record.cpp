#include "cli/run_record.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <fstream>
#include <string_view>
#include <system_error>

#include "cli/version.h"

namespace meshwright {
namespace {

[[noreturn]] void refuse(const std::filesystem::path& at, const std::string& why) {
  throw InputError(Diagnostic{"the run's record", "output_dir",
                              Json(at.string()).dump(-1, ' ', false, Json::error_handler_t::replace),
                              "a folder that can be written, with room", why + "; --set output_dir=runs/ is another"});
}

void write(const std::filesystem::path& file, const std::string& text, std::ios::openmode mode) {
  std::ofstream out(file, mode);
  out << text;
  out.close();
  if (!out) refuse(file, "it can't be written");
}

// As a POSIX shell reads it back.
std::string shell_word(const std::string& word) {
  const auto is_plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("_-./:=,@%+").find(c) != std::string_view::npos;
  };
  if (!word.empty() && std::all_of(word.begin(), word.end(), is_plain)) return word;
  std::string quoted = "'";
  for (const char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

std::string script(const std::vector<std::string>& command) {
  std::string text = "# " + version_text() + '\n';
  for (std::size_t at = 0; (at = text.find('\n', at)) + 1 < text.size(); at += 3) text.insert(at + 1, "# ");
  text += fmt::format("cd {}\n", shell_word(std::filesystem::current_path().string()));
  for (const std::string& word : command) text += shell_word(word) + (&word == &command.back() ? "\n" : " ");
  return text;
}

// The number of a folder that is a run's; 0: it is none.
std::int64_t number_of(const std::filesystem::path& folder) {
  const std::string name = folder.filename().string();
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  return error == std::errc() && end == name.data() + name.size() ? number : 0;
}

std::filesystem::path next_folder(const std::filesystem::path& runs) {
  std::error_code error;
  std::filesystem::create_directories(runs, error);
  std::int64_t last = 0;
  for (const auto& entry : std::filesystem::directory_iterator(runs, error))
    last = std::max(last, number_of(entry.path()));
  if (error) refuse(runs, error.message());
  while (true) {
    const std::filesystem::path folder = runs / fmt::format("{:04}", ++last);
    if (std::filesystem::create_directory(folder, error)) return folder;  // false: another run was faster
    if (error) refuse(folder, error.message());
  }
}

}  // namespace

RunRecord::RunRecord(const TrainingConfig& config, const Plan& plan, const std::string& system,
                     const std::vector<std::string>& command) {
  const bool bucket = config.output_dir.find("://") != std::string::npos;
  folder_ = next_folder(std::filesystem::path(bucket ? "runs" : config.output_dir) / config.name);
  const auto add = [&](const char* name, const std::string& text) { write(folder_ / name, text, std::ios::out); };
  add("config.json", to_json(config).dump(2) + '\n');
  add("plan.json", OrderedJson{{"id", plan_id(plan)}, {"plan", to_text(plan)}, {"system", system}}.dump(2) + '\n');
  add("command.txt", script(command));
}

void RunRecord::add_step(const OrderedJson& line) const {
  write(folder_ / "metrics.jsonl", line.dump() + '\n', std::ios::app);
}

void RunRecord::finish(const OrderedJson& summary) const {
  write(folder_ / "summary.json", summary.dump(2) + '\n', std::ios::out);
}

}  // namespace meshwright
