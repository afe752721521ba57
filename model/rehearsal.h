// A small likeness of a training job: the same layers, heads and experts, so that any plan of the job is a plan of it,
// with narrow matrices, short sequences and one sequence per microbatch. What runs is the same program: every operation,
// collective and slot, on smaller tensors.
#pragma once

#include <vector>

#include "model/lowering/lower.h"

namespace meshwright {

struct Rehearsal {
  ModelSpec model;
  TrainingShape shape;
  std::vector<int> stage_layers;  // the cut of the full-size job
};

// Of the job's width: 4 channels a head, latents of 8, ropes of 4; vocabulary at most 512; 8 tokens per tp rank, at least
// 16; f32. Precondition: the plan is legal for the job.
Rehearsal rehearse(const ModelSpec& model, const TrainingShape& shape, const Plan& plan);

}  // namespace meshwright
