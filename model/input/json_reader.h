// Strict, checked reading of JSON that users write. Everything wrong in a document is found in one pass and
// thrown as one InputError; no bytes whatsoever lead to anything but a document or an InputError.
//
//   JsonDocument document = read_json_file("system.json");
//   JsonReader reader(document);
//   ObjectReader root = reader.root();
//   std::optional<double> hbm = root.number("hbm_GiB", {.min = 0, .min_open = true});
//   if (hbm && *hbm > 1e6) reader.report("hbm_GiB", "at most 1e6", "...");
//   reader.finish();  // throws if anything was wrong; after it every optional holds a value
//   use(*hbm);
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/input/diagnostics.h"

namespace meshwright {

using Json = nlohmann::json;                 // keys sorted
using OrderedJson = nlohmann::ordered_json;  // keys as they were added, for output

constexpr std::int64_t kLargestJsonFile = 16 << 20;  // bytes
constexpr int kDeepestJson = 64;                     // nested objects and arrays

// A value, and where it and each value in it came from.
struct JsonDocument {
  std::string source;  // a file's name, "--plan"
  Json root;
  std::map<std::string, std::string> overrides;  // JSON path to the source that set it and what is below it

  const std::string& source_of(std::string_view path) const;
};

// Parses `text`. Throws InputError: syntax (path "line L, column C"), duplicate keys, nesting deeper than
// kDeepestJson, numbers beyond a double. Integers beyond 64 bits are numbers, not integers; 3.4e10 is an integer, too: a
// whole number of at most 2^53, to which a double is exact.
JsonDocument parse_json(std::string_view text, const std::string& source);

// Parses a file of at most kLargestJsonFile bytes. Throws InputError also where it can't be read.
JsonDocument read_json_file(const std::filesystem::path& file);

// Applies overrides such as "lr.max_lr=1e-3" or "name=small" in order: the value is JSON, or else a string.
// Objects on the way must exist; whether the last key may exist is for the reader to say. Throws InputError
// with all that fail.
void apply_overrides(JsonDocument& document, const std::vector<std::string>& assignments, const std::string& source);

// The path of a key in the object at `parent`: parent.key, or parent["odd key"]. Of an element: parent[3].
std::string json_path(std::string_view parent, std::string_view key);
std::string json_path(std::string_view parent, std::size_t index);

// The candidate nearest to `word` by edit distance, if at most a third of its letters (but one at least)
// differ.
std::optional<std::string> nearest_word(std::string_view word, const std::vector<std::string>& candidates);

// The hint for a word that is not known: "did you mean X?" of the nearest of the known ones, a range of texts, with `then`
// behind it; where none is near, `otherwise`.
template <class Words>
std::string did_you_mean(std::string_view word, const Words& known, std::string otherwise, std::string_view then = "") {
  const auto near = nearest_word(word, std::vector<std::string>(std::begin(known), std::end(known)));
  return near ? "did you mean " + *near + std::string(then) + "?" : otherwise;
}

struct IntegerRange {
  std::int64_t min = std::numeric_limits<std::int64_t>::min();
  std::int64_t max = std::numeric_limits<std::int64_t>::max();
};

struct NumberRange {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool min_open = false;  // min itself is not allowed
  bool max_open = false;
};

// What is allowed, in words: "an integer from 1 to 8", "a number above 0 and at most 1".
std::string describe(const IntegerRange& range);
std::string describe(const NumberRange& range);

// Whether a number is in the range; NaN and infinities are in none.
bool contains(const IntegerRange& range, std::int64_t value);
bool contains(const NumberRange& range, double value);

class JsonReader;

// One object of a document. Every getter reports what is wrong and then returns nothing: a missing key,
// another type, a value out of range. A key that no getter and no has() named is unknown, which finish()
// reports. A handle: cheap to copy, valid as long as its JsonReader.
class ObjectReader {
 public:
  std::optional<std::int64_t> integer(std::string_view key, IntegerRange range, std::string_view hint = "");
  std::optional<double> number(std::string_view key, NumberRange range, std::string_view hint = "");
  std::optional<bool> boolean(std::string_view key, std::string_view hint = "");
  std::optional<std::string> text(std::string_view key, std::string_view hint = "");
  std::optional<std::string> one_of(std::string_view key, const std::vector<std::string>& choices,
                                    std::string_view hint = "");
  // An array of `count` integers, each in `range`; of any number of them without `count`.
  std::optional<std::vector<std::int64_t>> integers(std::string_view key, std::optional<std::size_t> count,
                                                    IntegerRange range, std::string_view hint = "");
  // An array of strings, each one of `choices`.
  std::optional<std::vector<std::string>> words(std::string_view key, const std::vector<std::string>& choices,
                                                std::string_view hint = "");
  std::optional<ObjectReader> object(std::string_view key, std::string_view hint = "");
  std::optional<std::vector<ObjectReader>> objects(std::string_view key, std::string_view hint = "");

  // The same for optional keys: `otherwise` where it is not given(). Also where the value is refused, but then finish()
  // throws.
  std::int64_t integer_or(std::string_view key, std::int64_t otherwise, IntegerRange range, std::string_view hint = "");
  double number_or(std::string_view key, double otherwise, NumberRange range, std::string_view hint = "");
  bool boolean_or(std::string_view key, bool otherwise, std::string_view hint = "");
  std::string one_of_or(std::string_view key, std::string_view otherwise, const std::vector<std::string>& choices,
                        std::string_view hint = "");

  bool has(std::string_view key);                      // for optional keys
  bool given(std::string_view key);                    // the same, unless null stands there and means NullIs::kMissing
  std::string value_text(std::string_view key) const;  // the value at a key as diagnostics say it; empty: there is none
  std::vector<std::string> keys() const;               // for objects whose keys are names that the user chooses
  std::vector<std::string> unknown_keys() const;       // so far; for documents in which finish() is not to refuse them
  const std::string& path() const;                     // of this object
  std::string path(std::string_view key) const;

 private:
  friend class JsonReader;
  struct Node;
  ObjectReader(JsonReader& reader, Node& node) : reader_(&reader), node_(&node) {}
  const Json* find(std::string_view key, std::string_view allowed, std::string_view hint);
  void refuse(std::string_view key, const Json& value, std::string allowed, std::string_view hint);

  JsonReader* reader_;
  Node* node_;
};

// What null means as the value of an optional key.
enum class NullIs : std::uint8_t { kAValue, kMissing };

// Collects what is wrong while a document is read. Keeps a reference to the document, which must outlive it.
class JsonReader {
 public:
  explicit JsonReader(const JsonDocument& document, NullIs null = NullIs::kAValue);
  ~JsonReader();
  JsonReader(const JsonReader&) = delete;
  JsonReader& operator=(const JsonReader&) = delete;

  // Throws InputError if the document is not an object: there is nothing more to find then.
  ObjectReader root();

  // Reports a value that is wrong for a reason the getters don't know, such as its relation to another.
  // `path`: of a value that was read; its value and source are looked up.
  void report(const std::string& path, std::string allowed, std::string hint);

  // Reports unknown keys, then throws InputError if anything was reported.
  void finish();

 private:
  friend class ObjectReader;
  ObjectReader open(const Json& object, std::string path);

  const JsonDocument& document_;
  NullIs null_;
  std::vector<std::unique_ptr<ObjectReader::Node>> nodes_;  // ObjectReaders point at them
  std::map<std::string, const Json*> read_;
  std::vector<Diagnostic> diagnostics_;
};

}  // namespace meshwright
