#include "executor/launch/output.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

namespace meshwright {

OutputError::OutputError(int code)
    : std::runtime_error(std::string("stdout: ") + std::strerror(code) + ": what was printed is not complete"),
      code_(code) {}

void print(std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = write(STDOUT_FILENO, text.data(), text.size());
    if (n >= 0) {
      text.remove_prefix(static_cast<std::size_t>(n));
    } else if (errno == EAGAIN) {  // made non-blocking by someone who shares it
      pollfd room{STDOUT_FILENO, POLLOUT, 0};
      poll(&room, 1, -1);
    } else if (errno != EINTR) {
      throw OutputError(errno);
    }
  }
}

void keep_standard_streams() {
  int descriptor = 0;
  do {
    descriptor = open("/dev/null", O_RDONLY);  // so that writing to it still fails
  } while (descriptor >= 0 && descriptor <= STDERR_FILENO);
  if (descriptor >= 0) close(descriptor);
}

void close_output() {
  if (close(STDOUT_FILENO) != 0 && errno != EBADF && errno != EINTR) throw OutputError(errno);
}

}  // namespace meshwright
