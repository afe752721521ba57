// Starting the ranks of a plan. `meshwright run` starts them itself, as the same command under mpirun; under
// a user's own mpirun it is one of them already. No shell is involved.
#pragma once

#include <string>
#include <vector>

#include "executor/launch/resources.h"

namespace meshwright {

// Whether this process is a rank that mpirun started, and of how many (1 if it isn't). Needs no MPI_Init.
bool is_started_rank();
int started_ranks();

// Throws InputError if mpirun started another number of ranks than `plan` ("2x2x2 plan ...", for the message)
// has. Precondition: is_started_rank().
void expect_started_ranks(int needed, const std::string& plan);

// The command line that runs `command` on `ranks` ranks of this machine. `cores`: one for each rank, to which it binds
// itself (executor/launch/resources.h), busy waiting; or none: then ranks are unbound, and yield while they wait. One OpenMP
// thread a rank.
std::vector<std::string> mpirun_command(int ranks, const std::vector<Core>& cores,
                                        const std::vector<std::string>& command);

// Runs `command` on `ranks` ranks and waits. Each rank gets a core if so many are available, unclaimed by other runs (said
// on stderr if not) and no quota shares them out. Output and input are this process's. Returns the exit code: of
// the first rank that ended with another than 0, or 128 + the signal that ended one (said on stderr). Ranks
// die with this process. Throws InputError if mpirun is not installed, and OutputError, when they are ended, if their output
// can't be written.
int run_ranks(int ranks, const std::vector<std::string>& command);

// Command line of this process, for run_ranks(): the running executable, whatever argv[0] says, and
// argv[1..].
std::vector<std::string> own_command(int argc, const char* const* argv);

}  // namespace meshwright
