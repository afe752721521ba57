#include "executor/launch/resources.h"

#include <sched.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <string_view>
#include <utility>

namespace meshwright {
namespace {

namespace fs = std::filesystem;

// A mounted hierarchy of control groups that this process is a member of.
struct Hierarchy {
  fs::path mount;  // where it is mounted, below `root`
  fs::path group;  // this process's folder in it, `mount` or below
  bool unified = false;
};

std::vector<std::string> words(const std::string& text, char separator) {
  std::vector<std::string> all;
  std::istringstream in(text);
  for (std::string word; std::getline(in, word, separator);) all.push_back(word);
  return all;
}

bool lists(const std::string& text, std::string_view word) {
  const std::vector<std::string> all = words(text, ',');
  return std::find(all.begin(), all.end(), word) != all.end();
}

// This process's group in the hierarchy of `controller` (version 1), or in the unified one ("").
std::optional<std::string> group_of(const std::string& controller, const fs::path& root) {
  std::ifstream file(root / "proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {  // number:controllers:path
    const std::size_t first = line.find(':'), second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (controller.empty() ? line.starts_with("0::") : lists(controllers, controller)) return line.substr(second + 1);
  }
  return std::nullopt;
}

// Hierarchies that can limit what `controller` controls: its own of version 1, and the unified one.
std::vector<Hierarchy> hierarchies(const std::string& controller, const fs::path& root) {
  std::vector<Hierarchy> all;
  std::ifstream mounts(root / "proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    // id parent device root mount options ... - type source options
    const std::size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    const std::vector<std::string> before = words(line.substr(0, dash), ' '), after = words(line.substr(dash + 3), ' ');
    if (before.size() < 5 || after.size() < 3) continue;
    const bool unified = after[0] == "cgroup2";
    if (!unified && (after[0] != "cgroup" || !lists(after[2], controller))) continue;
    const auto path = group_of(unified ? "" : controller, root);
    if (!path) continue;
    Hierarchy h{.mount = root / fs::path(before[4]).relative_path(), .unified = unified};
    // The mount shows the part of the hierarchy at and below before[3]; the process may, in a container, lie elsewhere.
    const fs::path within = fs::path(*path).lexically_relative(before[3]);
    h.group = h.mount;
    std::error_code none;
    if (!within.empty() && *within.begin() != ".." && fs::is_directory(h.mount / within, none))
      h.group = (h.mount / within).lexically_normal();
    all.push_back(std::move(h));
  }
  return all;
}

std::optional<std::string> first_line(const fs::path& file) {
  std::ifstream in(file);
  std::string line;
  if (!std::getline(in, line)) return std::nullopt;
  return line;
}

std::optional<double> number(const std::optional<std::string>& text) {
  if (!text) return std::nullopt;
  char* end = nullptr;
  const double value = std::strtod(text->c_str(), &end);
  return end == text->c_str() || !std::isfinite(value) ? std::nullopt : std::optional(value);
}

// The smallest limit(folder) of the process's group and those above it, in all hierarchies.
template <class Limit>
std::optional<double> smallest(const std::string& controller, const fs::path& root, Limit limit) {
  std::optional<double> least;
  for (const Hierarchy& h : hierarchies(controller, root)) {
    fs::path at = h.group;
    while (true) {
      if (const std::optional<double> found = limit(at, h.unified); found && *found > 0)
        least = least ? std::min(*least, *found) : *found;
      if (at == h.mount || !at.has_parent_path() || at.parent_path() == at) break;
      at = at.parent_path();
    }
  }
  return least;
}

std::vector<int> affinity() {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  std::vector<int> all;
  if (sched_getaffinity(0, sizeof cpus, &cpus) != 0) return all;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &cpus)) all.push_back(cpu);
  return all;
}

}  // namespace

std::vector<Core> physical_cores(const std::vector<int>& cpus, const fs::path& root) {
  std::vector<Core> cores;
  for (const int cpu : cpus) {
    const fs::path topology = root / "sys/devices/system/cpu" / ("cpu" + std::to_string(cpu)) / "topology";
    int package = 0, core = 0;
    if (!(std::ifstream(topology / "physical_package_id") >> package && std::ifstream(topology / "core_id") >> core)) {
      package = -1;
      core = cpu;
    }
    const auto known =
        std::find_if(cores.begin(), cores.end(), [&](const Core& c) { return c.package == package && c.core == core; });
    (known == cores.end() ? cores.emplace_back(Core{package, core, {}}) : *known).cpus.push_back(cpu);
  }
  return cores;
}

std::optional<double> cpu_quota(const fs::path& root) {
  return smallest("cpu", root, [](const fs::path& group, bool unified) -> std::optional<double> {
    if (!unified) {
      const auto quota = number(first_line(group / "cpu.cfs_quota_us")),
                 period = number(first_line(group / "cpu.cfs_period_us"));
      return quota && *quota > 0 && period && *period > 0 ? std::optional(*quota / *period) : std::nullopt;  // -1: none
    }
    const auto line = first_line(group / "cpu.max");  // "max 100000", "150000 100000"
    const std::vector<std::string> both = line ? words(*line, ' ') : std::vector<std::string>{};
    const auto quota = both.empty() ? std::nullopt : number(both[0]);
    const auto period = both.size() > 1 ? number(both[1]) : std::optional(1e5);
    return quota && period && *period > 0 ? std::optional(*quota / *period) : std::nullopt;
  });
}

std::optional<std::int64_t> memory_limit(const fs::path& root) {
  constexpr double kNoLimit = 9e18;  // version 1 says "none" by the largest whole number of pages
  const auto bytes = smallest("memory", root, [](const fs::path& group, bool unified) -> std::optional<double> {
    const auto limit = number(first_line(group / (unified ? "memory.max" : "memory.limit_in_bytes")));
    return limit && *limit < kNoLimit ? limit : std::nullopt;
  });
  return bytes ? std::optional(static_cast<std::int64_t>(*bytes)) : std::nullopt;
}

std::vector<Core> own_cores() { return physical_cores(affinity()); }

int available_cores(std::size_t physical, std::optional<double> quota) {
  // Not rounded up: of two ranks on one and a half cores each waits for the other half of the time.
  const double cores = std::min(static_cast<double>(physical), quota ? std::floor(*quota) : 1e9);
  return std::max(1, static_cast<int>(cores));
}
int available_cores() { return available_cores(own_cores().size(), cpu_quota()); }

std::int64_t available_memory() {
  const std::int64_t machine = std::int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE);
  return std::min(machine, memory_limit().value_or(machine));
}

CoreClaim::CoreClaim(const std::vector<Core>& cores, int count, const std::string& scope) {
  for (const Core& core : cores) {
    if (static_cast<int>(cores_.size()) == count) break;
    // A name that begins with a zero byte is abstract: the kernel gives it to one socket only, and frees it with it.
    const std::string name = scope + " core " + std::to_string(core.package) + "." + std::to_string(core.core);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::size_t length = std::min(name.size(), sizeof address.sun_path - 1);
    std::memcpy(address.sun_path + 1, name.data(), length);
    const int s = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (s < 0) break;
    if (bind(s, reinterpret_cast<const sockaddr*>(&address),
             static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length)) != 0) {
      close(s);
      continue;
    }
    sockets_.push_back(s);
    cores_.push_back(core);
  }
  if (static_cast<int>(cores_.size()) < count) release();
}

CoreClaim::~CoreClaim() { release(); }

void CoreClaim::release() {
  for (const int s : sockets_) close(s);
  sockets_.clear();
  cores_.clear();
}

std::string cores_text(const std::vector<Core>& cores) {
  std::string text;
  for (const Core& core : cores) {
    if (!text.empty()) text += ':';
    for (std::size_t i = 0; i < core.cpus.size(); ++i) text += (i > 0 ? "," : "") + std::to_string(core.cpus[i]);
  }
  return text;
}

void bind_to_claimed_core() {
  const char* cores = std::getenv(kCoresVariable);
  const char* rank = std::getenv("OMPI_COMM_WORLD_LOCAL_RANK");
  if (!cores || !rank) return;
  const std::vector<std::string> of_rank = words(cores, ':');
  const auto r = static_cast<std::size_t>(std::strtoul(rank, nullptr, 10));
  if (r >= of_rank.size()) return;
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  for (const std::string& cpu : words(of_rank[r], ','))
    if (const auto n = std::strtoul(cpu.c_str(), nullptr, 10); n < CPU_SETSIZE) CPU_SET(n, &cpus);
  if (CPU_COUNT(&cpus) > 0) sched_setaffinity(0, sizeof cpus, &cpus);
}

}  // namespace meshwright
