// What is trained and how: a model, and batch, sequence length, learning rate, steps. Read from JAXformer's schema, which says
// all of it (model/families/jaxformer_config.h), or from a model's own file (a Hugging Face config.json as published, or
// model/families/decoder.h's) beside which an object "training" may say the rest, every key of which has a default.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "model/input/json_reader.h"
#include "model/program/mesh.h"
#include "model/program/op.h"
#include "model/spec.h"

namespace meshwright {

// Warm-up, then a cosine down to end_lr: schedule(t) of semantics section 9.
struct LrSchedule {
  double max_lr = 0;
  double min_lr = 0;  // where the warm-up begins
  double end_lr = 0;
  std::int64_t warmup_steps = 0;
  std::int64_t end_steps = 1;  // the step from which on end_lr holds; above warmup_steps

  bool operator==(const LrSchedule&) const = default;
};

// Learning rate of step t = 0, 1, ...:
//   t < warmup_steps:  min_lr + (max_lr - min_lr) * t / warmup_steps
//   else:              max_lr * ((1 - r) * (1 + cos(pi * min(t - warmup_steps, D) / D)) / 2 + r),
//                      r = end_lr / max_lr, D = end_steps - warmup_steps
// optax.warmup_cosine_decay_schedule.
double learning_rate(const LrSchedule& schedule, std::int64_t step);

// Where JAXformer keeps its shards in a bucket. Read and checked only: the data are given by --data.
struct DataConfig {
  std::string bucket_name, process_path, train_folder_name, val_folder_name;

  bool operator==(const DataConfig&) const = default;
};

// Sample generation.
struct InferenceConfig {
  std::string prompt;
  std::int64_t batch_size = 1;
  std::int64_t top_k = 1;
  double temperature = 1;
  std::int64_t n_devices = 1;
  std::int64_t max_tokens = 1;
  bool use_cache = true;

  bool operator==(const InferenceConfig&) const = default;
};

// One value of a configuration and where it came from: the file's name, or "--set".
struct ConfigValue {
  std::string path;  // model_config.n_head
  Json value;
  std::string source;
};

struct TrainingConfig {
  std::string name;         // also names the run's folder: letters, digits, '.', '_', '-'
  std::string model_dtype;  // "bfloat16", "float16" or "float32"
  ModelSpec model;
  std::string family;                // that weight_map() of model/families/weights.h knows; empty: none
  std::int64_t sequence_length = 1;  // T, tokens
  std::int64_t sequences = 1;        // of a step, whatever the mesh

  // The mesh and the microbatches that the configuration names itself; a model's own file has none.
  bool has_plan = true;
  MeshShape mesh;
  std::int64_t train_batch_size = 1;  // sequences of one dp shard and accumulation step
  std::int64_t val_batch_size = 1;    // the same of an evaluation batch
  std::int64_t microbatches = 1;      // micro_batch_size: the microbatches of a dp shard, not their size
  std::int64_t grad_step = 1;         // accumulation steps

  LrSchedule lr;
  AdamSpec adam;
  double grad_clip_norm = 1;  // largest global norm of the gradients; 0: any
  double alpha = 0;           // weight of the balance loss
  std::int64_t seed = 0;
  std::int64_t training_steps = 1;
  std::int64_t checkpoint_steps = 1;
  std::int64_t eval_steps = 1;  // batches of one evaluation

  DataConfig data;
  InferenceConfig inference;
  std::string output_dir;
  bool wandb = false;

  std::vector<ConfigValue> values;  // every value, in the schema's order
  std::vector<std::string> notes;   // for the user: fields that point elsewhere and what replaces them

  std::int64_t tokens_per_step() const { return sequences * sequence_length; }

  // Steps that a flat stream of `shard_tokens` tokens feeds: floor((n - 1) / tokens_per_step()); the rest is
  // dropped.
  std::int64_t steps_in_shard(std::int64_t shard_tokens) const;

  // JAXformer's cadence: an evaluation every checkpoint_steps steps, a checkpoint and a sample every ten
  // times that, both at step 0, too.
  bool evaluates_after(std::int64_t step) const { return step % checkpoint_steps == 0; }
  bool checkpoints_after(std::int64_t step) const { return step % (10 * checkpoint_steps) == 0; }
  // Sequences of one batch of an evaluation, whatever the mesh of the plan.
  std::int64_t evaluation_sequences() const { return mesh.dp * val_batch_size; }
  // Tokens of one evaluation: eval_steps * dp * val_batch_size * T.
  std::int64_t evaluation_tokens() const { return eval_steps * evaluation_sequences() * sequence_length; }
};

// What commands let set without knowing a file's schema.
struct Shortcuts {
  std::optional<std::int64_t> batch, tokens, seed;  // sequences of a step, tokens of a sequence
  std::string dtype;                                // empty: not set
};

// Reads a configuration; `overrides` are texts "a.b=value" (--set). Throws InputError. A model's own file is named by its file.
TrainingConfig read_config(const std::filesystem::path& file, const std::vector<std::string>& overrides = {},
                           const Shortcuts& shortcuts = {});

// The same for a document that is in memory already.
TrainingConfig read_config(JsonDocument document, const std::vector<std::string>& overrides = {},
                           const Shortcuts& shortcuts = {});

// The resolved configuration, key for key in the schema's order: reading it again gives an equal one.
OrderedJson to_json(const TrainingConfig& config);

// Whether a run's folder may be called so: 1 to 100 letters, digits, '.', '_' or '-', not beginning with '.'.
bool is_run_name(const std::string& name);

// Reports a model that is too large for exact counting: beyond 1e13 parameters, or 1e18 FLOPs for a sequence forward.
// `width`, `tokens`: the paths of the values to lower.
void check_model_size(const TrainingConfig& config, JsonReader& reader, const std::string& width,
                      const std::string& tokens);

}  // namespace meshwright
