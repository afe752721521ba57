#include "model/input/json_reader.h"
#include "tests/fuzz/support.h"

namespace meshwright::fuzz {
namespace {

void list(OrderedJson& value, std::vector<OrderedJson*>& all) {
  all.push_back(&value);
  if (value.is_structured())
    for (OrderedJson& inner : value) list(inner, all);
}

OrderedJson other_value(const OrderedJson& value, std::mt19937& random) {
  static const std::vector<OrderedJson> numbers{
      0,         1,         -1,        2,         3,   16,  1024, 1 << 16, 1 << 20,   1000001,
      1LL << 40, 1LL << 50, 1e-300,    1e-12,     0.5, 1.5, 1e6,  1e12,    1e15,      1e19,
      1e300,     INT32_MAX, INT64_MAX, INT64_MIN, 275, 45,  32,   5e-324,  UINT64_MAX};
  static const std::vector<std::string> texts{"",        "2x2x2",   "1x1x4",      "4x4x4",  "1048576x1048576",
                                              "0x1",     "torus",   "links",      "always", "never",
                                              "float16", "float32", "\u001b[31m", "gs://x", "measured"};
  if (value.is_number() && random() % 2 == 0) return value.get<double>() * (random() % 2 == 0 ? 1000.0 : 0.001);
  switch (random() % 8) {
    case 0:
      return nullptr;
    case 1:
      return random() % 2 == 0;
    case 2:
    case 3:
      return any_of(texts, random);
    default:
      return any_of(numbers, random);
  }
}

}  // namespace

std::string mutate_json(std::string_view input, std::mt19937& random) {
  // What stands before and after the document (a slice, overrides) stays.
  const auto begin = input.find('{'), end = input.rfind('}');
  if (begin == std::string_view::npos || end == std::string_view::npos || end < begin) return std::string(input);
  OrderedJson root = OrderedJson::parse(input.substr(begin, end + 1 - begin), nullptr, false);
  if (root.is_discarded()) return std::string(input);
  std::vector<OrderedJson*> all;
  list(root, all);
  for (unsigned changes = 1 + random() % 3; changes-- > 0;) {
    OrderedJson& value = *all[random() % all.size()];
    if (!value.is_structured()) {
      value = other_value(value, random);
    } else if (!value.empty() && random() % 8 == 0) {
      auto at = value.begin();
      std::advance(at, static_cast<std::ptrdiff_t>(random() % value.size()));
      value.erase(at);
      break;  // what `all` points at may be gone
    }
  }
  return fmt::format("{}{}{}", input.substr(0, begin), root.dump(1, ' ', false, OrderedJson::error_handler_t::replace),
                     input.substr(end + 1));
}

}  // namespace meshwright::fuzz
