// Cores and memory that this process may use: those of the machine, less what its control groups (a container's limits,
// a batch job's) and its affinity mask take away; and claims on cores, so that two runs do not bind to the same ones.
//
// `root` is the folder that stands for /, so that tests can lay out a machine: read below it are proc/self/cgroup,
// proc/self/mountinfo, the control groups that these name (versions 1 and 2), and sys/devices/system/cpu.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace meshwright {

// A physical core, with those of its hardware threads that may be used (numbers of the kernel, ascending).
struct Core {
  int package = 0, core = 0;
  std::vector<int> cpus;

  bool operator==(const Core&) const = default;
};

// `cpus` by physical core, in order of their first. Where the kernel does not say, each is a core of its own (package -1).
std::vector<Core> physical_cores(const std::vector<int>& cpus, const std::filesystem::path& root = "/");

// Processor time that the control groups allow, in cores: the smallest quota of this process's group and of those above
// it (cpu.max; cpu.cfs_quota_us over cpu.cfs_period_us). Nothing if there is no quota.
std::optional<double> cpu_quota(const std::filesystem::path& root = "/");

// Bytes that they allow, likewise (memory.max; memory.limit_in_bytes).
std::optional<std::int64_t> memory_limit(const std::filesystem::path& root = "/");

// The physical cores of this process's affinity mask.
std::vector<Core> own_cores();

// Ranks that can compute all the time: the physical cores of `own_cores()`, or the quota rounded down where that is less;
// at least 1. A quota counts time and takes no core away from the mask: any of them may be used.
int available_cores();
int available_cores(std::size_t physical, std::optional<double> quota);

// Bytes of memory for all processes of this container together: the machine's, or the limit if that is less.
std::int64_t available_memory();

// Holds cores for one run among the runs of all users of this machine (more exactly: of this network namespace, as a
// claim is a name of an abstract socket: it leaves no file, and is gone with the process, however that ends). Other
// programs know nothing of it.
class CoreClaim {
 public:
  // The first `count` of `cores` that nobody has claimed; none at all if there are fewer. `scope`: claims of other scopes
  // are not seen, for tests.
  CoreClaim(const std::vector<Core>& cores, int count, const std::string& scope = "meshwright");
  ~CoreClaim();
  CoreClaim(const CoreClaim&) = delete;
  CoreClaim& operator=(const CoreClaim&) = delete;

  const std::vector<Core>& cores() const { return cores_; }

 private:
  void release();

  std::vector<Core> cores_;
  std::vector<int> sockets_;
};

// How a launcher tells its ranks their cores: "0,4:1,5", the hardware threads of each core, in the order of local ranks.
constexpr const char* kCoresVariable = "MESHWRIGHT_CORES";
std::string cores_text(const std::vector<Core>& cores);

// Binds this process to the core that the launcher claimed for it (kCoresVariable, and its local rank from mpirun).
// Without these, or if the kernel refuses, nothing is changed. Call it before MPI_Init, whose threads and memory follow.
void bind_to_claimed_core();

}  // namespace meshwright
