// A configuration at reduced size, to execute a plan's program on fewer machines than it was made for.
#pragma once

#include "model/config.h"
#include "model/plan.h"

namespace meshwright {

// Smaller: width (4 channels a head), latents, rotary width, vocabulary (512), sequence length (32, or what tp and the
// experts' capacity need), sequences of a microbatch (1). The same: layers, heads, experts, choices, and so every operation
// and collective of `plan`.
TrainingConfig rehearsal(const TrainingConfig& config, const Plan& plan);

}  // namespace meshwright
