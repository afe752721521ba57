#include "planner/where.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <optional>
#include <type_traits>
#include <utility>

#include "model/input/json_reader.h"

namespace meshwright {
namespace {

constexpr std::string_view kSource = "--where";
constexpr std::array<std::string_view, 6> kOperators{"=", "!=", "<", "<=", ">", ">="};  // in the order of Compare
constexpr std::string_view kSigns = "=!<>";

// What a field is compared as.
struct Kind {
  bool whole = false;                // numbers: whole ones only
  std::vector<std::string> choices;  // not empty: one of these words
  bool fraction = false;             // numbers: from 0 to 1
};

constexpr std::array<std::string_view, 3> kFractions{"mfu", "hfu", "bubble_fraction"};

// What people may call a field after the heading of its column. No other name for it: the table's units are not those of
// the fields.
constexpr std::array<std::pair<std::string_view, std::string_view>, 10> kHeadings{{{"mb", "microbatches"},
                                                                                   {"zero", "fsdp"},
                                                                                   {"step", "step_time_s"},
                                                                                   {"sched", "schedule"},
                                                                                   {"recomp", "recompute"},
                                                                                   {"mem", "peak_memory_bytes"},
                                                                                   {"peak", "peak_memory_bytes"},
                                                                                   {"memory", "peak_memory_bytes"},
                                                                                   {"comm", "exposed_comm_s"},
                                                                                   {"bubble", "bubble_fraction"}}};

std::vector<std::string> words(const auto& names) { return {names.begin(), names.end()}; }

template <class Field>
std::optional<Kind> kind_of() {
  if constexpr (std::is_same_v<Field, Schedule>) return Kind{false, words(kScheduleNames)};
  if constexpr (std::is_same_v<Field, Recompute>) return Kind{false, recompute_words()};
  if constexpr (std::is_same_v<Field, bool>) return Kind{false, {"false", "true"}};
  if constexpr (std::is_arithmetic_v<Field>) return Kind{std::is_integral_v<Field>, {}};
  return std::nullopt;
}

std::vector<std::pair<std::string, Kind>> fields() {
  std::vector<std::pair<std::string, Kind>> all;
  const PlanResult any;
  visit_fields(any, [&](std::string_view name, const auto& value) {
    if (auto kind = kind_of<std::remove_cvref_t<decltype(value)>>()) {
      kind->fraction = std::ranges::find(kFractions, name) != kFractions.end();
      all.emplace_back(name, std::move(*kind));
    }
  });
  return all;
}

std::string_view trimmed(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(' ');
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(' ') - begin + 1);
}

std::optional<double> number(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

std::string hint_for_field(std::string_view word, const std::vector<std::string>& known) {
  std::string lower(word);
  for (char& c : lower)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  const auto heading = std::ranges::find(kHeadings, std::string_view(lower), [](const auto& h) { return h.first; });
  return did_you_mean(heading == kHeadings.end() ? lower : heading->second, known, "such as tp=2,pp<=4");
}

constexpr NumberRange kFraction{.min = 0, .max = 1};

// Of a field that is a fraction, whose value is none: 40 is likely meant as 40 %.
std::string hint_for_fraction(std::string_view field, double value) {
  return value > 1 && value <= 100 ? fmt::format("a fraction: {:g} for {:g} %", value / 100, value)
                                   : fmt::format("a fraction, such as {}>0.4", field);
}

}  // namespace

Where::Where(std::string_view text) : text_(text) {
  const auto known = fields();
  std::vector<std::string> names;
  for (const auto& [name, kind] : known) names.push_back(name);
  std::vector<Diagnostic> faults;
  const auto fault = [&](std::string_view path, std::string_view value, std::string allowed, std::string hint) {
    faults.push_back(
        {std::string(kSource), std::string(path), std::string(value), std::move(allowed), std::move(hint)});
  };
  bool is_missing = false;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string_view part = trimmed(text.substr(begin, end - begin));
    begin = end + 1;
    if (part.empty()) {
      is_missing = true;
      continue;
    }
    const std::size_t sign = std::min(part.find_first_of(kSigns), part.size());
    const std::size_t behind = std::min(part.find_first_not_of(kSigns, sign), part.size());
    const std::string_view field = trimmed(part.substr(0, sign)), compare = part.substr(sign, behind - sign),
                           value = trimmed(part.substr(behind));
    const auto found = std::ranges::find(known, field, &std::pair<std::string, Kind>::first);
    const auto op = std::ranges::find(kOperators, compare);
    if (found == known.end())
      fault("", part, fmt::format("conditions on {}", fmt::join(names, ", ")), hint_for_field(field, names));
    const bool is_choice = found != known.end() && !found->second.choices.empty();
    const bool orders = op != kOperators.end() && compare != "=" && compare != "!=";
    if (op == kOperators.end())
      fault(field, compare.empty() ? part : compare, fmt::format("one of {}", fmt::join(kOperators, " ")),
            compare == "==" ? "write =" : "such as tp=2,pp<=4");
    else if (is_choice && orders)
      fault(field, compare, "= or !=", "these are words, without an order");
    if (found == known.end()) continue;

    const Kind& kind = found->second;
    Condition condition{std::string(field), {}, {}};
    if (op != kOperators.end()) condition.compare = static_cast<Compare>(op - kOperators.begin());
    if (is_choice) {
      if (std::ranges::find(kind.choices, value) == kind.choices.end())
        fault(field, value, fmt::format("one of {}", fmt::join(kind.choices, ", ")),
              did_you_mean(value, kind.choices, "choose one of these"));
      condition.value = std::string(value);
    } else if (const auto parsed = number(value); parsed && (!kind.whole || *parsed == std::floor(*parsed))) {
      condition.value = *parsed;
      if (kind.fraction && !contains(kFraction, *parsed))
        fault(field, value, describe(kFraction), hint_for_fraction(field, *parsed));
    } else {
      fault(field, value, kind.whole ? "a whole number" : "a number",
            fmt::format("such as {}={}", field, kind.whole ? "2" : "0.5"));
    }
    conditions_.push_back(std::move(condition));
  }
  if (is_missing)
    fault(
        "", fmt::format("\"{}\"", text), "conditions such as tp=2,pp<=4",
        trimmed(text).empty() ? "leave --where out for all plans" : "nothing stands on one side of a comma: remove it");
  if (!faults.empty()) throw InputError(std::move(faults));
}

bool Where::holds(const Condition& condition, const std::variant<double, std::string>& value) {
  switch (condition.compare) {
    case Compare::kEqual:
      return value == condition.value;
    case Compare::kNotEqual:
      return value != condition.value;
    case Compare::kLess:
      return value < condition.value;
    case Compare::kAtMost:
      return value <= condition.value;
    case Compare::kGreater:
      return value > condition.value;
    case Compare::kAtLeast:
      return value >= condition.value;
  }
  return false;
}

bool Where::matches(const PlanResult& plan) const {
  bool all = true;
  visit_fields(plan, [&](std::string_view field, const auto& value) {
    using Field = std::remove_cvref_t<decltype(value)>;
    for (const Condition& condition : conditions_) {
      if (condition.field != field) continue;
      if constexpr (std::is_same_v<Field, bool>)
        all = all && holds(condition, value ? "true" : "false");
      else if constexpr (std::is_enum_v<Field> || std::is_same_v<Field, Recompute>)
        all = all && holds(condition, std::string(name(value)));
      else if constexpr (std::is_arithmetic_v<Field>)
        all = all && holds(condition, static_cast<double>(value));
    }
  });
  return all;
}

SearchResult matching(const SearchResult& result, const Where& where) {
  SearchResult some = result;
  std::erase_if(some.plans, [&](const PlanResult& plan) { return !where.matches(plan); });
  return some;
}

}  // namespace meshwright
