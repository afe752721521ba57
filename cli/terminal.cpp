#include "cli/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <string_view>

namespace meshwright {

int columns(int stream) {
  if (const char* text = std::getenv("COLUMNS")) {
    const std::string_view digits = text;
    int count = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), count);
    if (error == std::errc() && end == digits.data() + digits.size() && count > 0) return count;
  }
  winsize window{};
  if (ioctl(stream, TIOCGWINSZ, &window) == 0 && window.ws_col > 0) return window.ws_col;
  return 80;
}

bool is_interactive(int stream) {
  const char* terminal = std::getenv("TERM");
  return isatty(stream) != 0 && (!terminal || std::string_view(terminal) != "dumb");
}

bool wants_colour(int stream) {
  const char* refused = std::getenv("NO_COLOR");
  return is_interactive(stream) && (!refused || !*refused);
}

}  // namespace meshwright
