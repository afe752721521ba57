#include "executor/launch/launcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "model/input/diagnostics.h"

namespace meshwright {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

// Sets a variable of the environment for its lifetime.
class WithEnvironment {
 public:
  WithEnvironment(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    setenv(name, value, 1);
  }
  ~WithEnvironment() {
    if (before_.empty()) {
      unsetenv(name_);
    } else {
      setenv(name_, before_.c_str(), 1);
    }
  }

 private:
  const char* name_;
  std::string before_;
};

TEST(Launcher, binds_ranks_to_cores_and_lets_them_spin_when_there_are_cores_enough) {
  const auto line = mpirun_command(2, 2, {"/bin/meshwright", "run"});
  EXPECT_THAT(line, Contains("core:if-supported"));
  EXPECT_THAT(line, Not(Contains("--oversubscribe")));
  EXPECT_THAT(line, Not(Contains("mpi_yield_when_idle")));
  EXPECT_THAT(std::vector(line.end() - 2, line.end()), ElementsAre("/bin/meshwright", "run"));
}

TEST(Launcher, more_ranks_than_cores_yield_while_they_wait) {
  const auto line = mpirun_command(3, 2, {"x"});
  EXPECT_THAT(line, Contains("--oversubscribe"));
  EXPECT_THAT(line, Contains("mpi_yield_when_idle"));
  EXPECT_THAT(line, Contains("none"));
}

TEST(Launcher, a_users_own_mpirun_must_have_the_plans_number_of_ranks) {
  const WithEnvironment size("OMPI_COMM_WORLD_SIZE", "4");
  EXPECT_TRUE(is_started_rank());
  EXPECT_EQ(started_ranks(), 4);
  EXPECT_NO_THROW(expect_started_ranks(4, "2x2x1"));
  try {
    expect_started_ranks(8, "2x2x2");
    FAIL();
  } catch (const InputError& e) {
    EXPECT_THAT(e.what(), HasSubstr("4"));
    EXPECT_THAT(e.what(), HasSubstr("8, the ranks of the plan 2x2x2"));
    EXPECT_THAT(e.what(), HasSubstr("mpirun -n 8"));
  }
}

TEST(Launcher, without_mpirun_the_message_names_the_package) {
  const WithEnvironment path("PATH", "/nowhere");
  try {
    run_ranks(2, {"/bin/true"});
    FAIL();
  } catch (const InputError& e) {
    EXPECT_THAT(e.what(), HasSubstr("openmpi-bin"));
  }
}

TEST(Launcher, starts_as_many_processes_as_asked_and_returns_the_exit_code_of_one_that_failed) {
  const auto folder = std::filesystem::temp_directory_path() / ("meshwright-launch-" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  // Each rank leaves a file with its number, which is under mpirun with the environment that a rank sees; no
  // shell meets the words of the command on the way, so that "$0 ; exit 9" is only a word.
  const std::string script = "touch \"$1/$OMPI_COMM_WORLD_RANK-of-$OMPI_COMM_WORLD_SIZE-omp$OMP_NUM_THREADS\"";
  EXPECT_EQ(run_ranks(3, {"/bin/sh", "-c", script, "$0 ; exit 9", folder.string()}), 0);
  for (const char* file : {"0-of-3-omp1", "1-of-3-omp1", "2-of-3-omp1"})
    EXPECT_TRUE(std::filesystem::exists(folder / file));
  std::filesystem::remove_all(folder);
  EXPECT_EQ(run_ranks(2, {"/bin/sh", "-c", "exit 5"}), 5);
}

TEST(Launcher, own_command_is_the_running_executable_with_its_arguments) {
  const char* argv[] = {"some name", "run", "--json"};
  const auto command = own_command(3, argv);
  EXPECT_EQ(std::filesystem::path(command[0]).filename(), std::filesystem::read_symlink("/proc/self/exe").filename());
  EXPECT_THAT(std::vector(command.begin() + 1, command.end()), ElementsAre("run", "--json"));
  EXPECT_GE(available_cores(), 1);
}

}  // namespace
}  // namespace meshwright
