#include "model/families/model_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <filesystem>
#include <utility>

#include "model/families/decoder.h"
#include "model/families/hugging_face.h"
#include "model/families/limits.h"

namespace meshwright {
namespace {

constexpr std::int64_t kTokens = 1024;  // unless the model allows fewer

// The file's name without its ending, in the letters that a run's folder has.
std::string name_of(const std::string& source) {
  std::filesystem::path file(source);
  // As published the file is config.json, in a folder that says which model it is.
  if (file.filename() == "config.json" && file.has_parent_path()) file = file.parent_path();
  std::string name = file.extension() == ".json" ? file.stem().string() : file.filename().string();
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '_' && c != '-') c = '-';
  constexpr std::size_t kLongest = 100;
  name.resize(std::min(name.size(), kLongest));
  return name.empty() || name.front() == '.' ? "model" : name;
}

// The object "training".
class TrainingPart {
 public:
  TrainingPart(const JsonDocument& document, TrainingConfig& config, std::int64_t positions)
      : reader_(document),
        config_(config),
        positions_(positions),
        constant_lr_(config.lr.min_lr == config.lr.max_lr && config.lr.end_lr == config.lr.max_lr) {
    ObjectReader root = reader_.root();
    if (root.has("training"))
      if (auto training = root.object("training")) read(*training);
    if (!has_end_) config_.lr.end_steps = std::max(config_.training_steps, config_.lr.warmup_steps + 1);
    const double tokens = static_cast<double>(config_.sequences) * static_cast<double>(config_.sequence_length);
    if (tokens > static_cast<double>(kMaxTokensPerStep))
      reader_.report("training.batch", fmt::format("batch * tokens of at most {} tokens a step", kMaxTokensPerStep),
                     fmt::format("it is {:.3g}", tokens));
  }

  JsonReader& reader() { return reader_; }

 private:
  void read(ObjectReader& t) {
    TrainingConfig& c = config_;
    if (t.has("name"))
      if (const auto name = t.text("name")) {
        c.name = *name;
        if (!is_run_name(c.name))
          reader_.report(t.path("name"), "1 to 100 letters, digits, '.', '_' or '-', not beginning with '.'",
                         "the run's folder is named by it");
      }
    c.sequences = t.integer_or("batch", c.sequences, {1, kMaxBatch}, "sequences of a step");
    c.sequence_length = t.integer_or("tokens", c.sequence_length, {1, kMaxTokens});
    if (positions_ > 0 && c.sequence_length > positions_)
      reader_.report(t.path("tokens"), fmt::format("at most the model's {} positions", positions_),
                     "there are learned positions for no more");
    c.training_steps = t.integer_or("steps", c.training_steps, {1, kMaxSteps});
    c.model_dtype = t.one_of_or("dtype", c.model_dtype, {"bfloat16", "float16", "float32"});
    c.seed = t.integer_or("seed", c.seed, {.min = 0});
    c.grad_clip_norm =
        t.number_or("grad_clip_norm", c.grad_clip_norm, {.min = 0, .max = 1e6}, "0: gradients of any norm");
    c.model.balance_weight = t.number_or("balance_weight", c.model.balance_weight, {.min = 0, .max = 1e6});
    if (t.has("balance"))
      if (const auto tokens = t.one_of("balance", {kBalanceNames.begin(), kBalanceNames.end()}))
        c.model.balance = static_cast<Balance>(std::ranges::find(kBalanceNames, *tokens) - kBalanceNames.begin());
    if (!constant_lr_) c.lr.warmup_steps = c.training_steps / 10;
    if (t.has("lr"))
      if (auto lr = t.object("lr")) read_lr(*lr);
    if (t.has("adam"))
      if (auto adam = t.object("adam")) {
        const NumberRange below_one{.min = 0, .max = 1, .max_open = true};
        c.adam.beta1 = adam->number_or("beta1", c.adam.beta1, below_one);
        c.adam.beta2 = adam->number_or("beta2", c.adam.beta2, below_one);
        c.adam.epsilon = adam->number_or("epsilon", c.adam.epsilon, {.min = 0, .max = 1, .min_open = true});
        c.adam.weight_decay = adam->number_or("weight_decay", c.adam.weight_decay, {.min = 0, .max = 10});
      }
  }

  void read_lr(ObjectReader& section) {
    LrSchedule& lr = config_.lr;
    const NumberRange rate{.min = 0, .max = 10};
    if (section.has("max_lr")) {
      lr.max_lr = section.number_or("max_lr", lr.max_lr, {.min = 0, .max = 10, .min_open = true});
      lr.end_lr = constant_lr_ ? lr.max_lr : lr.max_lr / 10;
      lr.min_lr = constant_lr_ ? lr.max_lr : std::min(lr.min_lr, lr.max_lr);
    }
    lr.min_lr = section.number_or("min_lr", lr.min_lr, rate);
    if (lr.min_lr > lr.max_lr)
      reader_.report(section.path("min_lr"), fmt::format("at most max_lr, which is {}", lr.max_lr),
                     "the warm-up climbs from min_lr to max_lr");
    lr.end_lr = section.number_or("end_lr", lr.end_lr, rate);
    if (lr.end_lr > lr.max_lr)
      reader_.report(section.path("end_lr"), fmt::format("at most max_lr, which is {}", lr.max_lr),
                     "the cosine falls from max_lr to end_lr");
    lr.warmup_steps = section.integer_or("warmup_steps", lr.warmup_steps, {0, kMaxSteps});
    has_end_ = section.has("end_steps");
    lr.end_steps = section.integer_or("end_steps", lr.end_steps, {1, kMaxSteps});
    if (has_end_ && lr.end_steps <= lr.warmup_steps)
      reader_.report(section.path("end_steps"), fmt::format("more than warmup_steps, which is {}", lr.warmup_steps),
                     "the cosine lies between warmup_steps and end_steps, both counted from step 0");
  }

  JsonReader reader_;
  TrainingConfig& config_;
  std::int64_t positions_;
  bool
      constant_lr_;  // the family's own schedule: what is said of the rate leaves it constant, unless it says otherwise
  bool has_end_ = false;
};

// The document with these keys alone, so that one reader's are not unknown to another.
JsonDocument part(const JsonDocument& document, std::initializer_list<std::string_view> keys) {
  JsonDocument some{document.source, Json::object(), document.overrides};
  for (const std::string_view key : keys)
    if (const auto it = document.root.find(key); it != document.root.end()) some.root[std::string(key)] = *it;
  return some;
}

}  // namespace

bool is_model_file(const Json& root) { return is_decoder(root) || is_hugging_face(root); }

TrainingConfig read_model_file(const JsonDocument& document) {
  TrainingConfig config;
  config.has_plan = false;
  config.name = name_of(document.source);
  config.model_dtype = "float32";
  config.sequences = config.train_batch_size = config.val_batch_size = 8;
  config.training_steps = 1000;
  config.checkpoint_steps = 100;
  config.eval_steps = 10;
  config.lr = {.max_lr = 3e-4, .min_lr = 0, .end_lr = 3e-5, .warmup_steps = 100, .end_steps = 1000};
  config.adam = {.beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.1};

  std::vector<Diagnostic> faults;
  const auto collect = [&](auto&& read) {
    try {
      read();
    } catch (const InputError& error) {
      faults.insert(faults.end(), error.diagnostics().begin(), error.diagnostics().end());
    }
  };
  std::int64_t positions = 0;
  collect([&] {
    if (is_decoder(document.root)) {
      config.model = read_decoder(document, config.name);
    } else {
      HuggingFaceModel read = read_hugging_face(document, config.name);
      config.model = std::move(read.model);
      config.model_dtype = read.dtype;
      config.family = read.family;
      config.notes = std::move(read.notes);
      positions = read.positions;
      if (read.family == "minigpt") {  // the tutorial's recipe
        config.lr = {.max_lr = 1e-3, .min_lr = 1e-3, .end_lr = 1e-3, .warmup_steps = 0, .end_steps = 1000};
        config.adam = {.weight_decay = 0};
        config.grad_clip_norm = 0;
      }
    }
  });
  if (config.model.embedding.positions > 0) positions = config.model.embedding.positions;
  config.sequence_length = positions > 0 ? std::min(positions, kTokens) : kTokens;
  const JsonDocument training = part(document, {"training"});
  collect([&] {
    TrainingPart read(training, config, config.model.embedding.positions);
    read.reader().finish();
    if (!faults.empty()) return;
    for (const Layer& layer : config.model.layers)
      if (const auto* moe = std::get_if<Experts>(&layer.ffn);
          moe && moe->capacity_factor > 0 && moe->capacity(config.sequence_length) < 1) {
        read.reader().report(
            "training.tokens",
            fmt::format("at least {:.0f}: an expert accepts tokens * choices * capacity_factor / experts of a sequence",
                        std::ceil(static_cast<double>(moe->experts) /
                                  (static_cast<double>(moe->choices) * moe->capacity_factor))),
            "with fewer it would accept none: raise the capacity factor, or leave it out (nothing is dropped then)");
        break;
      }
    check_model_size(config, read.reader(), "training.tokens", "training.tokens");
    read.reader().finish();
  });
  if (!faults.empty()) throw InputError(std::move(faults));
  config.model.name = config.name;
  config.alpha = config.model.balance_weight;
  if (config.model_dtype == "float16")
    config.notes.push_back("dtype = \"float16\": simulated devices compute in it; a run can't");
  config.train_batch_size = config.val_batch_size = config.sequences;

  const Json resolved{{"name", config.name},
                      {"batch", config.sequences},
                      {"tokens", config.sequence_length},
                      {"steps", config.training_steps},
                      {"dtype", config.model_dtype},
                      {"seed", config.seed},
                      {"lr",
                       {{"max_lr", config.lr.max_lr},
                        {"min_lr", config.lr.min_lr},
                        {"end_lr", config.lr.end_lr},
                        {"warmup_steps", config.lr.warmup_steps},
                        {"end_steps", config.lr.end_steps}}},
                      {"grad_clip_norm", config.grad_clip_norm},
                      {"adam",
                       {{"beta1", config.adam.beta1},
                        {"beta2", config.adam.beta2},
                        {"epsilon", config.adam.epsilon},
                        {"weight_decay", config.adam.weight_decay}}},
                      {"balance_weight", config.model.balance_weight},
                      {"balance", name(config.model.balance)}};
  for (const auto& [key, value] : document.root.items())
    if (key != "training" && key.find_first_of(".[") == std::string::npos)
      config.values.push_back({json_path("", key), value, document.source_of(key)});
  for (const auto& [key, value] : resolved.items()) {
    const std::string path = "training." + key;
    config.values.push_back({path, value, document.source_of(path)});
  }
  return config;
}

}  // namespace meshwright
