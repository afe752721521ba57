// The program as it is installed: in a prefix that may move, apart from the sources.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <regex>

#include "tests/cli/binary.h"

namespace meshwright {
namespace {

using testing::HasSubstr;
using testing::Not;
using Path = std::filesystem::path;

const Path kBuild = Path(MESHWRIGHT_BINARY).parent_path();

Outcome shell(const TemporaryFolder& folder, const std::string& line) {
  const Path out = folder.path() / "out.txt", err = folder.path() / "err.txt";
  const int status = std::system(("cd '" + folder.path().string() + "' && ( " + line + " ) >'" + out.string() +
                                  "' 2>'" + err.string() + "' </dev/null")
                                     .c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128, text_of(out), text_of(err)};
}

std::string simulate_with(const Path& prefix) {
  return "env -u MESHWRIGHT_CONFIGS '" + (prefix / "bin/meshwright").string() + "' simulate '" + kSmall +
         "' --system v4:2x2x1 --plan 4x1x1 --json";
}

TEST(Install, TheProgramFindsItsConfigsBesideItselfWhereverThePrefixIsMoved) {
  const TemporaryFolder folder;
  const Path prefix = folder.path() / "a prefix";
  ASSERT_EQ(shell(folder, "cmake --install '" + kBuild.string() + "' --prefix '" + prefix.string() + "'").code, 0);
  for (const char* file : {"bin/meshwright", "share/meshwright/configs/systems/tpu-v4.json",
                           "share/meshwright/configs/schema/system.schema.json", "share/doc/meshwright/README.md"})
    EXPECT_TRUE(std::filesystem::exists(prefix / file)) << file;

  // It is these files that are read, and not those of the sources.
  const Path v4 = prefix / "share/meshwright/configs/systems/tpu-v4.json";
  auto system = nlohmann::json::parse(text_of(v4));
  system["name"] = "installed";
  std::ofstream(v4) << system.dump();
  Outcome outcome = shell(folder, simulate_with(prefix));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(nlohmann::json::parse(outcome.out).at("system"), "installed:2x2x1");

  const Path moved = folder.path() / "moved";
  std::filesystem::rename(prefix, moved);
  outcome = shell(folder, simulate_with(moved));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(nlohmann::json::parse(outcome.out).at("system"), "installed:2x2x1");

  // Through a link on the PATH, too.
  std::filesystem::create_symlink(moved / "bin/meshwright", folder.path() / "meshwright");
  EXPECT_EQ(shell(folder, "PATH=\"$PWD:$PATH\"; meshwright params '" + kSmall + "'").code, 0);

  std::filesystem::remove_all(moved / "share");
  outcome = shell(folder, simulate_with(moved));
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, HasSubstr((moved / "share/meshwright/configs/systems").string()));
  EXPECT_THAT(outcome.err, Not(HasSubstr(std::string(REPOSITORY) + "/configs/systems")));
}

TEST(Install, TheEnvironmentNamesOtherConfigs) {
  const TemporaryFolder folder;
  std::filesystem::create_directories(folder.path() / "own/systems");
  std::filesystem::copy(std::string(REPOSITORY) + "/configs/systems/tpu-v4.json",
                        folder.path() / "own/systems/mine.json");
  const Outcome outcome = shell(folder, "MESHWRIGHT_CONFIGS=own '" MESHWRIGHT_BINARY "' simulate '" + kSmall +
                                            "' --system mine:2x2x1 --plan 4x1x1 --json");
  EXPECT_EQ(outcome.code, 0) << outcome.err;
}

TEST(Install, MakePutsItBelowDestdirAndPrefix) {
  const TemporaryFolder folder;
  const Outcome outcome = shell(folder, "make -C '" REPOSITORY "' -o build install BUILD='" + kBuild.string() +
                                            "' DESTDIR='" + (folder.path() / "stage").string() + "' PREFIX=/opt/mw");
  ASSERT_EQ(outcome.code, 0) << outcome.out << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("/stage/opt/mw/bin/meshwright"));
  EXPECT_EQ(shell(folder, simulate_with(folder.path() / "stage/opt/mw")).code, 0);
}

TEST(Version, HasVersionCommitAndBuild) {
  const Outcome outcome = meshwright({"--version"});
  EXPECT_EQ(outcome.code, 0);
  EXPECT_TRUE(std::regex_match(outcome.out,
                               std::regex("meshwright [0-9]+\\.[0-9]+\\.[0-9]+\n"
                                          "commit (unknown|([^\n]+-g)?[0-9a-f]{7,}(-dirty)?|[^\n ]+)\n"
                                          "build [A-Za-z]+( with sanitizers)?, [A-Za-z]+ [0-9.]+, [0-9a-f]{12}\n")))
      << outcome.out;
}

TEST(Version, TheCommitIsLookedUpAtEveryBuildAndUnknownWithoutARepository) {
  const TemporaryFolder folder;
  const Path header = folder.path() / "v.h";
  const auto look = [&] {
    EXPECT_EQ(shell(folder, "cmake -DSOURCE=\"$PWD/s\" -DVERSION=1.2.3 '-DBUILD=Release, GNU 12' -DOUT='" +
                                header.string() + "' -P '" REPOSITORY "/cli/version_values.cmake'")
                  .code,
              0);
    return text_of(header);
  };
  std::filesystem::create_directory(folder.path() / "s");
  const std::string without = look();
  EXPECT_THAT(without, HasSubstr("kCommit = \"unknown\""));
  EXPECT_THAT(without, HasSubstr("kVersion = \"1.2.3\""));
  EXPECT_THAT(without, HasSubstr("kBuild = \"Release, GNU 12\""));

  const std::string git = "cd s && git -c user.name=a -c user.email=a@b";
  if (shell(folder, git + " init -q").code != 0) GTEST_SKIP() << "no git here";
  ASSERT_EQ(shell(folder, git + " commit -q --allow-empty -m one").code, 0);
  const std::string one = look();
  EXPECT_THAT(one, Not(HasSubstr("unknown")));
  const auto written = std::filesystem::last_write_time(header);
  look();
  EXPECT_EQ(std::filesystem::last_write_time(header), written);  // nothing changed: nothing is compiled again
  ASSERT_EQ(shell(folder, git + " commit -q --allow-empty -m two").code, 0);
  EXPECT_NE(look(), one);
}

}  // namespace
}  // namespace meshwright
