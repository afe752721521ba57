#include "executor/data/tokenizer.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "executor/data/cache.h"
#include "executor/data/npy.h"
#include "model/input/content_key.h"
#include "model/input/diagnostics.h"

namespace meshwright {
namespace {

// Options that make the tokenizer what it is; part of the key of what is kept. One thread: the result must
// not depend on how many there are. Identity normalisation and no dummy prefix: text comes back as it was.
const std::unordered_map<std::string, std::string>& training_options() {
  static const std::unordered_map<std::string, std::string> options{
      {"model_type", "bpe"},
      {"byte_fallback", "true"},
      {"hard_vocab_limit", "false"},
      {"character_coverage", "0.9995"},
      {"normalization_rule_name", "identity"},
      {"remove_extra_whitespaces", "false"},
      {"add_dummy_prefix", "false"},
      {"split_digits", "true"},
      {"bos_id", "-1"},
      {"eos_id", "-1"},
      {"pad_id", "-1"},
      {"unk_id", "0"},
      {"num_threads", "1"},
      {"max_sentence_length", "8192"},
      {"minloglevel", "2"},
  };
  return options;
}

// A longer text is learnt from every n-th of its sentences, so that training takes seconds whatever its
// length.
constexpr std::size_t kTrainingBytes = std::size_t{2} << 20;

std::string training_key() {
  std::vector<std::string> words{"bytes=" + std::to_string(kTrainingBytes) + ";"};
  for (const auto& [name, value] : training_options()) words.push_back(name + "=" + value + ";");
  std::sort(words.begin(), words.end());
  std::string key;
  for (const std::string& word : words) key += word;
  return key;
}

// Begin of a text that is one line, or as much of a long one as a training sentence may have, cut between
// words if it can be and between characters in any case (bytes 10xxxxxx go on a UTF-8 character).
std::string_view first_sentence(std::string_view text) {
  constexpr std::size_t kLongest = 4096;
  const std::string_view line = text.substr(0, text.find('\n'));
  if (line.size() <= kLongest) return line;
  const std::size_t space = line.rfind(' ', kLongest);
  std::size_t end = space == std::string_view::npos || space == 0 ? kLongest : space;
  while (end > 1 && (static_cast<unsigned char>(line[end]) & 0xc0) == 0x80) --end;
  return line.substr(0, end);
}

// Sentences of a text, without their newlines (which become byte tokens), every n-th of them.
class Sentences : public sentencepiece::SentenceIterator {
 public:
  explicit Sentences(std::string_view text) : rest_(text), every_(1 + text.size() / (kTrainingBytes + 1)) { Next(); }
  bool done() const override { return sentence_.empty(); }
  void Next() override {
    sentence_.clear();
    for (std::size_t skip = every_; sentence_.empty() && !rest_.empty();) {
      const std::string_view next = first_sentence(rest_);
      rest_.remove_prefix(next.empty() ? 1 : next.size());
      if (!next.empty() && --skip == 0) sentence_ = next;
    }
  }
  const std::string& value() const override { return sentence_; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  std::string_view rest_;
  std::size_t every_;
  std::string sentence_;  // empty: there are no more
};

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string train(std::string_view text, int vocab) {
  auto options = training_options();
  options["vocab_size"] = std::to_string(vocab);
  // Every character must find room beside the 256 bytes; a text with many rare ones has them as bytes
  // instead.
  std::string model;
  for (double coverage : {0.9995, 0.995, 0.98, 0.9}) {
    options["character_coverage"] = std::to_string(coverage);
    Sentences sentences(text);
    const auto status = sentencepiece::SentencePieceTrainer::Train(options, &sentences, &model);
    if (status.ok()) return model;
    if (coverage == 0.9) {
      throw InputError(Diagnostic{.source = "tokenizer",
                                  .path = "vocab_size",
                                  .value = std::to_string(vocab),
                                  .allowed = "a size that a tokenizer can be trained to on this text",
                                  .hint = status.ToString()});
    }
  }
  return model;
}

}  // namespace

struct Tokenizer::Model {
  sentencepiece::SentencePieceProcessor processor;
  std::string key;
  std::int32_t newline = 0;
};

Tokenizer::Tokenizer(std::unique_ptr<Model> model) : model_(std::move(model)) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

Tokenizer Tokenizer::trained_on(std::string_view text, int vocab, const std::filesystem::path& cache) {
  if (vocab < kSmallestVocabulary) {
    throw InputError(
        Diagnostic{.source = "tokenizer",
                   .path = "vocab_size",
                   .value = std::to_string(vocab),
                   .allowed = std::to_string(kSmallestVocabulary) + " or more, to train a tokenizer on text",
                   .hint = "or give token ids below it as a .npy file with --data"});
  }
  if (text.find_first_not_of(" \n\r\t") == std::string_view::npos) {
    throw InputError(Diagnostic{"tokenizer", "", "no text", "a text to train on", "is the --data file empty?"});
  }
  auto model = std::make_unique<Model>();
  model->key = content_key(text, training_key() + std::to_string(vocab)) + "-" + std::to_string(vocab);
  const std::filesystem::path path = cache / ("tokenizer-" + model->key + ".model");
  std::string bytes = read_file(path);
  if (bytes.empty() || !model->processor.LoadFromSerializedProto(bytes).ok()) {
    bytes = train(text, vocab);
    write_atomically(
        path, [&](const std::filesystem::path& temporary) { std::ofstream(temporary, std::ios::binary) << bytes; });
    const auto status = model->processor.LoadFromSerializedProto(bytes);
    if (!status.ok()) throw std::runtime_error("the tokenizer just trained can't be loaded: " + status.ToString());
  }
  model->newline = model->processor.PieceToId("<0x0A>");
  return Tokenizer(std::move(model));
}

int Tokenizer::vocab_size() const { return model_->processor.GetPieceSize(); }
const std::string& Tokenizer::key() const { return model_->key; }

// No entry of the vocabulary has a space or a newline anywhere but at its begin (SentencePiece's
// split_by_whitespace), so a text is the concatenation of its words, each with the one space before it, and
// most words have been seen before.
std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> tokens;
  tokens.reserve(text.size() / 3);
  std::unordered_map<std::string_view, std::vector<int>> known;
  while (!text.empty()) {
    if (text[0] == '\n') {
      tokens.push_back(model_->newline);
      text.remove_prefix(1);
      continue;
    }
    const std::string_view word = text.substr(0, text.find_first_of(" \n", 1));
    auto [entry, is_new] = known.try_emplace(word);
    if (is_new) {
      const auto status = model_->processor.Encode({word.data(), word.size()}, &entry->second);
      if (!status.ok()) throw std::runtime_error("SentencePiece: " + status.ToString());
    }
    tokens.insert(tokens.end(), entry->second.begin(), entry->second.end());
    text.remove_prefix(word.size());
  }
  return tokens;
}

std::string Tokenizer::decode(std::span<const std::int32_t> tokens) const {
  std::string text;
  const auto status = model_->processor.Decode(std::vector<int>(tokens.begin(), tokens.end()), &text);
  if (!status.ok()) throw std::runtime_error("SentencePiece: " + status.ToString());
  return text;
}

std::vector<std::int32_t> Tokenizer::encode_cached(std::string_view text, const std::filesystem::path& cache) const {
  const std::filesystem::path path = cache / ("tokens-" + content_key(text, key()) + "-" + key() + ".npy");
  if (std::filesystem::exists(path)) {
    try {
      return read_npy_tokens(path, vocab_size());
    } catch (const InputError&) {
      // A damaged file is made anew.
    }
  }
  std::vector<std::int32_t> tokens = encode(text);
  write_atomically(path, [&](const std::filesystem::path& temporary) { write_npy_tokens(temporary, tokens); });
  return tokens;
}

}  // namespace meshwright
