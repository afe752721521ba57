// Data on stdout, known to have arrived: a full disk loses no line in silence.
#pragma once

#include <stdexcept>
#include <string_view>

namespace meshwright {

// stdout did not take what it should.
class OutputError : public std::runtime_error {
 public:
  explicit OutputError(int code);  // of errno.h
  int code() const { return code_; }

 private:
  int code_;
};

// All of the text, at once, past any buffer: whoever mixes it with std::cout or printf gets the order wrong. Throws
// OutputError.
void print(std::string_view text);

// Where stdin, stdout or stderr are closed, no file that is opened later gets their number, and what is meant for them. Call it
// first of all.
void keep_standard_streams();

// Closes stdout, as some file systems only then say that they have no room. Throws OutputError. Nothing can be printed after.
void close_output();

}  // namespace meshwright
