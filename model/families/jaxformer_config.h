// Training configurations in JAXformer's schema (divyamakkar0/Jaxformer at 4a0d649), read strictly: every key is there, none is
// unknown, each value is possible, or all that is wrong is thrown at once as an InputError.
#pragma once

#include "model/config.h"
#include "model/input/json_reader.h"

namespace meshwright {

TrainingConfig read_jaxformer(const JsonDocument& document);

}  // namespace meshwright
