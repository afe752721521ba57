#include "model/plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <set>

#include "model/input/content_key.h"
#include "model/input/diagnostics.h"
#include "model/input/json_reader.h"
#include "model/program/check.h"

namespace meshwright {

namespace {

constexpr std::array<std::string_view, 3> kPolicyNames{"none", "selective", "full"};

// These begin a plan's text, from which its id is made; the others follow as visit_choices() has them.
constexpr std::array<std::string_view, 3> kFirstChoices{"schedule", "microbatches", "fsdp"};

std::string text(int value) { return fmt::format("{}", value); }
std::string text(Schedule value) { return std::string(name(value)); }
std::string text(Recompute value) { return name(value); }
std::string text(const std::vector<int>& values) { return fmt::format("{}", fmt::join(values, "-")); }

std::vector<std::string_view> choices_in_order() {
  std::vector<std::string_view> all(kFirstChoices.begin(), kFirstChoices.end());
  const Plan any;
  visit_choices(any, [&](std::string_view choice, const auto&) {
    if (std::ranges::find(kFirstChoices, choice) == kFirstChoices.end()) all.push_back(choice);
  });
  return all;
}

}  // namespace

std::string to_text(const Plan& plan) {
  std::string all = to_string(plan.mesh);
  for (const std::string_view choice : choices_in_order())
    visit_choices(plan, [&](std::string_view name, const auto& value) {
      if (name != choice) return;
      if (const std::string said = text(value); !said.empty()) all += fmt::format(",{}={}", name, said);
    });
  return all;
}

std::string name(Recompute recompute) {
  for (std::size_t i = 0; i < kRecomputePolicies.size(); ++i)
    if (kRecomputePolicies[i] == recompute) return std::string(kPolicyNames[i]);
  std::string text;
  for (std::size_t i = 0; i < kRecomputeKindNames.size(); ++i)
    if (recompute.has(static_cast<RecomputeKind>(i)))
      text += (text.empty() ? "" : "+") + std::string(kRecomputeKindNames[i]);
  return text;
}

std::optional<Recompute> recompute_named(std::string_view name) {
  for (std::size_t i = 0; i < kPolicyNames.size(); ++i)
    if (kPolicyNames[i] == name) return kRecomputePolicies[i];
  Recompute all;
  for (bool more = true; more;) {
    const std::size_t plus = name.find('+');
    const auto kind = std::ranges::find(kRecomputeKindNames, name.substr(0, plus));
    if (kind == kRecomputeKindNames.end()) return std::nullopt;
    const Recompute one = Recompute::of(static_cast<RecomputeKind>(kind - kRecomputeKindNames.begin()));
    if (all.bits & one.bits) return std::nullopt;  // twice
    all.bits = static_cast<std::uint8_t>(all.bits | one.bits);
    more = plus != std::string_view::npos;
    if (more) name.remove_prefix(plus + 1);
  }
  return all;
}

std::vector<std::string> recompute_words() {
  std::vector<std::string> words(kPolicyNames.begin(), kPolicyNames.end());
  words.insert(words.end(), kRecomputeKindNames.begin(), kRecomputeKindNames.end());
  return words;
}

std::string plan_id(const Plan& plan) { return content_key(to_text(plan)).substr(0, 8); }

namespace {

// A positive number of at most a million: no product of three of them overflows.
bool read_count(std::string_view text, int low, int high, int& out) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < low || value > high) return false;
  out = value;
  return true;
}

// Numbers joined by "-".
bool read_counts(std::string_view text, int low, int high, std::vector<int>& out) {
  std::vector<int> values;
  for (bool more = true; more;) {
    const std::size_t dash = text.find('-');
    if (!read_count(text.substr(0, dash), low, high, values.emplace_back())) return false;
    more = dash != std::string_view::npos;
    if (more) text.remove_prefix(dash + 1);
  }
  out = std::move(values);
  return true;
}

template <std::size_t N, class Enum>
bool read_name(std::string_view text, const std::array<std::string_view, N>& names, Enum& out) {
  for (std::size_t i = 0; i < N; ++i)
    if (names[i] == text) {
      out = static_cast<Enum>(i);
      return true;
    }
  return false;
}

constexpr int kMost = 1'000'000;

// Of a value that a choice doesn't have.
struct Refusal {
  std::string allowed, hint;
};

// Reads a choice's value into the plan's field.
std::optional<Refusal> read_choice(std::string_view choice, std::string_view value, int& field) {
  const bool fsdp = choice == "fsdp";
  check(fsdp || choice == "microbatches", "a plan's {} has no range", choice);
  if (read_count(value, fsdp ? 0 : 1, fsdp ? 3 : kMost, field)) return std::nullopt;
  if (fsdp) return Refusal{"0, 1, 2 or 3", "the ZeRO stage: fsdp=3 shards parameters, too"};
  return Refusal{"1 to 1000000", "such as microbatches=4"};
}
std::optional<Refusal> read_choice(std::string_view, std::string_view value, Schedule& field) {
  if (read_name(value, kScheduleNames, field)) return std::nullopt;
  return Refusal{"gpipe or 1f1b", did_you_mean(value, kScheduleNames, "such as schedule=1f1b")};
}
std::optional<Refusal> read_choice(std::string_view, std::string_view value, Recompute& field) {
  const auto recompute = recompute_named(value);
  if (!recompute)
    return Refusal{
        fmt::format("none, selective, full, or of {} some, joined by +", fmt::join(kRecomputeKindNames, ", ")),
        did_you_mean(value, recompute_words(), "such as recompute=selective")};
  field = *recompute;
  return std::nullopt;
}
std::optional<Refusal> read_choice(std::string_view, std::string_view value, std::vector<int>& field) {
  if (read_counts(value, 1, kMost, field)) return std::nullopt;
  return Refusal{"the layers of every stage, at least 1 each, joined by -", "such as layers=13-12-12-11"};
}

}  // namespace

Plan parse_plan(std::string_view text) {
  const std::vector<std::string_view> choices = choices_in_order();
  Plan plan;
  std::vector<Diagnostic> faults;
  const auto fault = [&](std::string path, std::string_view value, std::string allowed, std::string hint) {
    faults.push_back({"--plan", std::move(path), std::string(value), std::move(allowed), std::move(hint)});
  };
  std::set<std::string_view> seen, repeated;
  std::string_view layers;
  bool first = true;
  for (std::string_view rest = text; first || !rest.empty(); first = false) {
    const std::size_t comma = rest.find(',');
    const std::string_view part = rest.substr(0, comma);
    rest = comma == std::string_view::npos ? std::string_view{} : rest.substr(comma + 1);
    if (first) {
      const std::size_t a = part.find('x'), b = a == std::string_view::npos ? a : part.find('x', a + 1);
      if (b == std::string_view::npos || !read_count(part.substr(0, a), 1, kMost, plan.mesh.dp) ||
          !read_count(part.substr(a + 1, b - a - 1), 1, kMost, plan.mesh.pp) ||
          !read_count(part.substr(b + 1), 1, kMost, plan.mesh.tp))
        fault("mesh", part, "dp x pp x tp, positive whole numbers", "write it as 8x2x2, before the other choices");
      continue;
    }
    const std::size_t equals = part.find('=');
    const std::string_view key = part.substr(0, equals);
    const std::string_view value = equals == std::string_view::npos ? std::string_view{} : part.substr(equals + 1);
    const std::string path(key);
    if (!seen.insert(key).second) {
      if (repeated.insert(key).second) fault(path, value, "each choice once", "remove all but one of them");
      continue;
    }
    bool known = false;
    visit_choices(plan, [&](std::string_view choice, auto& field) {
      if (choice != key) return;
      known = true;
      if (auto refusal = read_choice(choice, value, field))
        fault(path, value, std::move(refusal->allowed), std::move(refusal->hint));
    });
    if (key == "layers") layers = value;
    if (!known)
      fault(path, value, fmt::format("{} or {}", fmt::join(choices.begin(), choices.end() - 1, ", "), choices.back()),
            did_you_mean(key, choices, "write it as 8x2x2,schedule=1f1b,microbatches=8,fsdp=3,recompute=full"));
  }
  if (!text.empty() && text.back() == ',') fault("", text, "no comma at the end", "remove it");
  if (faults.empty() && static_cast<double>(plan.mesh.dp) * plan.mesh.pp * plan.mesh.tp > kMost)
    fault("mesh", text.substr(0, text.find(',')), "at most 1000000 ranks", "a smaller mesh");
  if (faults.empty() && !plan.layers.empty() && plan.layers.size() != static_cast<std::size_t>(plan.mesh.pp))
    fault("layers", layers,
          fmt::format("{} {}, as pp is {}", plan.mesh.pp, plan.mesh.pp == 1 ? "number" : "numbers", plan.mesh.pp),
          fmt::format("{} given; without it: cut by simulated cost, and written into the plan", plan.layers.size()));
  if (!faults.empty()) throw InputError(std::move(faults));
  return plan;
}

}  // namespace meshwright
