#include "model/families/jaxformer_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cctype>
#include <cmath>
#include <numbers>
#include <optional>
#include <utility>

#include "model/families/jaxformer.h"
#include "model/families/limits.h"

namespace meshwright {
namespace {

// Upper limits beside those of limits.h. The widest product, FLOPs of a layer's experts over a sequence, is
// 2 * 2 * 4 C^2 * k * T <= 2^(4 + 32 + 6 + 20) = 2^62.
constexpr std::int64_t kMaxRope = 1 << 10;
constexpr std::int64_t kMaxBlocks = 1 << 10;
constexpr std::int64_t kMaxAxis = 1'000'000;  // this and the next two: what --plan reads, as every mesh is a plan's
constexpr std::int64_t kMaxDevices = 1'000'000;
constexpr std::int64_t kMaxMicrobatches = 1'000'000;

constexpr NumberRange kPositive{.min = 0, .max = 1e6, .min_open = true};
constexpr NumberRange kNotNegative{.min = 0, .max = 1e6};

// The schema, in its order: the reading functions below and to_json() follow it.
struct Key {
  std::string_view section;  // empty: at the top
  std::string_view name;
};
constexpr Key kSchema[] = {
    {"model_config", "model_dimension"},
    {"model_config", "vocab_size"},
    {"model_config", "n_head"},
    {"model_config", "blocks"},
    {"model_config", "layers_per_block"},
    {"model_config", "T"},
    {"model_config", "latent_dim"},
    {"model_config", "dhR"},
    {"model_config", "dropout_rate"},
    {"model_config", "model_dtype"},
    {"model_config", "k"},
    {"model_config", "n_experts"},
    {"model_config", "n_shared"},
    {"model_config", "capacity_factor"},
    {"data_config", "bucket_name"},
    {"data_config", "process_path"},
    {"data_config", "train_folder_name"},
    {"data_config", "val_folder_name"},
    {"data_config", "T"},
    {"data_config", "train_batch_size"},
    {"data_config", "val_batch_size"},
    {"data_config", "micro_batch_size"},
    {"lr", "max_lr"},
    {"lr", "min_lr"},
    {"lr", "end_lr"},
    {"lr", "warmup_steps"},
    {"lr", "end_steps"},
    {"device_config", "n_device_axis"},
    {"inference_config", "prompt"},
    {"inference_config", "batch_size"},
    {"inference_config", "top_k"},
    {"inference_config", "temperature"},
    {"inference_config", "n_devices"},
    {"inference_config", "max_tokens"},
    {"inference_config", "use_cache"},
    {"", "output_dir"},
    {"", "training_steps"},
    {"", "name"},
    {"", "grad_step"},
    {"", "alpha"},
    {"", "checkpoint_steps"},
    {"", "eval_steps"},
    {"", "seed"},
    {"", "wandb"},
    {"", "grad_clip_norm"},
};

// Fills a TrainingConfig from a document. Each section keeps what it read, so that relations between sections
// are checked wherever both sides could be read, in the same pass.
class ConfigReader {
 public:
  explicit ConfigReader(const JsonDocument& document) : document_(document), reader_(document), top_(reader_.root()) {}

  TrainingConfig read() {
    if (auto section = top_.object("model_config")) read_model(*section);
    if (auto section = top_.object("data_config")) read_data(*section);
    if (auto section = top_.object("lr")) read_lr(*section);
    if (auto section = top_.object("device_config")) read_device(*section);
    if (auto section = top_.object("inference_config")) read_inference(*section);
    read_top();
    relate_sections();
    reader_.finish();

    config_.model = jaxformer(config_.name, dimensions_, config_.alpha);
    config_.sequences = config_.mesh.dp * config_.train_batch_size * config_.grad_step;
    check_size();
    reader_.finish();

    keep_values();
    write_notes();
    return std::move(config_);
  }

 private:
  // Stores what a getter gave, if it gave something; says whether.
  template <class Field, class Value>
  static bool store(Field& field, const std::optional<Value>& value) {
    if (value) field = *value;
    return value.has_value();
  }

  void read_model(ObjectReader& section) {
    JaxformerDimensions& d = dimensions_;
    const bool width = store(d.model_dimension, section.integer("model_dimension", {1, kMaxWidth}));
    store(d.vocab_size, section.integer("vocab_size", {2, kMaxVocab}));
    const bool heads = store(d.n_head, section.integer("n_head", {1, kMaxHeads}));
    const bool blocks = store(d.blocks, section.integer("blocks", {1, kMaxBlocks}));
    const bool depth = store(d.layers_per_block, section.integer("layers_per_block", {1, kMaxLayers}));
    has_model_T_ = store(config_.sequence_length, section.integer("T", {1, kMaxTokens}));
    store(d.latent_dim, section.integer("latent_dim", {1, kMaxWidth}));
    const bool rope = store(d.dhR, section.integer("dhR", {2, kMaxRope}));
    store(d.dropout_rate, section.number("dropout_rate", {.min = 0, .max = 1, .max_open = true},
                                         "it is the probability that a value is dropped"));
    store(config_.model_dtype, section.one_of("model_dtype", {"bfloat16", "float16", "float32"}));
    const bool choices = store(d.k, section.integer("k", {1, kMaxChoices}));
    const bool experts = store(d.n_experts, section.integer("n_experts", {1, kMaxExperts}));
    store(d.n_shared, section.integer("n_shared", {1, kMaxShared}));
    const bool capacity =
        store(d.capacity_factor, section.number("capacity_factor", {.min = 0, .max = 1e4, .min_open = true}));

    if (width && heads && d.model_dimension % d.n_head != 0) {
      reader_.report(section.path("n_head"),
                     fmt::format("a divisor of model_dimension, which is {}", d.model_dimension),
                     fmt::format("the nearest one is {}", nearest_divisor(d.model_dimension, d.n_head)));
    }
    if (blocks && depth && d.blocks * d.layers_per_block > kMaxLayers) {
      reader_.report(section.path("layers_per_block"),
                     fmt::format("blocks * layers_per_block of at most {}", kMaxLayers),
                     fmt::format("at most {} with {} blocks", kMaxLayers / d.blocks, d.blocks));
    }
    if (rope && d.dhR % 2 != 0) {
      reader_.report(section.path("dhR"), "an even integer",
                     fmt::format("rotary positions turn pairs of channels: take {} or {}", d.dhR - 1, d.dhR + 1));
    }
    if (choices && experts && d.k > d.n_experts) {
      reader_.report(section.path("k"), fmt::format("at most n_experts, which is {}", d.n_experts),
                     "a token's choices are distinct experts: lower k or raise n_experts");
    } else if (choices && experts && capacity && has_model_T_) {
      const Experts moe{.experts = d.n_experts, .choices = d.k, .capacity_factor = d.capacity_factor};
      if (moe.capacity(config_.sequence_length) < 1) {
        reader_.report(section.path("capacity_factor"),
                       fmt::format("T * k * capacity_factor / n_experts of at least 1; it is {:.3g}",
                                   static_cast<double>(config_.sequence_length * d.k) * d.capacity_factor /
                                       static_cast<double>(d.n_experts)),
                       "an expert would accept no token at all: raise capacity_factor or T, or lower n_experts");
      }
    }
  }

  void read_data(ObjectReader& section) {
    store(config_.data.bucket_name, section.text("bucket_name"));
    store(config_.data.process_path, section.text("process_path"));
    store(config_.data.train_folder_name, section.text("train_folder_name"));
    store(config_.data.val_folder_name, section.text("val_folder_name"));
    const auto tokens = section.integer("T", {1, kMaxTokens});
    has_batch_ = store(config_.train_batch_size, section.integer("train_batch_size", {1, kMaxBatch}));
    store(config_.val_batch_size, section.integer("val_batch_size", {1, kMaxBatch}));
    has_microbatches_ = store(config_.microbatches, section.integer("micro_batch_size", {1, kMaxBatch}));

    if (tokens && has_model_T_ && *tokens != config_.sequence_length) {
      reader_.report(section.path("T"),
                     fmt::format("the value of model_config.T, which is {}", config_.sequence_length),
                     "both are the tokens of a sequence: set model_config.T and data_config.T alike");
    }
    if (has_batch_ && has_microbatches_ && config_.train_batch_size % config_.microbatches != 0) {
      reader_.report(section.path("micro_batch_size"),
                     fmt::format("a divisor of train_batch_size, which is {}", config_.train_batch_size),
                     fmt::format("it is the number of microbatches, not their size; the nearest one is {}",
                                 nearest_divisor(config_.train_batch_size, config_.microbatches)));
    }
  }

  void read_lr(ObjectReader& section) {
    LrSchedule& lr = config_.lr;
    const bool max = store(lr.max_lr, section.number("max_lr", {.min = 0, .max = 10, .min_open = true}));
    const bool min = store(lr.min_lr, section.number("min_lr", {.min = 0, .max = 10}));
    const bool end = store(lr.end_lr, section.number("end_lr", {.min = 0, .max = 10}));
    const bool warmup = store(lr.warmup_steps, section.integer("warmup_steps", {0, kMaxSteps}));
    const bool steps = store(lr.end_steps, section.integer("end_steps", {1, kMaxSteps}));

    if (max && min && lr.min_lr > lr.max_lr) {
      reader_.report(section.path("min_lr"), fmt::format("at most max_lr, which is {}", lr.max_lr),
                     "the warm-up climbs from min_lr to max_lr");
    }
    if (max && end && lr.end_lr > lr.max_lr) {
      reader_.report(section.path("end_lr"), fmt::format("at most max_lr, which is {}", lr.max_lr),
                     "the cosine falls from max_lr to end_lr");
    }
    if (warmup && steps && lr.end_steps <= lr.warmup_steps) {
      reader_.report(section.path("end_steps"), fmt::format("more than warmup_steps, which is {}", lr.warmup_steps),
                     "the cosine lies between warmup_steps and end_steps, both counted from step 0");
    }
  }

  void read_device(ObjectReader& section) {
    const auto axes =
        section.integers("n_device_axis", 3, {1, kMaxAxis}, "ranks along dp, pp and tp, for example [8, 2, 2]");
    if (!axes) return;
    // Each is at most 10^6, so that their product stays within 63 bits.
    if ((*axes)[0] * (*axes)[1] * (*axes)[2] > kMaxDevices) {
      reader_.report(section.path("n_device_axis"), fmt::format("at most {} devices in all", kMaxDevices),
                     "devices are the product of dp, pp and tp");
      return;
    }
    config_.mesh = {static_cast<int>((*axes)[0]), static_cast<int>((*axes)[1]), static_cast<int>((*axes)[2])};
    has_mesh_ = true;
  }

  void read_inference(ObjectReader& section) {
    InferenceConfig& inference = config_.inference;
    store(inference.prompt, section.text("prompt"));
    store(inference.batch_size, section.integer("batch_size", {1, kMaxBatch}));
    store(inference.top_k, section.integer("top_k", {1, kMaxVocab}));
    store(inference.temperature, section.number("temperature", kPositive));
    store(inference.n_devices, section.integer("n_devices", {1, kMaxDevices}));
    store(inference.max_tokens, section.integer("max_tokens", {1, kMaxTokens}));
    store(inference.use_cache, section.boolean("use_cache"));
  }

  void read_top() {
    if (store(config_.output_dir, top_.text("output_dir")) && !is_place(config_.output_dir)) {
      reader_.report("output_dir", "a directory, or a bucket as gs://NAME/",
                     "for example runs/, or gs://results_jaxformer/");
    }
    store(config_.training_steps, top_.integer("training_steps", {1, kMaxSteps}));
    if (store(config_.name, top_.text("name")) && !is_run_name(config_.name)) {
      reader_.report("name", "1 to 100 letters, digits, '.', '_' or '-', not beginning with '.'",
                     "the run's folder is named by it");
    }
    has_grad_step_ = store(config_.grad_step, top_.integer("grad_step", {1, kMaxBatch}));
    store(config_.alpha, top_.number("alpha", kNotNegative));
    store(config_.checkpoint_steps, top_.integer("checkpoint_steps", {1, kMaxSteps}));
    store(config_.eval_steps, top_.integer("eval_steps", {1, kMaxBatch}));
    store(config_.seed, top_.integer("seed", {.min = 0}));
    store(config_.wandb, top_.boolean("wandb"));
    store(config_.grad_clip_norm, top_.number("grad_clip_norm", kPositive));
  }

  void relate_sections() {
    if (has_microbatches_ && has_grad_step_ && config_.microbatches * config_.grad_step > kMaxMicrobatches) {
      reader_.report("data_config.micro_batch_size",
                     fmt::format("micro_batch_size * grad_step of at most {} microbatches a step", kMaxMicrobatches),
                     fmt::format("it is {}: lower one of them", config_.microbatches * config_.grad_step));
    }
    if (!has_mesh_ || !has_batch_ || !has_grad_step_ || !has_model_T_) return;
    double tokens = config_.mesh.dp;
    for (std::int64_t factor : {config_.train_batch_size, config_.grad_step, config_.sequence_length}) {
      tokens *= static_cast<double>(factor);
    }
    if (tokens > static_cast<double>(kMaxTokensPerStep)) {
      reader_.report(
          "data_config.train_batch_size",
          fmt::format("dp * train_batch_size * grad_step * T of at most {} tokens a step", kMaxTokensPerStep),
          fmt::format("it is {:.3g}; train_batch_size counts the sequences of one dp shard", tokens));
    }
  }

  void check_size() {
    double evaluated = config_.mesh.dp;
    for (std::int64_t factor : {config_.eval_steps, config_.val_batch_size, config_.sequence_length}) {
      evaluated *= static_cast<double>(factor);
    }
    if (evaluated > static_cast<double>(kMaxTokensPerStep)) {
      reader_.report("eval_steps",
                     fmt::format("eval_steps * dp * val_batch_size * T of at most {} tokens", kMaxTokensPerStep),
                     fmt::format("it is {:.3g}: lower eval_steps or val_batch_size", evaluated));
    }
    check_model_size(config_, reader_, "model_config.model_dimension", "model_config.T");
  }

  void keep_values() {
    for (const Key& key : kSchema) {
      const Json& parent = key.section.empty() ? document_.root : document_.root.at(std::string(key.section));
      const std::string path = json_path(key.section, key.name);
      config_.values.push_back({path, parent.at(std::string(key.name)), document_.source_of(path)});
    }
  }

  void write_notes() {
    auto note = [&](std::string_view path, std::string_view value, std::string_view text) {
      config_.notes.push_back(fmt::format("{} = {}: {}", path, Json(std::string(value)).dump(), text));
    };
    if (config_.model_dtype == "float16")
      note("model_config.model_dtype", config_.model_dtype, "simulated devices compute in it; a run can't");
    note("data_config.bucket_name", config_.data.bucket_name,
         "no bucket is opened; --data FILE gives the text or tokens");
    for (auto [path, value] :
         {std::pair<std::string_view, const std::string&>{"process_path", config_.data.process_path},
          {"train_folder_name", config_.data.train_folder_name},
          {"val_folder_name", config_.data.val_folder_name}}) {
      if (value.find("://") != std::string::npos) {
        note(fmt::format("data_config.{}", path), value, "not opened; --data FILE gives the text or tokens");
      }
    }
    if (config_.output_dir.starts_with("gs://")) {
      note("output_dir", config_.output_dir,
           fmt::format("no bucket is written; the run is saved in runs/{}", config_.name));
    }
    if (config_.wandb) {
      config_.notes.push_back("wandb = true: nothing is sent; a line per step is printed, as JSON with --json");
    }
    if (config_.inference.top_k > dimensions_.vocab_size) {
      config_.notes.push_back(
          fmt::format("inference_config.top_k = {}: more than vocab_size = {}, so every token is a candidate",
                      config_.inference.top_k, dimensions_.vocab_size));
    }
  }

  static std::int64_t nearest_divisor(std::int64_t number, std::int64_t to) {
    std::int64_t nearest = 1;
    for (std::int64_t d = 1; d <= number; ++d) {
      if (number % d == 0 && std::abs(d - to) < std::abs(nearest - to)) nearest = d;
    }
    return nearest;
  }

  // A local directory, or a bucket with a name. Other schemes can't have been meant.
  static bool is_place(const std::string& place) {
    constexpr std::string_view kBucket = "gs://";
    if (place.starts_with(kBucket)) return place.size() > kBucket.size() && place[kBucket.size()] != '/';
    return !place.empty() && place.find("://") == std::string::npos;
  }

  const JsonDocument& document_;
  JsonReader reader_;
  ObjectReader top_;
  TrainingConfig config_;
  JaxformerDimensions dimensions_;
  bool has_model_T_ = false, has_batch_ = false, has_mesh_ = false, has_grad_step_ = false, has_microbatches_ = false;
};

}  // namespace

TrainingConfig read_jaxformer(const JsonDocument& document) { return ConfigReader(document).read(); }

}  // namespace meshwright
