#include "executor/launch/resources.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <fstream>

namespace meshwright {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// A machine's /proc, /sys and control groups in a folder that is gone afterwards.
class Tree {
 public:
  Tree() {
    std::string name = (std::filesystem::temp_directory_path() / "meshwright_resources_XXXXXX").string();
    root_ = mkdtemp(name.data());
  }
  ~Tree() { std::filesystem::remove_all(root_); }
  Tree(const Tree&) = delete;
  Tree& operator=(const Tree&) = delete;

  Tree& with(const std::string& file, const std::string& text) {
    std::filesystem::create_directories((root_ / file).parent_path());
    std::ofstream(root_ / file) << text;
    return *this;
  }
  // Where hierarchies are mounted, and which part of them (its root) the mount shows.
  Tree& mounts_unified(const std::string& at, const std::string& shown = "/") {
    mounts_ += "30 24 0:26 " + shown + " " + at + " rw,nosuid - cgroup2 cgroup2 rw\n";
    return with("proc/self/mountinfo", mounts_);
  }
  Tree& mounts(const std::string& controllers, const std::string& at, const std::string& shown = "/") {
    mounts_ += "31 24 0:27 " + shown + " " + at + " rw,nosuid shared:9 - cgroup cgroup rw," + controllers + "\n";
    return with("proc/self/mountinfo", mounts_);
  }
  const std::filesystem::path& root() const { return root_; }

 private:
  std::filesystem::path root_;
  std::string mounts_ = "23 1 0:5 / / rw - ext4 /dev/sda1 rw\n";
};

TEST(Resources, of_a_container_of_version_2_are_its_quota_and_limit) {
  Tree tree;
  tree.mounts_unified("/sys/fs/cgroup").with("proc/self/cgroup", "0::/\n");
  tree.with("sys/fs/cgroup/cpu.max", "150000 100000\n").with("sys/fs/cgroup/memory.max", "2147483648\n");
  EXPECT_EQ(cpu_quota(tree.root()), 1.5);
  EXPECT_EQ(memory_limit(tree.root()), std::int64_t{2} << 30);
}

TEST(Resources, the_smallest_limit_of_a_group_and_those_above_it_counts) {
  Tree tree;
  tree.mounts_unified("/sys/fs/cgroup").with("proc/self/cgroup", "0::/batch/job7/step0\n");
  tree.with("sys/fs/cgroup/batch/cpu.max", "max 100000\n").with("sys/fs/cgroup/batch/memory.max", "8000000000\n");
  tree.with("sys/fs/cgroup/batch/job7/cpu.max", "400000 100000\n").with("sys/fs/cgroup/batch/job7/memory.max", "max\n");
  tree.with("sys/fs/cgroup/batch/job7/step0/cpu.max", "1600000 200000\n")
      .with("sys/fs/cgroup/batch/job7/step0/memory.max", "9000000000\n");
  tree.with("sys/fs/cgroup/other/cpu.max", "1000 100000\n");  // of nobody we are below
  EXPECT_EQ(cpu_quota(tree.root()), 4);
  EXPECT_EQ(memory_limit(tree.root()), 8'000'000'000);
}

TEST(Resources, of_version_1_are_found_in_the_hierarchy_of_their_controller) {
  Tree tree;
  tree.mounts("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct").mounts("memory", "/sys/fs/cgroup/memory");
  tree.with("proc/self/cgroup", "9:memory:/user/me\n4:cpu,cpuacct:/user\n3:cpuset:/elsewhere\n");
  tree.with("sys/fs/cgroup/cpu,cpuacct/user/cpu.cfs_quota_us", "250000\n")
      .with("sys/fs/cgroup/cpu,cpuacct/user/cpu.cfs_period_us", "50000\n");
  tree.with("sys/fs/cgroup/memory/user/memory.limit_in_bytes", "1000000\n")
      .with("sys/fs/cgroup/memory/user/me/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(cpu_quota(tree.root()), 5);
  EXPECT_EQ(memory_limit(tree.root()), 1'000'000);
}

// Docker without a namespace of control groups: the path names the machine's hierarchy, the mount shows the container's.
TEST(Resources, where_only_the_containers_part_of_a_hierarchy_is_mounted_its_root_is_the_group) {
  Tree tree;
  tree.mounts("cpu", "/sys/fs/cgroup/cpu", "/docker/4f2a").mounts("memory", "/sys/fs/cgroup/memory", "/docker/4f2a");
  tree.with("proc/self/cgroup", "5:memory:/docker/4f2a\n2:cpu:/docker/4f2a/inner\n");
  tree.with("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "300000\n").with("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  tree.with("sys/fs/cgroup/cpu/inner/cpu.cfs_quota_us", "200000\n")
      .with("sys/fs/cgroup/cpu/inner/cpu.cfs_period_us", "100000\n");
  tree.with("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n");
  EXPECT_EQ(cpu_quota(tree.root()), 2);
  EXPECT_EQ(memory_limit(tree.root()), 536870912);
}

TEST(Resources, without_a_limit_or_without_control_groups_there_is_none) {
  Tree none;
  EXPECT_EQ(cpu_quota(none.root()), std::nullopt);
  EXPECT_EQ(memory_limit(none.root()), std::nullopt);
  Tree v2;
  v2.mounts_unified("/sys/fs/cgroup").with("proc/self/cgroup", "0::/a\n");
  v2.with("sys/fs/cgroup/a/cpu.max", "max 100000\n").with("sys/fs/cgroup/a/memory.max", "max\n");
  EXPECT_EQ(cpu_quota(v2.root()), std::nullopt);
  EXPECT_EQ(memory_limit(v2.root()), std::nullopt);
  Tree v1;
  v1.mounts("cpu", "/cg/cpu").mounts("memory", "/cg/memory").with("proc/self/cgroup", "1:cpu:/\n2:memory:/\n");
  v1.with("cg/cpu/cpu.cfs_quota_us", "-1\n").with("cg/cpu/cpu.cfs_period_us", "100000\n");
  v1.with("cg/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(cpu_quota(v1.root()), std::nullopt);
  EXPECT_EQ(memory_limit(v1.root()), std::nullopt);
  Tree broken;
  broken.with("proc/self/mountinfo", "nonsense\n1 2 - cgroup2\n").with("proc/self/cgroup", "::\nx\n0:\n");
  EXPECT_EQ(cpu_quota(broken.root()), std::nullopt);
}

TEST(Resources, a_quota_is_rounded_down_to_whole_cores_and_at_least_one) {
  EXPECT_EQ(available_cores(8, std::nullopt), 8);
  EXPECT_EQ(available_cores(8, 3.99), 3);
  EXPECT_EQ(available_cores(8, 1.5), 1);
  EXPECT_EQ(available_cores(8, 0.2), 1);
  EXPECT_EQ(available_cores(2, 6.0), 2);
  EXPECT_EQ(available_cores(0, std::nullopt), 1);
}

TEST(Resources, hardware_threads_of_one_core_are_one_core) {
  Tree tree;
  for (const auto& [cpu, package, core] : {std::array{0, 0, 0}, {1, 0, 1}, {4, 0, 0}, {5, 0, 1}, {6, 1, 0}}) {
    const std::string folder = "sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    tree.with(folder + "physical_package_id", std::to_string(package) + "\n")
        .with(folder + "core_id", std::to_string(core) + "\n");
  }
  EXPECT_THAT(physical_cores({0, 1, 4, 5, 6, 9}, tree.root()),
              ElementsAre(Core{0, 0, {0, 4}}, Core{0, 1, {1, 5}}, Core{1, 0, {6}}, Core{-1, 9, {9}}));
  EXPECT_EQ(cores_text(physical_cores({0, 1, 4, 6}, tree.root())), "0,4:1:6");
}

TEST(Resources, of_this_process_are_not_more_than_the_machines) {
  EXPECT_GE(available_cores(), 1);
  EXPECT_LE(available_cores(), sysconf(_SC_NPROCESSORS_CONF));
  EXPECT_GT(available_memory(), 1 << 20);
  EXPECT_LE(available_memory(), std::int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE));
}

const std::vector<Core> kThree = {{0, 0, {0, 4}}, {0, 1, {1, 5}}, {0, 2, {2, 6}}};
std::string scope() { return "meshwright test " + std::to_string(getpid()); }

TEST(CoreClaim, is_of_cores_that_nobody_has_and_of_none_if_there_are_too_few) {
  std::optional<CoreClaim> first(std::in_place, kThree, 2, scope());
  EXPECT_THAT(first->cores(), ElementsAre(kThree[0], kThree[1]));
  EXPECT_THAT(CoreClaim(kThree, 2, scope()).cores(), IsEmpty());  // and it keeps nothing:
  const CoreClaim third(kThree, 1, scope());
  EXPECT_THAT(third.cores(), ElementsAre(kThree[2]));
  first.reset();
  EXPECT_THAT(CoreClaim(kThree, 2, scope()).cores(), ElementsAre(kThree[0], kThree[1]));
}

TEST(CoreClaim, is_seen_by_other_processes_and_ends_with_its_own_however_that_ends) {
  const std::string name = scope();
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    const CoreClaim claim(kThree, 3, name);
    const char count = static_cast<char>(claim.cores().size());
    if (write(ready[1], &count, 1) == 1) pause();
    _exit(0);
  }
  char count = 0;
  ASSERT_EQ(read(ready[0], &count, 1), 1);
  EXPECT_EQ(count, 3);
  EXPECT_THAT(CoreClaim(kThree, 1, name).cores(), IsEmpty());
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_EQ(CoreClaim(kThree, 3, name).cores().size(), 3u);
  close(ready[0]);
  close(ready[1]);
}

// Runs in a process of its own, as a binding is for good. Returns its exit code.
template <class Body>
int in_child(Body body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(CoreClaim, a_rank_binds_to_the_core_of_its_place_and_stays_as_it_is_without_one) {
  const std::vector<Core> own = own_cores();
  ASSERT_FALSE(own.empty());
  const auto bound_to = [&](const char* cores, const char* rank) {  // number of processors it may use
    return in_child([&] {
      unsetenv("OMPI_COMM_WORLD_LOCAL_RANK");
      if (cores) setenv(kCoresVariable, cores, 1);
      if (rank) setenv("OMPI_COMM_WORLD_LOCAL_RANK", rank, 1);
      bind_to_claimed_core();
      cpu_set_t cpus;
      sched_getaffinity(0, sizeof cpus, &cpus);
      return CPU_ISSET(own.back().cpus.back(), &cpus) ? CPU_COUNT(&cpus) : 0;
    });
  };
  const int all = in_child([] {
    cpu_set_t cpus;
    sched_getaffinity(0, sizeof cpus, &cpus);
    return CPU_COUNT(&cpus);
  });
  const std::string last = "999999:" + cores_text({own.back()});
  EXPECT_EQ(bound_to(last.c_str(), "1"), static_cast<int>(own.back().cpus.size()));
  EXPECT_EQ(bound_to(last.c_str(), nullptr), all);
  EXPECT_EQ(bound_to(last.c_str(), "2"), all);  // more ranks than cores
  EXPECT_EQ(bound_to("999999", "0"), all);
  EXPECT_EQ(bound_to("", "0"), all);
  EXPECT_EQ(bound_to(nullptr, "0"), all);
}

}  // namespace
}  // namespace meshwright
