#include "cli/interrupt.h"

#include <array>
#include <csignal>
#include <cstddef>

namespace meshwright {
namespace {

constexpr std::array kSignals{SIGINT, SIGTERM};
volatile std::sig_atomic_t noted = 0;
std::array<struct sigaction, kSignals.size()> before;

}  // namespace

Interruption::Interruption() {
  for (std::size_t i = 0; i < kSignals.size(); ++i) {
    struct sigaction note {};
    note.sa_handler = [](int signal) { noted = signal; };
    note.sa_flags = SA_RESETHAND | SA_RESTART;
    sigaction(kSignals[i], &note, &before[i]);
    if (before[i].sa_handler == SIG_IGN) sigaction(kSignals[i], &before[i], nullptr);
  }
}

Interruption::~Interruption() {
  for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &before[i], nullptr);
}

int interrupting_signal() { return noted; }

}  // namespace meshwright
