// Text to token ids and back, with SentencePiece (https://github.com/google/sentencepiece): byte-pair
// encoding with byte fallback, so that any text comes back exactly: newlines, runs of spaces and unknown
// characters included.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "executor/data/cache.h"

namespace meshwright {

// Smallest vocabulary that can be asked for: 256 bytes, the unknown token, and room for characters.
constexpr int kSmallestVocabulary = 300;

class Tokenizer {
 public:
  // A tokenizer trained on `text` with at most `vocab` entries (fewer if the text has not enough to learn
  // from). It is kept in `cache` under a name made from the text, `vocab` and the way of training, and loaded
  // from there the next time; the same text and vocab give the same tokenizer. A kept file that can't be
  // loaded, or was altered, is trained anew. Of the text's characters, the most frequent are learnt, as many as leave room for
  // words; the others become bytes. Throws InputError if vocab is below kSmallestVocabulary, or there is nothing to learn from.
  static Tokenizer trained_on(std::string_view text, int vocab, const Cache& cache);

  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  int vocab_size() const;          // token ids are below it
  const std::string& key() const;  // names the tokenizer in file names
  std::vector<std::int32_t> encode(std::string_view text) const;
  std::string decode(std::span<const std::int32_t> tokens) const;  // decode(encode(text)) == text

  // The same as encode(text), kept in `cache`.
  std::vector<std::int32_t> encode_cached(std::string_view text, const Cache& cache) const;

 private:
  struct Model;
  explicit Tokenizer(std::unique_ptr<Model> model);
  std::unique_ptr<Model> model_;
};

}  // namespace meshwright
