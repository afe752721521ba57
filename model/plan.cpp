#include "model/plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <set>

#include "model/input/content_key.h"
#include "model/input/diagnostics.h"
#include "model/input/json_reader.h"

namespace meshwright {

std::string to_text(const Plan& plan) {
  return fmt::format("{},schedule={},microbatches={},fsdp={},recompute={}{}{}", to_string(plan.mesh),
                     name(plan.schedule), plan.microbatches, plan.fsdp, name(plan.recompute),
                     plan.layers.empty() ? "" : ",layers=", fmt::join(plan.layers, "-"));
}

namespace {
constexpr std::array<std::string_view, 3> kPolicyNames{"none", "selective", "full"};
}  // namespace

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

}  // namespace

Plan parse_plan(std::string_view text) {
  constexpr int kMost = 1'000'000;
  constexpr std::array<std::string_view, 5> kWords{"schedule", "microbatches", "fsdp", "recompute", "layers"};
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
    if (key == "microbatches") {
      if (!read_count(value, 1, kMost, plan.microbatches)) fault(path, value, "1 to 1000000", "such as microbatches=4");
    } else if (key == "fsdp") {
      if (!read_count(value, 0, 3, plan.fsdp))
        fault(path, value, "0, 1, 2 or 3", "the ZeRO stage: fsdp=3 shards parameters, too");
    } else if (key == "schedule") {
      if (!read_name(value, kScheduleNames, plan.schedule))
        fault(path, value, "gpipe or 1f1b", did_you_mean(value, kScheduleNames, "such as schedule=1f1b"));
    } else if (key == "recompute") {
      if (const auto recompute = recompute_named(value))
        plan.recompute = *recompute;
      else
        fault(path, value,
              fmt::format("none, selective, full, or of {} some, joined by +", fmt::join(kRecomputeKindNames, ", ")),
              did_you_mean(value, recompute_words(), "such as recompute=selective"));
    } else if (key == "layers") {
      layers = value;
      if (!read_counts(value, 1, kMost, plan.layers))
        fault(path, value, "the layers of every stage, at least 1 each, joined by -", "such as layers=13-12-12-11");
    } else {
      fault(path, value, "schedule, microbatches, fsdp, recompute or layers",
            did_you_mean(key, kWords, "write it as 8x2x2,schedule=1f1b,microbatches=8,fsdp=3,recompute=full"));
    }
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
