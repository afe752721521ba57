// The terminal that a person looks at.
#pragma once

namespace meshwright {

// Columns that output to this stream (STDOUT_FILENO, STDERR_FILENO) has: $COLUMNS where it is a positive number, else the
// window's width, else 80.
int columns(int stream);

// Columns for a line that is overwritten, which must never wrap: the fewer of columns() and the window's width, as COLUMNS
// may be of before the window was made smaller, less the last column, as some terminals wrap when it is written.
int overwritable_columns(int stream);

// Whether colours and lines that overwrite themselves are wanted there: on a terminal that is not "dumb", unless NO_COLOR
// is set to anything but the empty string (https://no-color.org).
bool is_interactive(int stream);
bool wants_colour(int stream);

}  // namespace meshwright
