// Ctrl-C while this process itself is at work. (Ranks that it started are ended by run_ranks().)
#pragma once

namespace meshwright {

// For its lifetime, the first SIGINT or SIGTERM is only noted: the work that is under way ends early, with what it has.
// The second one ends the process. A signal that was ignored stays so. One at a time.
class Interruption {
 public:
  Interruption();
  ~Interruption();
  Interruption(const Interruption&) = delete;
  Interruption& operator=(const Interruption&) = delete;
};

// The signal that was noted last, by this Interruption or an earlier one; 0: none.
int interrupting_signal();

// Thrown where the work can't go on without what was interrupted. What is known has been said. The exit code is
// 128 + the signal.
struct Interrupted {
  int code;
};

}  // namespace meshwright
