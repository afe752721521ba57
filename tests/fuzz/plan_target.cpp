#include "model/plan.h"
#include "tests/fuzz/support.h"

namespace meshwright::fuzz {

// A plan that is read has one text, which reads as the same plan, and one short name.
void plan(std::string_view input) {
  Plan read;
  if (!accepts([&] { read = parse_plan(input); })) return;
  const std::string text = to_text(read);
  Plan again;
  require(accepts([&] { again = parse_plan(text); }), "its own text is refused: {}", text);
  require(again == read, "its own text is another plan: {}", text);
  require(to_text(again) == text, "two texts of one plan: {} and {}", text, to_text(again));
  require(is_printable(text), "control bytes: {}", text);
  require(read.mesh.dp >= 1 && read.mesh.pp >= 1 && read.mesh.tp >= 1 && read.microbatches >= 1 && read.fsdp >= 0 &&
              read.fsdp <= 3,
          "not a plan: {}", text);
  require(read.mesh.ranks() == static_cast<long double>(read.mesh.dp) * read.mesh.pp * read.mesh.tp,
          "its ranks overflow: {}", text);
  const std::string id = plan_id(read);
  require(id.size() == 8 && id.find_first_not_of("0123456789abcdef") == std::string::npos, "plan id {}", id);

  // The order of the choices after the mesh means nothing.
  std::string reversed;
  const auto mesh_end = std::min(input.find(','), input.size());
  for (std::size_t at = mesh_end; at < input.size();) {
    const auto end = std::min(input.find(',', at + 1), input.size());
    reversed.insert(0, input.substr(at, end - at));
    at = end;
  }
  reversed.insert(0, input.substr(0, mesh_end));
  require(accepts([&] { again = parse_plan(reversed); }) && again == read, "in another order it is another plan: {}",
          reversed);
}

}  // namespace meshwright::fuzz
