// Reports as JSON, for machines. Names and units are DESIGN's, "Figures, defined once".
#pragma once

#include "model/input/json_reader.h"
#include "planner/evaluate.h"

namespace meshwright {

// dp, pp, tp, fsdp, microbatches, schedule, recompute, runnable, not_runnable, step_time_s, tokens_per_s, mfu, hfu,
// peak_memory_bytes, exposed_comm_s, bubble_fraction, model_flops, executed_flops, ...: the fields of visit_fields(), then
// plan (its text, as --plan takes it) and id (plan_id(), which --plan takes, too). Schedules and recomputation by name.
OrderedJson to_json(const PlanResult& result);

}  // namespace meshwright
