// Parameters and FLOPs of a model by module and by kind of layer, as text and as JSON.
#pragma once

#include <cstdint>
#include <string>

#include "model/input/json_reader.h"
#include "model/spec.h"

namespace meshwright {

// `tokens`: of a sequence; `sequences`: of a step. FLOPs are of the forward pass of one sequence, and model_flops of a step.
// No line of the text is wider than `columns`, where that is 40 or more.
std::string params_report(const ModelSpec& model, std::int64_t tokens, std::int64_t sequences, int columns);

// total_parameters, active_parameters (DESIGN's meaning), model_flops (of a step), forward_flops_per_sequence,
// parameters (by module), layers (a list of kinds: count, parameters and forward FLOPs by module).
OrderedJson params_json(const ModelSpec& model, std::int64_t tokens, std::int64_t sequences);

}  // namespace meshwright
