// Starting the ranks of a plan. `meshwright run` starts them itself, as the same command under mpirun; under
// a user's own mpirun it is one of them already. No shell is involved.
#pragma once

#include <string>
#include <vector>

#include "executor/launch/resources.h"

namespace meshwright {

// Whether this process is a rank that mpirun started, and of how many (1 if it isn't), as the environment has it: a hint,
// which needs no MPI_Init. MpiSession compares it with the world.
bool is_started_rank();
int started_ranks();

// Throws InputError if the environment says that an mpirun of another MPI, or srun, started this process as one of
// several: each of them would start ranks of its own.
void refuse_foreign_launcher();

// Throws InputError if the world has another number of ranks than `plan` ("2x2x2 plan ...", for the message).
void expect_ranks(int world, int needed, const std::string& plan);

// The command line that runs `command` on `ranks` ranks of this machine. `cores`: one for each rank, to which it binds
// itself (executor/launch/resources.h), busy waiting; or none: then ranks are unbound, and yield while they wait. One OpenMP
// thread a rank. mpirun takes a word ":" for the end of a command, wherever it stands: `command` must have none (checked).
std::vector<std::string> mpirun_command(int ranks, const std::vector<Core>& cores,
                                        const std::vector<std::string>& command);

// Runs `command` on `ranks` ranks and waits. Each rank gets a core if so many are available, unclaimed by other runs (said on
// stderr if not) and no quota shares them out. Their output becomes this process's; they have no input. Ranks die with this
// process. Returns the exit code:
// - of the first rank that ended with another than 0;
// - 128 + the signal that ended a rank, which is named on stderr with its rank, step and operation where the ranks are an
//   MpiSession, and else by its number;
// - 128 + the signal that this process got meanwhile (SIGINT, SIGTERM, SIGQUIT, SIGHUP; unless it ignores it, as under
//   nohup): the ranks are then ended, by SIGTERM, and all that is there a second later by SIGKILL, and what is known of the
//   run is said on stderr. A second signal kills them at once. SIGTSTP stops the ranks, too;
// - 128 + SIGPIPE, in silence, if the reader of this process's output has gone.
// Open MPI's files lie in folders of this run's own, in the temporary folder and in /dev/shm (or where
// OMPI_MCA_btl_vader_backing_directory says), which are removed at the end: only if this process is killed, they stay, empty.
// Throws InputError if mpirun is not installed or no such folder can be made, and OutputError if the output can't be
// written. Before a caller makes anything, it calls refuse_foreign_launcher(): here is not asked again.
int run_ranks(int ranks, const std::vector<std::string>& command);

// Where ranks find the heartbeat page (executor/launch/heartbeat.h) of the process that started them.
constexpr const char* kHeartbeatVariable = "MESHWRIGHT_HEARTBEAT";

// Command line of this process, for run_ranks(): the running executable, whatever argv[0] says, and
// argv[1..].
std::vector<std::string> own_command(int argc, const char* const* argv);

}  // namespace meshwright
