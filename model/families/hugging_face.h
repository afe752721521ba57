// Models from the config.json that Hugging Face's transformers publishes, in the form of version 4 or 5, and miniGPT from its
// own few words. What a missing key means follows that library's classes, family by family.
//
// Families: llama, qwen3, olmo2, gemma, phi, mixtral, qwen3_moe, deepseek_v2, deepseek_v3, gpt2; minigpt (the JAX tutorial's).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/input/json_reader.h"
#include "model/spec.h"

namespace meshwright {

struct HuggingFaceModel {
  ModelSpec model;
  std::string family;              // model_type, or "minigpt"; what weight_map() wants (model/families/weights.h)
  std::string dtype = "float32";   // of the published weights: "float32", "bfloat16" or "float16"
  std::int64_t positions = 0;      // the longest sequence that the file promises; 0: it doesn't say
  std::vector<std::string> notes;  // for the user: keys that are not read, and what that means
};

// Whether the document is such a file at all: it has a model_type, or miniGPT's keys.
bool is_hugging_face(const Json& root);

// `name` becomes the model's. A key "training" is not looked at. Keys that say nothing about the model are skipped, and those
// that nobody here knows become notes, as published files carry many. Throws InputError with all that is wrong, also with what
// our modules can't express.
HuggingFaceModel read_hugging_face(const JsonDocument& document, const std::string& name);

}  // namespace meshwright
