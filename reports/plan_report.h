// One plan on one machine: what a step takes, where its time goes, what fills the memory, what is sent.
#pragma once

#include <string>

#include "model/input/json_reader.h"
#include "planner/evaluate.h"

namespace meshwright {

struct PlanHeading {
  std::string config, system;  // names
  Bytes usable_memory;         // of one device
};

// `prediction`: of `result`, one rank per stage, with timelines for the table of where the time goes (left out otherwise).
// No line is wider than `columns`, where that is 40 or more.
std::string plan_report(const PlanResult& result, const Prediction& prediction, const PlanHeading& heading,
                        int columns);

// The figures of the plan (reports/json_report.h), and stages: first_layer, layers, compute_s, exposed_comm_s, bubble_s,
// executed_flops, peak_bytes, memory_bytes by class, sent_bytes by operation and group, all of one device; and
// predicted: the totals of the step (reports/step_totals.h).
OrderedJson plan_json(const PlanResult& result, const Prediction& prediction, const PlanHeading& heading);

}  // namespace meshwright
