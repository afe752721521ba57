#include "executor/launch/launcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <stdexcept>

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
  EXPECT_NO_THROW(expect_ranks(4, 4, "2x2x1"));
  try {
    expect_ranks(4, 8, "2x2x2");
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

TEST(Launcher, ranks_of_other_launchers_are_refused_and_Open_MPIs_are_not) {
  for (const char* variable : {"PMI_SIZE", "PMI_RANK", "MV2_COMM_WORLD_SIZE", "PMIX_RANK", "SLURM_STEP_NUM_TASKS"}) {
    const WithEnvironment foreign(variable, "2");
    try {
      run_ranks(2, {"/bin/true"});
      ADD_FAILURE() << variable;
    } catch (const InputError& e) {
      EXPECT_THAT(e.what(), HasSubstr(variable));
    }
    const WithEnvironment size("OMPI_COMM_WORLD_SIZE", "2");
    EXPECT_NO_THROW(refuse_foreign_launcher());
  }
  const WithEnvironment one("SLURM_STEP_NUM_TASKS", "1");
  EXPECT_NO_THROW(refuse_foreign_launcher());
}

TEST(Launcher, a_word_that_mpirun_takes_for_a_separator_never_reaches_it) {
  EXPECT_THROW(mpirun_command(2, 2, {"/bin/meshwright", "--data", ":"}), std::logic_error);
  EXPECT_NO_THROW(mpirun_command(2, 2, {"/bin/meshwright", "--data=:", "./:"}));
}

TEST(Launcher, an_exit_code_above_128_is_a_signals_only_where_there_is_such_a_signal) {
  testing::internal::CaptureStderr();
  EXPECT_EQ(run_ranks(2, {"/bin/sh", "-c", "exit 200"}), 200);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), Not(HasSubstr("signal")));
  testing::internal::CaptureStderr();
  EXPECT_EQ(run_ranks(2, {"/bin/sh", "-c", "kill -9 $$"}), 137);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("signal 9 (Killed), or with this exit code"));
}

TEST(Launcher, ranks_read_nothing_of_this_processs_input) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  ASSERT_EQ(write(ends[1], "word\n", 5), 5);
  const int before = dup(STDIN_FILENO);
  dup2(ends[0], STDIN_FILENO);
  EXPECT_EQ(run_ranks(2, {"/bin/sh", "-c", "read x && exit 4; exit 0"}), 0);  // at the end of its input at once
  dup2(before, STDIN_FILENO);
  char text[8] = {};
  EXPECT_EQ(read(ends[0], text, sizeof text), 5);
  for (const int descriptor : {before, ends[0], ends[1]}) close(descriptor);
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
