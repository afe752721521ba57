// A model's own file, and what is trained with it: a Hugging Face config.json as published, or a decoder in our words
// (decoder.h), beside which an object "training" may say
//
//   batch          sequences of a step, whatever the mesh                                          8
//   tokens         of a sequence                                                                   1,024, or what the model allows
//   steps                                                                                          1,000
//   dtype          "float32", "bfloat16" or "float16" of activations and products                  the model's, else "float32"
//   lr             {max_lr, min_lr, end_lr, warmup_steps, end_steps}, as JAXformer's schema has it 3e-4, 0, a tenth, a tenth, steps
//   grad_clip_norm largest norm of the gradients; 0: any                                           1
//   adam           {beta1, beta2, epsilon, weight_decay}                                           0.9, 0.95, 1e-8, 0.1
//   balance_weight of the balance loss                                                             the model's
//   balance        its tokens: "sequence", each by itself; "layer", a layer's of the step; "pooled", all layers' together,
//                  as Hugging Face has it. The last two limit microbatches and schedule (lower.h)  "sequence"
//   seed                                                                                           0
//
//   name           how the run is called                                                            the file's name
#pragma once

#include "model/config.h"
#include "model/input/json_reader.h"

namespace meshwright {

// Whether this is a model's own file: JAXformer's schema begins with model_config.
bool is_model_file(const Json& root);

// Throws InputError with all that is wrong.
TrainingConfig read_model_file(const JsonDocument& document);

}  // namespace meshwright
