// What a whole step costs, summed over ranks: the figures in which prediction and execution are compared.
#pragma once

#include <cstdint>
#include <string>

#include "model/input/json_reader.h"
#include "model/program/mesh.h"
#include "model/program/step_report.h"

namespace meshwright {

struct StepTotals {
  Seconds step_time;
  Seconds compute, exposed_comm, bubble;  // of a rank, means over all
  double flops = 0;                       // of all ranks
  Bytes peak_bytes;                       // live at a time, on the rank that holds the most (RankReport::live)
  Bytes arena_bytes;                      // on the rank that needs the most: its size, or the end of what was touched
  Bytes outside_bytes;                    // beside the arena, on the rank that holds the most; 0 in a prediction
  Traffic traffic;                        // of all ranks: bytes sent by operation and group

  bool operator==(const StepTotals&) const = default;
};

// Of a report of every rank, or of one rank per stage, which counts for all `mesh.dp * mesh.tp` of its stage.
StepTotals totals(const StepReport& report, const MeshShape& mesh);

// step_time_s, compute_s, exposed_comm_s, bubble_s, flops, peak_bytes, arena_bytes, bytes: {"all-gather over tp": n, ...}.
OrderedJson to_json(const StepTotals& totals);

// Predicted against counted: a line for FLOPs, live bytes, arena bytes and each collective and group, and "equal", or the
// difference. Arena bytes are its size against the highest address that was touched. What is held beside the arena is
// only counted.
// Times, of the step and of what its ranks do on average, are compared by their ratio, or left out where they are of
// different machines. No line is wider than `columns`, where that is 40 or more.
enum class Times : std::uint8_t { kCompare, kLeaveOut };
std::string comparison_report(const StepTotals& predicted, const StepTotals& counted, int columns,
                              Times times = Times::kCompare);
// Whether all but the times, and what is held beside the arena, is equal.
bool counts_equal(const StepTotals& predicted, const StepTotals& counted);

}  // namespace meshwright
