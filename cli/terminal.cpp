#include "cli/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <string_view>

namespace meshwright {
namespace {

int window_columns(int stream) {  // 0: it is no window
  winsize window{};
  return ioctl(stream, TIOCGWINSZ, &window) == 0 ? window.ws_col : 0;
}

}  // namespace

int columns(int stream) {
  if (const char* text = std::getenv("COLUMNS")) {
    const std::string_view digits = text;
    int count = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), count);
    if (error == std::errc() && end == digits.data() + digits.size() && count > 0) return count;
  }
  const int window = window_columns(stream);
  return window > 0 ? window : 80;
}

int overwritable_columns(int stream) {
  const int window = window_columns(stream), wanted = columns(stream);
  return (window > 0 ? std::min(window, wanted) : wanted) - 1;
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
