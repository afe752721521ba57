#include "reports/json_report.h"

#include <string>
#include <string_view>
#include <type_traits>

namespace meshwright {

OrderedJson to_json(const PlanResult& result) {
  OrderedJson out = OrderedJson::object();
  visit_fields(result, [&](std::string_view key, const auto& value) {
    if constexpr (std::is_enum_v<std::remove_cvref_t<decltype(value)>> ||
                  std::is_same_v<std::remove_cvref_t<decltype(value)>, Recompute>)
      out[std::string(key)] = name(value);
    else
      out[std::string(key)] = value;
  });
  out["plan"] = to_text(result.plan);
  out["id"] = plan_id(result.plan);
  return out;
}

}  // namespace meshwright
