// What `search` shows of what it found, and that it fits the terminal.
#include <gtest/gtest.h>
#include <pty.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "reports/text.h"
#include "tests/cli/binary.h"

namespace meshwright {
namespace {

using Json = nlohmann::json;

const std::vector<std::string> kSmallSearch{"search", kSmall, "--system", "v4:2x2x1"};

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

std::string mesh_of(const Json& plan) {
  return std::to_string(plan.at("dp").get<int>()) + "x" + std::to_string(plan.at("pp").get<int>()) + "x" +
         std::to_string(plan.at("tp").get<int>());
}

// Meshes in the table's rows, from the first rule to the empty line.
std::vector<std::string> meshes_in_table(const std::string& text) {
  std::vector<std::string> meshes;
  bool inside = false;
  for (const std::string& line : lines_of(text)) {
    if (line.find("───") != std::string::npos) {
      inside = true;
    } else if (line.empty() && inside) {
      break;
    } else if (inside) {
      std::istringstream words(line);
      for (std::string word; words >> word;)
        if (std::ranges::count(word, 'x') == 2) meshes.push_back(word);
    }
  }
  return meshes;
}

TEST(SearchTable, HasTheBestPlanOfEachMeshBestFirst) {
  std::vector<std::string> expected;
  const Json json = Json::parse(meshwright(with(kSmallSearch, {"--json"})).out);
  for (const Json& plan : json.at("plans"))
    if (std::ranges::find(expected, mesh_of(plan)) == expected.end()) expected.push_back(mesh_of(plan));
  ASSERT_GE(expected.size(), 6u);
  const Outcome outcome = meshwright(kSmallSearch);
  EXPECT_EQ(meshes_in_table(outcome.out), expected) << outcome.out;
  // 8 sequences on each of the 2 dp shards of the configuration's own mesh, whatever the machine.
  EXPECT_TRUE(outcome.out.starts_with("moe-small on v4:2x2x1, 4 devices: batch 16 x 128 = 2,048 tokens\n"))
      << outcome.out;
  EXPECT_EQ(json.at("tokens_per_step"), 2048);
}

TEST(SearchTable, AllListsEveryPlanAndTopCutsEither) {
  const std::size_t all = meshes_in_table(meshwright(with(kSmallSearch, {"--all"})).out).size();
  EXPECT_GT(all, 50u);
  EXPECT_EQ(meshes_in_table(meshwright(with(kSmallSearch, {"--all", "--top", "12"})).out).size(), 12u);
  EXPECT_EQ(meshes_in_table(meshwright(with(kSmallSearch, {"--top", "2"})).out).size(), 2u);
}

TEST(SearchWhere, ShowsOnlyWhatMatchesInTheTableAndInJson) {
  const Outcome table = meshwright(with(kSmallSearch, {"--where", "tp=2,pp<=1"}));
  EXPECT_EQ(table.code, 0) << table.err;
  EXPECT_EQ(meshes_in_table(table.out), (std::vector<std::string>{"2x1x2"})) << table.out;
  const Json all = Json::parse(meshwright(with(kSmallSearch, {"--json"})).out);
  const Json some =
      Json::parse(meshwright(with(kSmallSearch, {"--where", "pp=2", "--where", "schedule=1f1b", "--json"})).out);
  EXPECT_EQ(some.at("where"), "pp=2,schedule=1f1b");
  Json expected = Json::array();
  for (const Json& plan : all.at("plans"))
    if (plan.at("pp") == 2 && plan.at("schedule") == "1f1b") expected.push_back(plan);
  EXPECT_FALSE(expected.empty());
  EXPECT_EQ(some.at("plans"), expected);
  EXPECT_EQ(some.at("evaluated"), all.at("evaluated"));
}

TEST(SearchWhere, NothingThatMatchesIsExitCode3) {
  const Outcome outcome = meshwright(with(kSmallSearch, {"--where", "pp=3"}));
  EXPECT_EQ(outcome.code, 3);
  EXPECT_NE(outcome.out.find("No plan that fits matches pp=3."), std::string::npos) << outcome.out;
}

TEST(SearchWhere, EveryFaultIsBadInputBeforeAnythingIsSearched) {
  const Outcome outcome =
      meshwright({"search", kPublished, "--system", "v4:2x4x4", "--where", "tq=2,pp<=x", "--where", "schedule=1f1p"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_EQ(outcome.out, "");
  for (const char* text : {"--where", "did you mean tp?", "pp = x", "did you mean 1f1b?"})
    EXPECT_NE(outcome.err.find(text), std::string::npos) << outcome.err;
}

TEST(SearchHeadroom, IsAShareAboveZeroAndAtMostOne) {
  for (const char* text : {"0", "-1", "1.01", "nan", "92%", "much"}) {
    const Outcome outcome = meshwright(with(kSmallSearch, {"--headroom", text}));
    EXPECT_EQ(outcome.code, 2) << text;
    EXPECT_NE(outcome.err.find("--headroom"), std::string::npos) << outcome.err;
    EXPECT_NE(outcome.err.find("at most 1"), std::string::npos) << outcome.err;
  }
}

TEST(SearchHeadroom, TheTablesFirstPlanAndPlanBestAreTheRoomierOneWithinAPercent) {
  // One chip and 512 sequences: two microbatches need half of the memory of one and take 0.3 % longer. The usable memory is
  // made what the fastest plan needs.
  const TemporaryFolder folder;
  auto description = Json::parse(text_of(std::string(REPOSITORY) + "/configs/systems/tpu-v4.json"));
  const auto call = [&](const std::string& command, const std::string& system, const std::vector<std::string>& more) {
    const Outcome outcome =
        meshwright(with({command, kSmall, "--system", system + ":1x1x1", "--set", "device_config.n_device_axis=[1,1,1]",
                         "--set", "data_config.train_batch_size=512", "--set", "data_config.micro_batch_size=1"},
                        more),
                   &folder);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return outcome.out;
  };
  const Json plans = Json::parse(call("search", "v4", {"--json"})).at("plans");
  const std::string fastest = plans.at(0).at("plan"),
                    roomy = "1x1x1,schedule=1f1b,microbatches=2,fsdp=0,recompute=none";
  description["memory"]["usable_bytes"]["value"] = plans.at(0).at("peak_memory_bytes");
  const std::string tight = folder.write("tight.json", description.dump());

  const Json found = Json::parse(call("search", tight, {"--json"}));
  EXPECT_EQ(found.at("preferred").at("plan"), roomy);
  EXPECT_EQ(found.at("plans").at(0).at("plan"), fastest);  // JSON's plans stay by step time
  const auto best = [&](const std::vector<std::string>& headroom) {
    return Json::parse(call("simulate", tight, with({"--plan", "best", "--json"}, headroom))).at("plan");
  };
  EXPECT_EQ(best({}), roomy);
  EXPECT_EQ(best({"--headroom", "1"}), fastest);

  const std::string table = call("search", tight, {"--all"});
  const auto lines = lines_of(table);
  const auto rule =
      std::ranges::find_if(lines, [](const std::string& l) { return l.find("───") != std::string::npos; });
  ASSERT_LT(rule + 1, lines.end()) << table;
  EXPECT_NE((rule + 1)->find(found.at("preferred").at("id").get<std::string>()), std::string::npos) << table;
  EXPECT_NE(table.find("is listed first"), std::string::npos) << table;
  EXPECT_NE(table.find("3.52!"), std::string::npos) << table;
}

// The widest line that a command prints with COLUMNS set to so many.
int widest(const std::vector<std::string>& arguments, int columns, const TemporaryFolder& folder) {
  setenv("COLUMNS", std::to_string(columns).c_str(), 1);
  const Outcome outcome = meshwright(arguments, &folder);
  unsetenv("COLUMNS");
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  int width = 0;
  for (const std::string& line : lines_of(outcome.out)) width = std::max(width, display_width(line));
  return width;
}

TEST(Terminal, TablesObeyColumnsAndAre80WideWithout) {
  unsetenv("COLUMNS");
  const TemporaryFolder folder;
  const std::vector<std::string> simulate{"simulate", kPublished, "--system", "v4:2x4x4"};
  for (const auto& arguments : {kSmallSearch, simulate, with(simulate, {"--shardings"}), {"params", kPublished}}) {
    EXPECT_LE(widest(arguments, 60, folder), 60) << arguments[0];
    EXPECT_LE(widest(arguments, 80, folder), 80) << arguments[0];
    EXPECT_LE(widest(arguments, 150, folder), 150) << arguments[0];
    int width = 0;
    for (const std::string& line : lines_of(meshwright(arguments, &folder).out))
      width = std::max(width, display_width(line));
    EXPECT_LE(width, 80) << arguments[0];
  }
  EXPECT_GT(widest(kSmallSearch, 200, folder), 80);
}

// What the program writes to stderr where that is a terminal of so many columns.
std::string on_terminal(std::vector<std::string> arguments, unsigned short columns,
                        const std::map<std::string, std::string>& environment, const TemporaryFolder& folder) {
  winsize window{.ws_row = 24, .ws_col = columns, .ws_xpixel = 0, .ws_ypixel = 0};
  int terminal = -1, program_side = -1;
  if (openpty(&terminal, &program_side, nullptr, nullptr, &window) != 0) throw std::runtime_error("no pseudo-terminal");
  std::vector<char*> words;
  arguments.insert(arguments.begin(), MESHWRIGHT_BINARY);
  for (std::string& word : arguments) words.push_back(word.data());
  words.push_back(nullptr);
  const std::string cache = (folder.path() / "cache").string();
  const pid_t child = fork();
  if (child == 0) {
    if (chdir(folder.path().c_str()) != 0 || !std::freopen("stdout.txt", "w", stdout)) _exit(127);
    dup2(program_side, STDERR_FILENO);
    close(terminal);
    setenv("TERM", "xterm", 1);
    setenv("MESHWRIGHT_CACHE", cache.c_str(), 1);
    unsetenv("NO_COLOR");
    unsetenv("COLUMNS");
    for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
    execv(words[0], words.data());
    _exit(127);
  }
  close(program_side);
  std::string text;
  for (char buffer[4096];;) {  // until the program's side is closed, which reads as an error
    const ssize_t n = read(terminal, buffer, sizeof buffer);
    if (n <= 0) break;
    text.append(buffer, static_cast<std::size_t>(n));
  }
  close(terminal);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << text;
  return text;
}

constexpr std::string_view kClear = "\r\x1b[K";

// The texts of the progress line, each from its clearing to the next one's.
std::vector<std::string> progress(const std::string& text) {
  std::vector<std::string> shown;
  for (std::size_t at = text.find(kClear); at != std::string::npos;) {
    const std::size_t begin = at + kClear.size();
    at = text.find(kClear, begin);
    if (at != std::string::npos) shown.push_back(text.substr(begin, at - begin));
  }
  return shown;
}

TEST(Terminal, TheProgressLineNeverWraps) {
  for (const auto& [columns, environment] : std::vector<std::pair<unsigned short, std::map<std::string, std::string>>>{
           {40, {}}, {80, {{"COLUMNS", "50"}}}, {50, {{"COLUMNS", "200"}}}}) {
    const TemporaryFolder folder;
    const auto shown = progress(on_terminal(kSmallSearch, columns, environment, folder));
    ASSERT_FALSE(shown.empty());
    const int most = environment.contains("COLUMNS") ? 50 : 40;
    for (const std::string& line : shown) EXPECT_LT(display_width(line), most) << line;
    EXPECT_NE(shown.back().find(" plans, "), std::string::npos) << shown.back();
    EXPECT_NE(shown.back().find("…"), std::string::npos) << "nothing was cut: " << shown.back();
  }
}

TEST(Terminal, NoColorIsObeyed) {
  const auto colours = [](const std::string& text) {  // of the log: ESC [ ... m
    return text.find("\x1b[32m") != std::string::npos || text.find("\x1b[m") != std::string::npos;
  };
  const TemporaryFolder folder;
  const std::vector<std::string> arguments{"params", kPublished};
  EXPECT_TRUE(on_terminal(arguments, 80, {}, folder).find("\x1b[") != std::string::npos);
  const std::string plain = on_terminal(arguments, 80, {{"NO_COLOR", "1"}}, folder);
  EXPECT_EQ(plain.find("\x1b["), std::string::npos) << plain;
  EXPECT_NE(plain.find("warning: "), std::string::npos) << plain;
  EXPECT_TRUE(colours(on_terminal(kSmallSearch, 80, {{"NO_COLOR", ""}}, folder)));  // set to nothing is not set
  EXPECT_EQ(on_terminal(kSmallSearch, 80, {{"TERM", "dumb"}}, folder).find("\x1b["), std::string::npos);
}

}  // namespace
}  // namespace meshwright
