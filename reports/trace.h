// A step as a Chrome Trace Event file, for ui.perfetto.dev and chrome://tracing. One process a rank, one thread a stream.
// Format: docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
// Not for: more than one step, or millions of events (viewers give up near 0.5 GB).
#pragma once

#include <cstdint>
#include <filesystem>
#include <iosfwd>
#include <string>

#include "model/program/mesh.h"
#include "model/program/step_report.h"

namespace meshwright {

struct TraceOptions {
  std::string title;                // "moe1B on v4:2x4x4, 8x2x2,..., simulated"
  MeshShape mesh;                   // numbers the ranks
  bool one_rank_per_stage = false;  // each rank of the report stands for all of its stage
  int most_ranks = 64;
  std::int64_t most_events = 200'000;  // ranks that would pass it are left out, whole
};

struct TraceSize {
  int ranks = 0, ranks_left_out = 0;
  std::int64_t events = 0;  // operations and arrows
};

// Writes the timelines of `report`: an event per operation (ts and dur in microseconds, whole nanoseconds), a name per
// process and thread, and an arrow from each send to its receive, matched in order along pp.
// Events of a thread follow one another: each is at least 1 ns long, and begins no earlier than the one before it ends.
// Asserts that the report's intervals on a stream do not overlap by more than 1 ns, and that sends meet their receives.
TraceSize write_trace(std::ostream& out, const StepReport& report, const TraceOptions& options);

// The same into a file, compressed if its name ends in .gz. Throws InputError (source "--trace") if it can't be written.
TraceSize write_trace_file(const std::filesystem::path& file, const StepReport& report, const TraceOptions& options);

}  // namespace meshwright
