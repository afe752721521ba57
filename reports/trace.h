// A step as a Chrome Trace Event file, for ui.perfetto.dev and chrome://tracing. One process a rank, one thread a stream.
// Format: docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
// Not for: more than one step, or millions of events (viewers give up near 0.5 GB).
#pragma once

#include <cstdint>
#include <filesystem>
#include <iosfwd>
#include <string>

#include "model/program/program.h"
#include "model/program/step_report.h"

namespace meshwright {

struct TraceOptions {
  std::string title;                // "moe1B on v4:2x4x4, 8x2x2,..., simulated"
  bool one_rank_per_stage = false;  // each rank of the report stands for all of its stage
  int most_ranks = 64;
  std::int64_t most_operations = 200'000;  // ranks that would pass it are left out, whole
};

struct TraceSize {
  int ranks = 0, ranks_left_out = 0;
  std::int64_t events = 0;  // slices, counters and arrows
};

// Writes the timelines of `report`, a step of `set`. Times are in microseconds, whole nanoseconds.
//   Slices     Each operation is one, named by its layer and what it works with: "L28 ffn.0" multiplies by that weight,
//              "L28 ffn.0 dx" and "L28 ffn.0 dW" give the gradients of its input and of itself, "L28 attention" and
//              "L28 all-gather h" name an operation and a tensor. args: op, piece, phase, and where there are any flops,
//              bytes_sent, weight (the parameter's name), unit (the parameters that a collective moves).
//              On the compute stream they lie within slices of their layer, and those within slices of their phase:
//              "forward m3", "backward m3", "update". A thread's slices nest: none overlaps another in part. An operation
//              is at least 1 ns long, and begins no earlier than the one before it on its stream ends.
//   Waits      "bubble" and "exposed communication" on the compute stream, from the report's waits (a measured report has
//              none: sim/simulate.h needs to know when other stages are ready).
//   Counters   "memory: activations" in bytes, of each MemoryClass: parameters, gradients, optimizer and data are there all
//              the time, of the others only what is written and still to be read counts.
//              "link use: tp" in bytes/s sent by this rank, of each axis, while collectives and messages run.
//   Arrows     from each send to its receive, matched in order along pp.
// Asserts that the report's intervals on a stream do not overlap by more than 1 ns, and that sends meet their receives.
TraceSize write_trace(std::ostream& out, const StepReport& report, const ProgramSet& set, const TraceOptions& options);

// The same into a file, compressed if its name ends in .gz. Throws InputError (source "--trace") if it can't be written.
TraceSize write_trace_file(const std::filesystem::path& file, const StepReport& report, const ProgramSet& set,
                           const TraceOptions& options);

}  // namespace meshwright
