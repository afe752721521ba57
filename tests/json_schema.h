// A validator for the words of JSON Schema that configs/schema/ uses. An unknown word throws: it would check nothing.
#pragma once

#include <algorithm>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace meshwright {

class JsonSchema {
 public:
  explicit JsonSchema(nlohmann::json root) : root_(std::move(root)) {}

  const nlohmann::json& root() const { return root_; }

  // What is wrong with `value`; empty: nothing. `schema`: a part of root().
  std::vector<std::string> faults(const nlohmann::json& value, const nlohmann::json& schema,
                                  const std::string& path = "") const {
    std::vector<std::string> found;
    const auto fault = [&](const std::string& what) { found.push_back(path + ": " + what + ": " + value.dump()); };
    const auto inner = [&](const nlohmann::json& v, const nlohmann::json& s, const std::string& name) {
      for (std::string& f : faults(v, s, path + "/" + name)) found.push_back(std::move(f));
    };
    for (const auto& [word, rule] : schema.items()) {
      if (word == "$schema" || word == "title" || word == "description" || word == "$defs") continue;
      if (word == "$ref") {
        for (std::string& f : faults(value, resolve(schema), path)) found.push_back(std::move(f));
      } else if (word == "oneOf") {
        int fits = 0;
        std::string why;
        for (const auto& option : rule) {
          const auto of_option = faults(value, option, path);
          fits += of_option.empty();
          for (const std::string& f : of_option) why += " " + f;
        }
        if (fits != 1) fault(std::to_string(fits) + " of the alternatives fit (" + why + ")");
      } else if (word == "type") {
        if (!has_type(value, rule)) fault("not of type " + rule.get<std::string>());
      } else if (word == "const") {
        if (value != rule) fault("not " + rule.dump());
      } else if (word == "enum") {
        if (std::find(rule.begin(), rule.end(), value) == rule.end()) fault("none of " + rule.dump());
      } else if (word == "required") {
        for (const auto& key : rule)
          if (value.is_object() && !value.contains(key.get<std::string>())) fault("no " + key.get<std::string>());
      } else if (word == "properties") {
        for (const auto& [key, s] : rule.items())
          if (value.is_object() && value.contains(key)) inner(value.at(key), s, key);
      } else if (word == "additionalProperties") {
        if (!value.is_object()) continue;
        for (const auto& [key, v] : value.items()) {
          if (schema.contains("properties") && schema.at("properties").contains(key)) continue;
          if (rule == false)
            fault("unknown key " + key);
          else
            inner(v, rule, key);
        }
      } else if (word == "propertyNames") {
        if (!value.is_object()) continue;
        for (const auto& [key, ignored] : value.items()) inner(key, rule, key);
      } else if (word == "items") {
        for (std::size_t i = 0; value.is_array() && i < value.size(); ++i) inner(value[i], rule, std::to_string(i));
      } else if (word == "minItems") {
        if (value.is_array() && value.size() < rule.get<std::size_t>()) fault("too short");
      } else if (word == "minLength") {
        if (value.is_string() && value.get<std::string>().size() < rule.get<std::size_t>()) fault("too short");
      } else if (word == "pattern") {
        if (value.is_string() && !std::regex_search(value.get<std::string>(), std::regex(rule.get<std::string>())))
          fault("does not match " + rule.get<std::string>());
      } else if (word == "minimum" || word == "maximum" || word == "exclusiveMinimum") {
        if (!value.is_number()) continue;
        const double v = value, limit = rule;
        if (word == "minimum" ? v < limit : word == "maximum" ? v > limit : v <= limit) fault(word + " " + rule.dump());
      } else {
        throw std::logic_error("JSON Schema: this validator does not know " + word);
      }
    }
    return found;
  }
  std::vector<std::string> faults(const nlohmann::json& value) const { return faults(value, root_); }

  // The schema that holds for `value`: references followed, and of alternatives the one that fits.
  const nlohmann::json& for_value(const nlohmann::json& schema, const nlohmann::json& value) const {
    if (schema.contains("$ref")) return for_value(resolve(schema), value);
    if (schema.contains("oneOf"))
      for (const auto& option : schema.at("oneOf"))
        if (faults(value, option).empty()) return for_value(option, value);
    return schema;
  }

 private:
  const nlohmann::json& resolve(const nlohmann::json& schema) const {
    return root_.at(nlohmann::json::json_pointer(schema.at("$ref").get<std::string>().substr(1)));
  }
  static bool has_type(const nlohmann::json& value, const std::string& type) {
    if (type == "object") return value.is_object();
    if (type == "array") return value.is_array();
    if (type == "string") return value.is_string();
    if (type == "boolean") return value.is_boolean();
    if (type == "integer") return value.is_number_integer();
    if (type == "number") return value.is_number();
    throw std::logic_error("JSON Schema: type " + type);
  }

  nlohmann::json root_;
};

}  // namespace meshwright
