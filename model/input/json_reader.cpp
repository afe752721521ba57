#include "model/input/json_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cctype>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <numeric>
#include <set>
#include <system_error>
#include <utility>

namespace meshwright {
namespace {

constexpr std::size_t kLongestShown = 80;
constexpr std::size_t kMostUnknownKeys = 20;

// At most kLongestShown bytes of `text`, cut between characters.
std::string shortened(std::string text) {
  if (text.size() <= kLongestShown) return text;
  std::size_t end = kLongestShown - 3;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;  // not within a UTF-8 sequence
  return text.substr(0, end) + "...";
}

// Never throws on strings that are not UTF-8, such as those of a command line.
std::string dump(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

std::string shown(const Json& value) {
  // A container may be the whole of a large document.
  if (value.is_object() && value.size() > 8) return fmt::format("(an object of {} keys)", value.size());
  if (value.is_array() && value.size() > 32) return fmt::format("(an array of {} elements)", value.size());
  return shortened(dump(value));
}

std::string_view type_of(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::object:
      return "an object";
    case Json::value_t::array:
      return "an array";
    case Json::value_t::string:
      return "a string";
    case Json::value_t::boolean:
      return "a boolean";
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned:
      return "an integer";
    case Json::value_t::number_float:
      return "a number";
    case Json::value_t::binary:
    case Json::value_t::discarded:
      break;
  }
  return "nothing";
}

// "line 3, column 5" of the byte at `at`.
std::string place_in(std::string_view text, std::size_t at) {
  const std::string_view before = text.substr(0, at);
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const auto line_begin = before.rfind('\n');
  const std::size_t column = 1 + at - (line_begin == std::string_view::npos ? 0 : line_begin + 1);
  return fmt::format("line {}, column {}", line, column);
}

// Builds the value itself, instead of Json::parse, to see duplicate keys and depth, which that swallows.
class Builder final : public nlohmann::json_sax<Json> {
 public:
  Builder(std::string_view text, const std::string& source) : text_(text), source_(source) {}

  Json take() { return std::move(root_); }
  std::vector<Diagnostic>& diagnostics() { return diagnostics_; }

  bool null() override { return place(nullptr); }
  bool boolean(bool value) override { return place(value); }
  bool number_integer(number_integer_t value) override { return place(value); }
  bool number_unsigned(number_unsigned_t value) override { return place(value); }
  bool number_float(number_float_t value, const string_t&) override { return place(value); }
  bool string(string_t& value) override { return place(std::move(value)); }
  bool binary(binary_t&) override { return false; }  // never in text

  bool start_object(std::size_t) override { return enter(Json::object()); }
  bool start_array(std::size_t) override { return enter(Json::array()); }
  bool end_object() override { return leave(); }
  bool end_array() override { return leave(); }

  bool key(string_t& value) override {
    Level& level = open_.back();
    level.key = value;
    if (level.value.contains(value)) {
      diagnostics_.push_back(
          {source_, json_path(path_of_open(), value), "given twice", "every key once", "remove one of the two"});
      if (diagnostics_.size() >= kMostUnknownKeys) return false;
    }
    return true;
  }

  bool parse_error(std::size_t position, const std::string& last_token, const Json::exception& error) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 7: syntax error while ...": the words
    // at the end.
    std::string reason = error.what();
    if (const auto id_end = reason.find("] "); id_end != std::string::npos) reason.erase(0, id_end + 2);
    if (reason.starts_with("parse error at ")) {
      if (const auto place_end = reason.find(": "); place_end != std::string::npos) reason.erase(0, place_end + 2);
    }
    const std::size_t end = std::min(position > 0 ? position - 1 : 0, text_.size());
    const bool over_the_end = position > text_.size();
    diagnostics_.push_back({source_, place_in(text_, end), over_the_end ? "(end of the text)" : shown(Json(last_token)),
                            "JSON", shortened_reason(reason)});
    return false;
  }

 private:
  struct Level {
    Json value;
    std::string key;  // the last one read, of an object
  };

  static std::string shortened_reason(const std::string& reason) {
    constexpr std::size_t kLongestReason = 200;
    // Json(reason) in place of reason: it may quote bytes that are not UTF-8.
    const std::string text = dump(Json(reason.substr(0, kLongestReason)));
    return text.substr(1, text.size() - 2);
  }

  std::string path_of_open() const {
    std::string path;
    for (std::size_t i = 0; i + 1 < open_.size(); ++i) {
      path = open_[i].value.is_object() ? json_path(path, open_[i].key) : json_path(path, open_[i].value.size());
    }
    return path;
  }

  bool enter(Json container) {
    if (open_.size() >= static_cast<std::size_t>(kDeepestJson)) {
      diagnostics_.push_back({source_, "", "", fmt::format("at most {} nested objects and arrays", kDeepestJson),
                              "no file that is read here needs to be as deep"});
      return false;
    }
    open_.push_back({std::move(container), {}});
    return true;
  }

  bool leave() {
    Json value = std::move(open_.back().value);
    open_.pop_back();
    return place(std::move(value));
  }

  bool place(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
    } else if (Level& level = open_.back(); level.value.is_object()) {
      level.value[level.key] = std::move(value);
    } else {
      level.value.push_back(std::move(value));
    }
    return true;
  }

  std::string_view text_;
  const std::string& source_;
  std::vector<Level> open_;
  Json root_;
  std::vector<Diagnostic> diagnostics_;
};

// Whether `value` is an integer of 64 bits with sign, or a whole number that a double holds exactly, and which.
std::optional<std::int64_t> as_integer(const Json& value) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<std::uint64_t>();
    if (number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) return std::nullopt;
    return static_cast<std::int64_t>(number);
  }
  if (value.is_number_integer()) return value.get<std::int64_t>();
  constexpr double kExact = 0x1p53;
  if (const double number = value.is_number_float() ? value.get<double>() : 0.5;
      number == std::floor(number) && std::abs(number) <= kExact)
    return static_cast<std::int64_t>(number);
  return std::nullopt;
}

// Letters to insert, remove, replace, or to exchange with the next one (optimal string alignment), by rows.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before(b.size() + 1), above(b.size() + 1), row(b.size() + 1);
  std::iota(above.begin(), above.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], before[j - 2] + 1);
    }
    before.swap(above);
    above.swap(row);
  }
  return above[b.size()];
}

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

}  // namespace

const std::string& JsonDocument::source_of(std::string_view path) const {
  for (std::string_view at = path; !at.empty();) {
    if (const auto found = overrides.find(std::string(at)); found != overrides.end()) return found->second;
    const auto cut = at.find_last_of(".[");
    at = at.substr(0, cut == std::string_view::npos ? 0 : cut);
  }
  return source;
}

JsonDocument parse_json(std::string_view text, const std::string& source) {
  Builder builder(text, source);
  if (text.size() > static_cast<std::size_t>(kLargestJsonFile)) {
    throw InputError({source, "", fmt::format("{} bytes", text.size()),
                      fmt::format("at most {} bytes", kLargestJsonFile), "is this the file that you meant?"});
  }
  // The parser takes a null byte for the end of the text, and whatever follows would be accepted unread.
  if (const std::size_t null = text.find('\0'); null != std::string_view::npos) {
    throw InputError({source, place_in(text, null), "a null byte", "JSON, which is text in UTF-8",
                      "is the file damaged, or in UTF-16? Save it as UTF-8"});
  }
  const bool whole = Json::sax_parse(text.begin(), text.end(), &builder);
  if (!builder.diagnostics().empty()) throw InputError(std::move(builder.diagnostics()));
  assert(whole);
  (void)whole;
  return {source, builder.take(), {}};
}

JsonDocument read_json_file(const std::filesystem::path& file) {
  const std::string source = file.string();
  std::error_code error;
  const auto status = std::filesystem::status(file, error);
  if (status.type() == std::filesystem::file_type::not_found) {
    throw InputError({source, "", "", "a file that exists", "check the name, and the directory you are in"});
  }
  if (std::filesystem::is_directory(status)) {
    throw InputError({source, "", "", "a file", "this is a directory: name a JSON file in it"});
  }
  errno = 0;
  std::ifstream in(file, std::ios::binary);
  std::string text;
  std::vector<char> piece(1 << 16);
  while (in && text.size() <= static_cast<std::size_t>(kLargestJsonFile)) {  // a device may have no end
    in.read(piece.data(), static_cast<std::streamsize>(piece.size()));
    text.append(piece.data(), static_cast<std::size_t>(in.gcount()));
  }
  if (!in && !in.eof()) {
    const std::string reason = errno != 0 ? std::strerror(errno) : "can't be read";
    throw InputError({source, "", "", "a file that can be read", reason});
  }
  if (text.size() > static_cast<std::size_t>(kLargestJsonFile)) {
    throw InputError(
        {source, "", "", fmt::format("at most {} bytes", kLargestJsonFile), "is this the file that you meant?"});
  }
  return parse_json(text, source);
}

void apply_overrides(JsonDocument& document, const std::vector<std::string>& assignments, const std::string& source) {
  std::vector<Diagnostic> diagnostics;
  for (const std::string& assignment : assignments) {
    const auto equals = assignment.find('=');
    const std::string path = assignment.substr(0, equals);
    if (equals == std::string::npos || path.empty() || path.front() == '.' || path.back() == '.' ||
        path.find("..") != std::string::npos) {
      diagnostics.push_back(
          {source, "", shortened(dump(assignment)), "key=value, with dots between keys", "for example lr.max_lr=1e-3"});
      continue;
    }
    const std::string text = assignment.substr(equals + 1);
    Json value;
    if (Json::accept(text)) {
      try {
        value = parse_json(text, source).root;
      } catch (const InputError& error) {
        for (Diagnostic found : error.diagnostics()) {
          found.path = found.path.empty() ? path : path + "." + found.path;
          diagnostics.push_back(std::move(found));
        }
        continue;
      }
    } else {
      value = text;
      try {
        (void)value.dump();
      } catch (const Json::type_error&) {  // JSON text is UTF-8, and so is what is saved with a run
        diagnostics.push_back({source, path, shown(value), "text in UTF-8", "retype the value"});
        continue;
      }
    }

    Json* object = &document.root;
    std::string here;  // path of `object`
    std::size_t begin = 0;
    for (;;) {
      if (!object->is_object()) {
        diagnostics.push_back({source, path, shown(value),
                               fmt::format("the path of a key; {} is {}", here, type_of(*object)),
                               fmt::format("set the whole of it: {}=...", here)});
        break;
      }
      const auto dot = path.find('.', begin);
      const std::string key = path.substr(begin, dot == std::string::npos ? std::string::npos : dot - begin);
      here = json_path(here, key);
      if (dot == std::string::npos) {
        (*object)[key] = std::move(value);
        // What was set below this path before is no longer there.
        std::erase_if(document.overrides, [&](const auto& entry) {
          return entry.first.starts_with(here) && entry.first.size() > here.size() &&
                 (entry.first[here.size()] == '.' || entry.first[here.size()] == '[');
        });
        document.overrides[here] = source;
        break;
      }
      const auto next = object->find(key);
      if (next == object->end()) {
        std::vector<std::string> names;
        for (const auto& item : object->items()) names.push_back(item.key());
        diagnostics.push_back({source, path, shown(value), "the path of a key; there is no " + here,
                               did_you_mean(key, names, "known here: " + shortened(join(names)))});
        break;
      }
      object = &*next;
      begin = dot + 1;
    }
  }
  if (!diagnostics.empty()) throw InputError(std::move(diagnostics));
}

std::string json_path(std::string_view parent, std::string_view key) {
  const bool plain = !key.empty() && std::all_of(key.begin(), key.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '_' || c == '-';
  });
  if (!plain) return fmt::format("{}[{}]", parent, shortened(dump(Json(std::string(key)))));
  return parent.empty() ? std::string(key) : fmt::format("{}.{}", parent, key);
}

std::string json_path(std::string_view parent, std::size_t index) { return fmt::format("{}[{}]", parent, index); }

std::string describe(const IntegerRange& range) {
  const bool has_min = range.min != std::numeric_limits<std::int64_t>::min();
  const bool has_max = range.max != std::numeric_limits<std::int64_t>::max();
  if (has_min && has_max) return fmt::format("an integer from {} to {}", range.min, range.max);
  if (has_min) return fmt::format("an integer of at least {}", range.min);
  if (has_max) return fmt::format("an integer of at most {}", range.max);
  return "an integer";
}

std::string describe(const NumberRange& range) {
  std::string text = "a number";
  if (std::isfinite(range.min)) text += fmt::format(" {} {}", range.min_open ? "above" : "of at least", range.min);
  if (std::isfinite(range.max)) {
    text += fmt::format("{} {} {}", std::isfinite(range.min) ? " and" : "", range.max_open ? "below" : "at most",
                        range.max);
  }
  return text;
}

bool contains(const IntegerRange& range, std::int64_t value) { return range.min <= value && value <= range.max; }

bool contains(const NumberRange& range, double value) {
  return std::isfinite(value) && (range.min_open ? range.min < value : range.min <= value) &&
         (range.max_open ? value < range.max : value <= range.max);
}

std::optional<std::string> nearest_word(std::string_view word, const std::vector<std::string>& candidates) {
  constexpr std::size_t kLongestWord = 64;  // the distance costs the product of the lengths
  if (word.size() > kLongestWord) return std::nullopt;
  std::optional<std::string> nearest;
  std::size_t least = std::max<std::size_t>(1, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    if (candidate.size() > kLongestWord) continue;
    if (const std::size_t distance = edit_distance(word, candidate); distance < least) {
      least = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

struct ObjectReader::Node {
  Node(const Json* object, std::string path) : object(object), path(std::move(path)) {}

  const Json* object;
  std::string path;
  std::set<std::string, std::less<>> known;
  std::vector<std::string> known_in_order;
};

const Json* ObjectReader::find(std::string_view key, std::string_view allowed, std::string_view hint) {
  if (!has(key)) {
    reader_->diagnostics_.push_back({reader_->document_.source_of(path()), path(key), "(missing)", std::string(allowed),
                                     hint.empty() ? "add it" : "add it: " + std::string(hint)});
    return nullptr;
  }
  const Json& value = *node_->object->find(key);
  reader_->read_[path(key)] = &value;
  return &value;
}

void ObjectReader::refuse(std::string_view key, const Json& value, std::string allowed, std::string_view hint) {
  std::string remedy(hint);
  if (remedy.empty()) remedy = fmt::format("this is {}", type_of(value));
  reader_->diagnostics_.push_back(
      {reader_->document_.source_of(path(key)), path(key), shown(value), std::move(allowed), std::move(remedy)});
}

std::optional<std::int64_t> ObjectReader::integer(std::string_view key, IntegerRange range, std::string_view hint) {
  const Json* value = find(key, describe(range), hint);
  if (value == nullptr) return std::nullopt;
  const auto number = as_integer(*value);
  if (!number || !contains(range, *number)) {
    const std::string_view remedy = !value->is_number() ? ""
                                    : value->is_number_float() && !number
                                        ? "this is a number, but no integer of 64 bits"
                                    : hint.empty() ? "change it to one in this range"
                                                   : hint;
    refuse(key, *value, describe(range), remedy);
    return std::nullopt;
  }
  return number;
}

std::optional<double> ObjectReader::number(std::string_view key, NumberRange range, std::string_view hint) {
  const Json* value = find(key, describe(range), hint);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number() || !contains(range, value->get<double>())) {
    refuse(key, *value, describe(range),
           value->is_number() ? (hint.empty() ? "change it to one in this range" : hint) : "");
    return std::nullopt;
  }
  return value->get<double>();
}

std::optional<bool> ObjectReader::boolean(std::string_view key, std::string_view hint) {
  const Json* value = find(key, "true or false", hint);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) {
    refuse(key, *value, "true or false", value->is_string() ? "write it without quotes" : "");
    return std::nullopt;
  }
  return value->get<bool>();
}

std::optional<std::string> ObjectReader::text(std::string_view key, std::string_view hint) {
  const Json* value = find(key, "a string", hint);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    refuse(key, *value, "a string", fmt::format("this is {}: put it in double quotes", type_of(*value)));
    return std::nullopt;
  }
  return value->get<std::string>();
}

std::optional<std::string> ObjectReader::one_of(std::string_view key, const std::vector<std::string>& choices,
                                                std::string_view hint) {
  const std::string allowed = (choices.size() > 1 ? "one of " : "only ") + join(choices);
  const Json* value = find(key, allowed, hint);
  if (value == nullptr) return std::nullopt;
  if (value->is_string()) {
    const auto word = value->get<std::string>();
    if (std::find(choices.begin(), choices.end(), word) != choices.end()) return word;
    refuse(key, *value, allowed, did_you_mean(word, choices, std::string(hint.empty() ? "choose one of these" : hint)));
    return std::nullopt;
  }
  refuse(key, *value, allowed, "");
  return std::nullopt;
}

std::optional<std::vector<std::int64_t>> ObjectReader::integers(std::string_view key, std::optional<std::size_t> count,
                                                                IntegerRange range, std::string_view hint) {
  const std::string allowed = count ? fmt::format("an array of {} elements, each {}", *count, describe(range))
                                    : fmt::format("an array, each element {}", describe(range));
  const Json* value = find(key, allowed, hint);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array() || (count && value->size() != *count)) {
    refuse(key, *value, allowed, hint);
    return std::nullopt;
  }
  std::vector<std::int64_t> numbers;
  for (const Json& element : *value) {
    const auto number = as_integer(element);
    if (!number || !contains(range, *number)) {
      refuse(key, *value, allowed, hint);
      return std::nullopt;
    }
    numbers.push_back(*number);
  }
  return numbers;
}

std::optional<std::vector<std::string>> ObjectReader::words(std::string_view key,
                                                            const std::vector<std::string>& choices,
                                                            std::string_view hint) {
  const std::string allowed =
      "an array of strings, each " + std::string(choices.size() > 1 ? "one of " : "") + join(choices);
  const Json* value = find(key, allowed, hint);
  if (value == nullptr) return std::nullopt;
  std::vector<std::string> found;
  for (const Json& element : value->is_array() ? *value : Json::array()) {
    if (!element.is_string() || std::find(choices.begin(), choices.end(), element.get<std::string>()) == choices.end())
      break;
    found.push_back(element.get<std::string>());
  }
  if (!value->is_array() || found.size() != value->size()) {
    refuse(key, *value, allowed, hint);
    return std::nullopt;
  }
  return found;
}

std::optional<ObjectReader> ObjectReader::object(std::string_view key, std::string_view hint) {
  const Json* value = find(key, "an object", hint);
  if (value == nullptr) return std::nullopt;
  if (!value->is_object()) {
    refuse(key, *value, "an object", hint.empty() ? "" : fmt::format("this is {}: {}", type_of(*value), hint));
    return std::nullopt;
  }
  return reader_->open(*value, path(key));
}

std::optional<std::vector<ObjectReader>> ObjectReader::objects(std::string_view key, std::string_view hint) {
  const Json* value = find(key, "an array of objects", hint);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array() || !std::all_of(value->begin(), value->end(), [](const Json& e) { return e.is_object(); })) {
    refuse(key, *value, "an array of objects", "");
    return std::nullopt;
  }
  std::vector<ObjectReader> readers;
  for (std::size_t i = 0; i < value->size(); ++i)
    readers.push_back(reader_->open((*value)[i], json_path(path(key), i)));
  return readers;
}

bool ObjectReader::has(std::string_view key) {
  if (node_->known.emplace(key).second) node_->known_in_order.emplace_back(key);
  return node_->object->find(key) != node_->object->end();
}

bool ObjectReader::given(std::string_view key) {
  return has(key) && (reader_->null_ == NullIs::kAValue || !node_->object->find(key)->is_null());
}

std::int64_t ObjectReader::integer_or(std::string_view key, std::int64_t otherwise, IntegerRange range,
                                      std::string_view hint) {
  return given(key) ? integer(key, range, hint).value_or(otherwise) : otherwise;
}
double ObjectReader::number_or(std::string_view key, double otherwise, NumberRange range, std::string_view hint) {
  return given(key) ? number(key, range, hint).value_or(otherwise) : otherwise;
}
bool ObjectReader::boolean_or(std::string_view key, bool otherwise, std::string_view hint) {
  return given(key) ? boolean(key, hint).value_or(otherwise) : otherwise;
}
std::string ObjectReader::one_of_or(std::string_view key, std::string_view otherwise,
                                    const std::vector<std::string>& choices, std::string_view hint) {
  return given(key) ? one_of(key, choices, hint).value_or(std::string(otherwise)) : std::string(otherwise);
}

std::string ObjectReader::value_text(std::string_view key) const {
  const auto value = node_->object->find(key);
  return value == node_->object->end() ? "" : shown(*value);
}

std::vector<std::string> ObjectReader::keys() const {
  std::vector<std::string> names;
  for (const auto& item : node_->object->items()) names.push_back(item.key());
  return names;
}

std::vector<std::string> ObjectReader::unknown_keys() const {
  std::vector<std::string> names = keys();
  std::erase_if(names, [&](const std::string& key) { return node_->known.contains(key); });
  return names;
}

const std::string& ObjectReader::path() const { return node_->path; }
std::string ObjectReader::path(std::string_view key) const { return json_path(node_->path, key); }

JsonReader::JsonReader(const JsonDocument& document, NullIs null) : document_(document), null_(null) {}
JsonReader::~JsonReader() = default;

ObjectReader JsonReader::open(const Json& object, std::string path) {
  nodes_.push_back(std::make_unique<ObjectReader::Node>(&object, std::move(path)));
  return ObjectReader(*this, *nodes_.back());
}

ObjectReader JsonReader::root() {
  if (!document_.root.is_object()) {
    throw InputError({document_.source, "", shown(document_.root), "an object",
                      fmt::format("this is {}: begin with {{", type_of(document_.root))});
  }
  return open(document_.root, "");
}

void JsonReader::report(const std::string& path, std::string allowed, std::string hint) {
  const auto value = read_.find(path);
  assert(value != read_.end());
  diagnostics_.push_back({document_.source_of(path), path, shown(*value->second), std::move(allowed), std::move(hint)});
}

void JsonReader::finish() {
  for (const auto& pointer : nodes_) {
    const ObjectReader::Node& node = *pointer;
    std::size_t unknown = 0;
    for (const auto& item : node.object->items()) {
      if (node.known.contains(item.key())) continue;
      if (++unknown > kMostUnknownKeys) continue;
      const std::string path = json_path(node.path, item.key());
      const std::string where = node.path.empty() ? "here" : "in " + node.path;
      diagnostics_.push_back({document_.source_of(path), path, shown(item.value()),
                              "known keys " + where + ": " + join(node.known_in_order),
                              did_you_mean(item.key(), node.known_in_order, "remove it")});
    }
    if (unknown > kMostUnknownKeys) {
      diagnostics_.push_back({document_.source, node.path, "", "known keys only",
                              fmt::format("and {} more unknown keys", unknown - kMostUnknownKeys)});
    }
  }
  if (!diagnostics_.empty()) throw InputError(diagnostics_);
}

}  // namespace meshwright
