// A plain JSON of ours in which any decoder that our modules can express can be said; configs/schema/decoder.schema.json is its
// JSON Schema and describes every key. The smallest one:
//
//   {"kind": "decoder", "width": 256, "vocabulary": 2048, "layers": 6,
//    "attention": {"kind": "multi_head", "heads": 4, "rope": {}},
//    "feed_forward": {"hidden": 1024}}
#pragma once

#include <string>

#include "model/input/json_reader.h"
#include "model/spec.h"

namespace meshwright {

// Whether the document says that it is one: kind = "decoder".
bool is_decoder(const Json& root);

// Strict: every key is known, or all that is wrong is thrown at once as an InputError. `name` becomes the model's. A key
// "training" is not looked at.
ModelSpec read_decoder(const JsonDocument& document, const std::string& name);

}  // namespace meshwright
