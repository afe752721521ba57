#include "executor/launch/output.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <array>
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

std::optional<OutputError> relay_output(int from, const std::function<void()>& on_loss) {
  std::optional<OutputError> lost;
  std::array<char, 1 << 16> bytes;
  while (true) {
    const ssize_t n = read(from, bytes.data(), bytes.size());
    if (n == 0 || (n < 0 && errno != EINTR)) return lost;
    if (n < 0 || lost) continue;
    try {
      print({bytes.data(), static_cast<std::size_t>(n)});
    } catch (const OutputError& error) {
      lost = error;
      on_loss();
    }
  }
}

}  // namespace meshwright
