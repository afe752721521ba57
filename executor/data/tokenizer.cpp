#include "executor/data/tokenizer.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "executor/data/cache.h"
#include "executor/data/utf8.h"
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

// The most frequent characters are learnt, up to this share of the entries that are not bytes; the rest is left for what is
// longer. (SentencePiece refuses a text with more, and its character_coverage must be 0.98 at least.)
constexpr int kBytes = 257;  // with the unknown token
std::size_t learnt_characters(int vocab) { return static_cast<std::size_t>(vocab - kBytes) * 3 / 4; }

std::string training_key() {
  std::vector<std::string> words{"bytes=" + std::to_string(kTrainingBytes) + ";", "characters=3/4;"};
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
std::vector<std::string_view> training_sentences(std::string_view text) {
  const std::size_t every = 1 + text.size() / (kTrainingBytes + 1);
  std::vector<std::string_view> sentences;
  for (std::size_t skip = every; !text.empty();) {
    const std::string_view next = first_sentence(text);
    text.remove_prefix(next.empty() ? 1 : next.size());
    if (next.empty() || --skip != 0) continue;
    sentences.push_back(next);
    skip = every;
  }
  return sentences;
}

// The sentences, cut at characters that are not among their `most` most frequent.
std::vector<std::string_view> without_rare_characters(const std::vector<std::string_view>& sentences,
                                                      std::size_t most) {
  std::unordered_map<char32_t, std::int64_t> counts;
  for (std::string_view rest : sentences)
    while (!rest.empty()) ++counts[next_character(rest)];
  if (counts.size() <= most) return sentences;
  std::vector<std::pair<std::int64_t, char32_t>> ranking;  // by count, downwards; ties by code point
  for (const auto& [character, count] : counts) ranking.emplace_back(-count, character);
  std::sort(ranking.begin(), ranking.end());
  for (std::size_t i = most; i < ranking.size(); ++i) counts.erase(ranking[i].second);

  std::vector<std::string_view> pieces;
  for (const std::string_view sentence : sentences) {
    std::size_t begin = 0;
    for (std::string_view rest = sentence; !rest.empty();) {
      const std::size_t at = sentence.size() - rest.size();
      if (counts.contains(next_character(rest))) continue;
      if (at > begin) pieces.push_back(sentence.substr(begin, at - begin));
      begin = sentence.size() - rest.size();
    }
    if (begin < sentence.size()) pieces.push_back(sentence.substr(begin));
  }
  return pieces;
}

class Sentences : public sentencepiece::SentenceIterator {
 public:
  explicit Sentences(const std::vector<std::string_view>& sentences) : sentences_(sentences) { load(); }
  bool done() const override { return next_ == sentences_.size(); }
  void Next() override {
    ++next_;
    load();
  }
  const std::string& value() const override { return value_; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  void load() {
    if (!done()) value_ = sentences_[next_];
  }
  const std::vector<std::string_view>& sentences_;
  std::size_t next_ = 0;
  std::string value_;
};

std::string train(std::string_view text, int vocab) {
  auto options = training_options();
  options["vocab_size"] = std::to_string(vocab);
  const std::vector<std::string_view> learnt =
      without_rare_characters(training_sentences(text), learnt_characters(vocab));
  Sentences sentences(learnt);
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(options, &sentences, &model);
  if (!status.ok()) {
    throw InputError(
        Diagnostic{.source = "tokenizer",
                   .path = "",
                   .value = "",
                   .allowed = "a text that a tokenizer of " + std::to_string(vocab) + " entries can learn from",
                   .hint = "SentencePiece says: " + status.ToString()});
  }
  return model;
}

}  // namespace

struct Tokenizer::Model {
  sentencepiece::SentencePieceProcessor processor;
  std::string key;
  std::string fingerprint;  // of the model itself
  std::int32_t newline = 0;
};

Tokenizer::Tokenizer(std::unique_ptr<Model> model) : model_(std::move(model)) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

Tokenizer Tokenizer::trained_on(std::string_view text, int vocab, const Cache& cache) {
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
  const std::string name = "tokenizer-" + model->key + ".model";
  std::optional<std::string> bytes = cache.find(name);
  if (bytes && !model->processor.LoadFromSerializedProto(*bytes).ok()) {
    cache.warn(name, "SentencePiece can't load it");
    bytes.reset();
  }
  if (!bytes) {
    bytes = train(text, vocab);
    const auto status = model->processor.LoadFromSerializedProto(*bytes);
    if (!status.ok()) throw std::runtime_error("the tokenizer just trained can't be loaded: " + status.ToString());
    cache.keep(name, *bytes);
  }
  model->fingerprint = content_key(*bytes);
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

std::vector<std::int32_t> Tokenizer::encode_cached(std::string_view text, const Cache& cache) const {
  const std::string name = "tokens-" + content_key(text, key() + model_->fingerprint) + "-" + key() + ".i32";
  if (const std::optional<std::string> kept = cache.find(name)) {
    std::vector<std::int32_t> tokens(kept->size() / sizeof(std::int32_t));
    std::memcpy(tokens.data(), kept->data(), tokens.size() * sizeof(std::int32_t));
    if (std::all_of(tokens.begin(), tokens.end(), [n = vocab_size()](std::int32_t t) { return t >= 0 && t < n; }))
      return tokens;
    cache.warn(name, "it holds what this tokenizer has no entry for");
  }
  std::vector<std::int32_t> tokens = encode(text);
  cache.keep(name, {reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof(std::int32_t)});
  return tokens;
}

}  // namespace meshwright
