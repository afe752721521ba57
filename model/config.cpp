#include "model/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <numbers>
#include <utility>

#include "model/accounting.h"
#include "model/families/jaxformer_config.h"
#include "model/families/model_file.h"
#include "model/program/check.h"

namespace meshwright {

double learning_rate(const LrSchedule& schedule, std::int64_t step) {
  check(step >= 0 && schedule.end_steps > schedule.warmup_steps && schedule.max_lr > 0, "learning rate of step {}",
        step);
  if (step < schedule.warmup_steps) {
    return schedule.min_lr +
           (schedule.max_lr - schedule.min_lr) * static_cast<double>(step) / static_cast<double>(schedule.warmup_steps);
  }
  const std::int64_t decay = schedule.end_steps - schedule.warmup_steps;
  const double progress =
      static_cast<double>(std::min(step - schedule.warmup_steps, decay)) / static_cast<double>(decay);
  const double floor = schedule.end_lr / schedule.max_lr;
  return schedule.max_lr * ((1 - floor) * 0.5 * (1 + std::cos(std::numbers::pi * progress)) + floor);
}

std::int64_t TrainingConfig::steps_in_shard(std::int64_t shard_tokens) const {
  // A step takes its sequences one after another; targets are the tokens shifted by one.
  return shard_tokens < 1 ? 0 : (shard_tokens - 1) / tokens_per_step();
}

namespace {

// Sets what the shortcuts say where the file's schema has it.
void apply(const Shortcuts& shortcuts, JsonDocument& document, std::vector<Diagnostic>& faults) {
  const auto set = [&](const char* section, const char* key, const Json& value, const char* flag) {
    if (*section && (!document.root.contains(section) || !document.root[section].is_object()))
      return;  // whoever reads it says so
    (*section ? document.root[section] : document.root)[key] = value;
    document.overrides[json_path(section, key)] = flag;
  };
  const bool own = is_model_file(document.root);
  if (shortcuts.seed) set(own ? "training" : "", "seed", *shortcuts.seed, "--seed");
  if (!shortcuts.dtype.empty())
    set(own ? "training" : "model_config", own ? "dtype" : "model_dtype", shortcuts.dtype, "--dtype");
  if (shortcuts.tokens) {
    set(own ? "training" : "model_config", own ? "tokens" : "T", *shortcuts.tokens, "--tokens");
    if (!own) set("data_config", "T", *shortcuts.tokens, "--tokens");
  }
  if (!shortcuts.batch) return;
  if (own) return set("training", "batch", *shortcuts.batch, "--batch");
  // JAXformer's schema counts the sequences of one dp shard and accumulation step.
  const auto number = [](const Json& value) {  // 0: none that the schema allows, which whoever reads it says
    constexpr std::int64_t kMost = 1 << 20;
    const std::int64_t n = value.is_number_integer() ? value.get<std::int64_t>() : 0;
    return n > kMost ? 0 : n;
  };
  const auto device = document.root.find("device_config");
  const Json axes =
      device != document.root.end() && device->is_object() ? device->value("n_device_axis", Json()) : Json();
  const std::int64_t dp = axes.is_array() && !axes.empty() ? number(axes[0]) : 0,
                     steps = number(document.root.value("grad_step", Json())),
                     share = dp > 0 && steps > 0 ? dp * steps : 1;
  if (*shortcuts.batch % share)
    faults.push_back(
        {"--batch", "", fmt::format("{}", *shortcuts.batch),
         fmt::format("a multiple of {}, the dp axis ({}) times grad_step ({}) of this configuration", share, dp, steps),
         fmt::format("such as {}", (*shortcuts.batch / share + 1) * share)});
  else
    set("data_config", "train_batch_size", *shortcuts.batch / share, "--batch");
}

}  // namespace

TrainingConfig read_config(const std::filesystem::path& file, const std::vector<std::string>& overrides,
                           const Shortcuts& shortcuts) {
  return read_config(read_json_file(file), overrides, shortcuts);
}

TrainingConfig read_config(JsonDocument document, const std::vector<std::string>& overrides,
                           const Shortcuts& shortcuts) {
  std::vector<Diagnostic> diagnostics;
  if (is_model_file(document.root)) {  // there, for what sets a part of them
    Json& training = document.root.emplace("training", Json::object()).first.value();
    if (training.is_object())
      for (const char* part : {"lr", "adam"}) training.emplace(part, Json::object());
  }
  try {
    if (!overrides.empty()) apply_overrides(document, overrides, "--set");
  } catch (const InputError& error) {
    diagnostics = error.diagnostics();
  }
  if (document.root.is_object()) apply(shortcuts, document, diagnostics);
  try {
    TrainingConfig config = is_model_file(document.root) ? read_model_file(document) : read_jaxformer(document);
    if (diagnostics.empty()) return config;
  } catch (const InputError& error) {
    diagnostics.insert(diagnostics.end(), error.diagnostics().begin(), error.diagnostics().end());
  }
  throw InputError(std::move(diagnostics));
}

OrderedJson to_json(const TrainingConfig& config) {
  OrderedJson root = OrderedJson::object();
  for (const ConfigValue& value : config.values) {  // "section.key", or a key at the top
    const std::size_t dot = value.path.find('.');
    OrderedJson& parent = dot == std::string::npos ? root : root[value.path.substr(0, dot)];
    parent[dot == std::string::npos ? value.path : value.path.substr(dot + 1)] = OrderedJson::parse(value.value.dump());
  }
  return root;
}

bool is_run_name(const std::string& name) {
  constexpr std::size_t kLongest = 100;
  return !name.empty() && name.size() <= kLongest && name.front() != '.' &&
         std::all_of(name.begin(), name.end(),
                     [](unsigned char c) { return std::isalnum(c) != 0 || c == '.' || c == '_' || c == '-'; });
}

void check_model_size(const TrainingConfig& config, JsonReader& reader, const std::string& width,
                      const std::string& tokens) {
  const auto key_of = [](const std::string& path) { return path.substr(path.rfind('.') + 1); };
  constexpr double kMaxParameters = 1e13, kMaxForwardFlops = 1e18;
  if (const auto parameters = static_cast<double>(count_parameters(config.model).total()); parameters > kMaxParameters)
    reader.report(width, fmt::format("a model of at most {:.0e} parameters", kMaxParameters),
                  fmt::format("this one has {:.3g}: lower {}, or experts, or layers", parameters, key_of(width)));
  else if (const double flops = model_flops(config.model, config.sequence_length, 1) / 3; flops > kMaxForwardFlops)
    reader.report(tokens, fmt::format("at most {:.0e} FLOPs for one sequence forward", kMaxForwardFlops),
                  fmt::format("this one takes {:.3g}: lower {} or the model's size", flops, key_of(tokens)));
}

}  // namespace meshwright
