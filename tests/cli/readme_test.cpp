// Every command of README.md runs, and does what is said there. The commands are taken from the file itself: one that is
// added without a check below fails, and so does a check whose command is gone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <sstream>

#include "tests/cli/binary.h"

namespace meshwright {
namespace {

using Json = nlohmann::json;
using testing::HasSubstr;

const std::string kRepository = REPOSITORY;
const std::string kBuild = std::filesystem::path(MESHWRIGHT_BINARY).parent_path().string();

// One blank between words, no comment.
std::string normal(std::string line) {
  line = line.substr(0, line.find(" #"));
  std::istringstream words(line);
  std::string result;
  for (std::string word; words >> word;) result += (result.empty() ? "" : " ") + word;
  return result;
}

bool is_command(const std::string& text) {
  for (const char* program : {"meshwright ", "make ", "mpirun ", "cmake "})
    if (text.starts_with(program)) return true;
  return false;
}

// Indented lines, joined where they end with a backslash, and `spans` of text; both only if they begin with a program.
std::vector<std::string> commands_of(const std::string& markdown) {
  std::vector<std::string> commands;
  std::istringstream in(markdown);
  bool fenced = false;
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("```")) fenced = !fenced;
    if (fenced) continue;
    if (line.starts_with("    ")) {
      for (std::string more; line.ends_with("\\") && std::getline(in, more);)
        line = line.substr(0, line.size() - 1) + more;
      if (const std::string command = normal(line); is_command(command)) commands.push_back(command);
      continue;
    }
    static const std::regex span("`([^`]+)`");
    for (std::sregex_iterator it(line.begin(), line.end(), span), end; it != end; ++it)
      if (is_command((*it)[1])) commands.push_back(normal((*it)[1]));
  }
  return commands;
}

// A folder as README assumes it: my.json, text.txt, the program on the PATH.
class Reader {
 public:
  Reader() {
    Json config = Json::parse(text_of(kSmall));
    config["name"] = "mine";
    config["model_config"]["blocks"] = 1;
    config["model_config"]["vocab_size"] = 512;
    config["model_config"]["T"] = config["data_config"]["T"] = 32;
    config["data_config"]["train_batch_size"] = 64;  // for dp = 16 and 8 microbatches
    folder_.write("my.json", config.dump());
    std::string text;
    for (int i = 0; i < 4000; ++i)
      text += "the quick brown fox " + std::to_string(i * 7919 % 1000) + " jumps over the lazy dog\n";
    folder_.write("text.txt", text);
    std::filesystem::create_directory_symlink(kRepository + "/configs", folder_.path() / "configs");
  }

  Outcome run(const std::string& command) const {
    const std::string at = folder_.path().string();
    const std::string line = "cd " + at + " && export HOME=" + at + " MESHWRIGHT_CACHE=" + at +
                             "/cache PATH=" + kBuild +
                             ":$PATH OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 " +
                             "OMPI_MCA_rmaps_base_oversubscribe=1 && ( " + command + " ) >out.txt 2>err.txt </dev/null";
    const int status = std::system(line.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128, text_of(folder_.path() / "out.txt"),
            text_of(folder_.path() / "err.txt")};
  }
  std::filesystem::path file(const std::string& name) const { return folder_.path() / name; }

 private:
  TemporaryFolder folder_;
};

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  if (at == std::string::npos) throw std::logic_error("no '" + from + "' in: " + text);
  return text.replace(at, from.size(), to);
}

// What is run instead of a command that takes too long or too much, and what it promises.
struct Promise {
  std::function<std::string(const std::string&)> instead = [](const std::string& command) { return command; };
  std::function<void(const Reader&, const Outcome&)> check;
};

Promise says(const std::string& text) {
  return {.check = [text](const Reader&, const Outcome& outcome) { EXPECT_THAT(outcome.out, HasSubstr(text)); }};
}
Promise says(const std::string& text, std::function<std::string(const std::string&)> instead) {
  Promise promise = says(text);
  promise.instead = std::move(instead);
  return promise;
}

// Only what make would do.
std::string dry(const std::string& command) {
  return replaced(command, "make ", "make --no-print-directory -n -C " + kRepository + " ");
}

// The commands of the demo one by one: on fewer chips, for one step, and on a text that is quickly tokenized.
void check_demo(const Reader& reader, const Outcome& dry_run) {
  std::vector<std::string> commands;
  std::istringstream lines(dry_run.out);
  for (std::string line; std::getline(lines, line);)
    if (const std::size_t at = line.find("meshwright ");
        at != std::string::npos && line.find("echo") == std::string::npos && line.find(" --db ") != std::string::npos)
      commands.push_back(line.substr(at));
  ASSERT_EQ(commands.size(), 4u) << dry_run.out;  // search, rehearse, search, train
  const std::vector<std::string> promised{"legal plans fit", "All counts are equal", "legal plans fit",
                                          "All counts are equal"};
  for (std::size_t i = 0; i < commands.size(); ++i) {
    std::string command = std::regex_replace(commands[i], std::regex("v4:2x4x4"), "v4:2x2x1");
    command = std::regex_replace(command, std::regex("--db [^ ]+"), "--db demo.db");
    if (command.starts_with("meshwright run")) command += " --steps 1 --data text.txt";
    SCOPED_TRACE(command);
    const Outcome outcome = reader.run(command);
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_THAT(outcome.out, HasSubstr(promised[i]));
  }
}

const std::map<std::string, Promise>& promises() {
  static const std::map<std::string, Promise> all{
      {"make demo", {.instead = dry, .check = check_demo}},
      {"make test", says("ctest --test-dir", dry)},
      {"make bench", says("bench_$b", dry)},
      {"make bench-bf16", says("bench_bf16", dry)},
      {"make install PREFIX=$HOME/.local",
       {.instead =
            [](const std::string& command) {
              return replaced(command, "make ", "make -C " + kRepository + " -o build BUILD=" + kBuild + " ");
            },
        .check = [](const Reader& reader,
                    const Outcome&) { EXPECT_EQ(reader.run("$HOME/.local/bin/meshwright --version").code, 0); }}},
      {"make sanitize", says("ctest --preset dev", dry)},
      {"make fuzz", says("-max_total_time=60", dry)},
      {"meshwright --version", says("\ncommit ")},
      {"meshwright params my.json", says("parameters")},
      {"meshwright search my.json --system v4:4x4x4", says("legal plans fit")},
      {"meshwright search configs/models/llama-3-8b.json --system v4:4x4x4 --batch 512 --tokens 4096",
       says("batch 512 x 4,096",
            [](const std::string& command) { return replaced(command, "configs/", kRepository + "/configs/"); })},
      {"meshwright simulate my.json --system v4:4x4x4 --plan best", says("MFU")},
      {"meshwright simulate my.json --system v4:4x4x4 --plan "
       "16x2x2,schedule=1f1b,microbatches=8,fsdp=3,recompute=full --trace step.json --shardings",
       {.check =
            [](const Reader& reader, const Outcome& outcome) {
              EXPECT_THAT(outcome.out, HasSubstr("embedding.embedding"));  // every tensor and where it lies
              ASSERT_TRUE(std::filesystem::exists(reader.file("step.json")));
              std::set<std::string> names;
              const Json trace = Json::parse(text_of(reader.file("step.json")));
              for (const Json& e : trace.at("traceEvents")) names.insert(e.at("name"));
              for (const char* name : {"L0 ffn.0", "L0 ffn.0 dx", "L0 ffn.0 dW", "forward m3", "backward m3", "bubble",
                                       "exposed communication", "memory: activations", "link use: tp"})
                EXPECT_TRUE(names.contains(name)) << name;
            }}},
      {"meshwright calibrate", says("FLOP/s of f32 multiply-adds")},
      {"meshwright run my.json --system local --plan best --data text.txt --steps 500",
       {.instead = [](const std::string& command) { return replaced(command, "--steps 500", "--steps 2"); },
        .check =
            [](const Reader& reader, const Outcome& outcome) {
              EXPECT_THAT(outcome.out, HasSubstr("All counts are equal"));
              const std::string metrics = text_of(reader.file("runs/mine/0001/metrics.jsonl"));
              EXPECT_EQ(std::count(metrics.begin(), metrics.end(), '\n'), 2);
              for (const char* name : {"config.json", "plan.json", "command.txt", "summary.json"})
                EXPECT_TRUE(std::filesystem::exists(reader.file("runs/mine/0001") / name)) << name;
            }}},
      {"meshwright run my.json --system v4:4x4x4 --plan 16x2x2,fsdp=3 --rehearse",
       says("All counts are equal",
            [](const std::string& command) {  // 64 ranks
              return replaced(replaced(command, "v4:4x4x4", "v4:2x2x1"), "16x2x2", "2x2x1") + " --data text.txt";
            })},
      {"mpirun -n 2 meshwright run my.json --system local:2 --plan 1x1x2",
       says("All counts are equal", [](const std::string& command) { return command + " --steps 2 --data text.txt"; })},
  };
  return all;
}

TEST(Readme, EveryCommandHasACheckAndEveryCheckItsCommand) {
  std::set<std::string> in_readme, checked;
  for (const std::string& command : commands_of(text_of(kRepository + "/README.md"))) in_readme.insert(command);
  for (const auto& [command, promise] : promises()) checked.insert(command);
  EXPECT_EQ(in_readme, checked);
}

TEST(Readme, EveryCommandDoesWhatItPromises) {
  const Reader reader;
  std::set<std::string> done;
  for (const std::string& command : commands_of(text_of(kRepository + "/README.md"))) {
    if (!promises().contains(command) || !done.insert(command).second) continue;
    const Promise& promise = promises().at(command);
    SCOPED_TRACE(command);
    const Outcome outcome = reader.run(promise.instead(command));
    EXPECT_EQ(outcome.code, 0) << outcome.out << outcome.err;
    if (outcome.code == 0) promise.check(reader, outcome);
  }
}

TEST(Readme, CommandsAreFoundInBlocksAndInText) {
  EXPECT_EQ(
      commands_of(
          "Say `make x  y` or `run`.\n\n    meshwright a \\\n        --b   # c\n    other\n```\n    make no\n```\n"),
      (std::vector<std::string>{"make x y", "meshwright a --b"}));
}

TEST(Readme, EveryLinkLeadsToAFile) {
  const std::string readme = text_of(kRepository + "/README.md");
  static const std::regex link("\\]\\(([^)]+)\\)");
  int links = 0;
  for (std::sregex_iterator it(readme.begin(), readme.end(), link), end; it != end; ++it, ++links)
    EXPECT_TRUE(std::filesystem::exists(kRepository + "/" + (*it)[1].str())) << (*it)[1];
  EXPECT_GT(links, 8);
}

// The search's screen, line by line, but for how long it took, and for the lines that "..." stands for.
TEST(Readme, ShowsTheScreenThatTheSearchOfTheDemoPrints) {
  std::istringstream readme(text_of(kRepository + "/README.md"));
  std::string line;
  while (std::getline(readme, line) && !line.starts_with("1. **Search.**")) continue;
  while (std::getline(readme, line) && line != "```") continue;
  setenv("COLUMNS", "80", 1);
  const Outcome outcome = meshwright({"search", kPublished, "--system", "v4:2x4x4"});
  unsetenv("COLUMNS");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  std::istringstream printed(outcome.out);
  std::string said;
  int compared = 0;
  bool skips = false;
  while (std::getline(readme, line) && line != "```") {
    if (line == "  ...") {
      skips = true;
      continue;
    }
    while (std::getline(printed, said) && skips && said != line) continue;
    skips = false;
    const std::size_t time = line.find(", found in ");
    EXPECT_EQ(said.substr(0, time), line.substr(0, time));
    ++compared;
  }
  EXPECT_GE(compared, 15);
}

// Keys of every object in a schema that a person writes.
void collect_keys(const Json& schema, std::set<std::string>& keys) {
  if (schema.is_object() && schema.contains("properties"))
    for (const auto& [key, ignored] : schema.at("properties").items()) keys.insert(key);
  if (schema.is_structured())
    for (const Json& inner : schema) collect_keys(inner, keys);
}

TEST(Readme, NamesEveryKeyOfASystemFileAndEveryChoiceOfAPlan) {
  const std::string readme = text_of(kRepository + "/README.md");
  std::set<std::string> keys;
  collect_keys(Json::parse(text_of(kRepository + "/configs/schema/system.schema.json")), keys);
  // Of the tables that calibration writes, and the words around values.
  for (const char* known :
       {"value", "source", "model", "kind", "points", "members", "bytes", "us", "smallest_dimension"})
    keys.erase(known);
  for (const std::string& key : keys) EXPECT_THAT(readme, HasSubstr("`" + key + "`"));
  for (const char* choice : {"schedule", "microbatches", "fsdp", "recompute", "layers"})
    EXPECT_THAT(readme, HasSubstr(std::string("`") + choice + "`"));
}

}  // namespace
}  // namespace meshwright
