#include "model/program/mesh.h"

#include <fmt/format.h>

namespace meshwright {

std::string to_string(const MeshShape& mesh) { return fmt::format("{}x{}x{}", mesh.dp, mesh.pp, mesh.tp); }

}  // namespace meshwright
