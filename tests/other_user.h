// Root may read and write everywhere: what others may not is tested by becoming another.
#pragma once

#include <grp.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

namespace meshwright {

constexpr uid_t kUserWithoutAccount = 54321;

// Runs `child` in another process as kUserWithoutAccount. Its exit code; -1 where this process may not become that user (then
// skip the test), or where the child is killed.
inline int as_other_user(const std::function<int()>& child) {
  if (geteuid() != 0) return -1;
  constexpr int kRefused = 99;
  const pid_t pid = fork();
  if (pid == 0) {
    const bool other =
        setgroups(0, nullptr) == 0 && setgid(kUserWithoutAccount) == 0 && setuid(kUserWithoutAccount) == 0;
    _exit(other ? child() : kRefused);
  }
  int status = 0;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) != kRefused ? WEXITSTATUS(status) : -1;
}

}  // namespace meshwright
