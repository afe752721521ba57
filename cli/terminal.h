// The terminal that a person looks at.
#pragma once

namespace meshwright {

// Columns that output to this stream (STDOUT_FILENO, STDERR_FILENO) has: $COLUMNS where it is a positive number, else the
// window's width, else 80.
int columns(int stream);

// Whether colours and lines that overwrite themselves are wanted there: on a terminal that is not "dumb", unless NO_COLOR
// is set to anything but the empty string (https://no-color.org).
bool is_interactive(int stream);
bool wants_colour(int stream);

}  // namespace meshwright
