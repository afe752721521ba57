// Conditions on plans, as a user writes them: "tp=2,pp<=4,peak_memory_bytes<2e10".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "planner/search.h"

namespace meshwright {

// Conditions with commas between them, all of which must hold; without any, every plan matches. A condition is a field of
// visit_fields(PlanResult), an operator and a value. Numbers compare by = != < <= > >=, choices (schedule, recompute) and
// true or false by = and !=; texts and lists can't be compared. Fractions (mfu, hfu, bubble_fraction) are compared with
// numbers from 0 to 1.
class Where {
 public:
  Where() = default;
  // Throws InputError with source "--where" and every fault: no condition, unknown fields, operators and values.
  explicit Where(std::string_view text);

  bool matches(const PlanResult& plan) const;
  bool empty() const { return conditions_.empty(); }
  const std::string& text() const { return text_; }

 private:
  enum class Compare : std::uint8_t { kEqual, kNotEqual, kLess, kAtMost, kGreater, kAtLeast };
  struct Condition {
    std::string field;
    Compare compare = Compare::kEqual;
    std::variant<double, std::string> value;  // the latter of a choice: its word
  };
  static bool holds(const Condition& condition, const std::variant<double, std::string>& value);

  std::string text_;
  std::vector<Condition> conditions_;
};

// The search with those of its plans that match; everything else as it was.
SearchResult matching(const SearchResult& result, const Where& where);

}  // namespace meshwright
