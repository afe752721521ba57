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
  double flops = 0;  // of all ranks
  Bytes peak_bytes;  // of the arena, on the rank that needs the most: its size, or the end of what was touched
  Traffic traffic;   // of all ranks: bytes sent by operation and group

  bool operator==(const StepTotals&) const = default;
};

// Of a report of every rank, or of one rank per stage, which counts for all `mesh.dp * mesh.tp` of its stage.
StepTotals totals(const StepReport& report, const MeshShape& mesh);

// step_time_s, flops, peak_bytes, bytes: {"all-gather over tp": n, ...}.
OrderedJson to_json(const StepTotals& totals);

// Predicted against counted: a line for FLOPs, arena bytes and each collective and group, and "equal", or the difference.
// Arena bytes are its size against the highest address that was touched: equal where all of it is used, which does not
// show that so much was alive at any one time.
// Step times are compared by their ratio, or left out where they are of different machines. No line is wider than
// `columns`, where that is 40 or more.
enum class Times : std::uint8_t { kCompare, kLeaveOut };
std::string comparison_report(const StepTotals& predicted, const StepTotals& counted, int columns,
                              Times times = Times::kCompare);
// Whether all but the step time is equal.
bool counts_equal(const StepTotals& predicted, const StepTotals& counted);

}  // namespace meshwright
