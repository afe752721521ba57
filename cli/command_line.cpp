#include "cli/command_line.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <set>
#include <utility>

namespace meshwright {
namespace {

constexpr const char* kSource = "command line";

std::string quoted(const std::string& word) { return fmt::format("\"{}\"", word); }

std::string help_of(const CLI::App& command) {
  return command.get_parent() ? fmt::format("meshwright {} --help", command.get_name()) : "meshwright --help";
}

// "--system", "CONFIG".
std::string name_of(const CLI::Option& option) {
  return option.get_lnames().empty() ? option.get_name() : "--" + option.get_lnames().front();
}

// Options with two dashes that help shows.
std::vector<std::string> options_of(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options())
    if (!option->get_lnames().empty() && !option->get_group().empty()) names.push_back(name_of(*option));
  return names;
}

bool is_option(const std::string& word) { return word.size() > 1 && word.front() == '-' && word != "--"; }

Diagnostic no_command(const CLI::App& app, const std::vector<std::string>& arguments) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(command->get_name());
  const std::string allowed = fmt::format("{}", fmt::join(names, ", "));
  if (arguments.empty()) return {kSource, "COMMAND", "(missing)", allowed, "see " + help_of(app)};
  const std::string meant = did_you_mean(arguments.front(), names, "");
  return {kSource, "COMMAND", quoted(arguments.front()), allowed,
          fmt::format("{} {}", meant.empty() ? "see" : meant + " See", help_of(app))};
}

// Words that the command has no place for, and required options that are not there.
std::vector<Diagnostic> left_over_and_missing(const CLI::App& command, const std::vector<std::string>& arguments) {
  const std::vector<std::string> all = command.remaining(), known = options_of(command);
  std::multiset<std::string> left(all.begin(), all.end());
  std::vector<Diagnostic> faults, words;
  std::set<std::string> meant;
  for (const std::string& word : arguments) {  // CLI11 does not keep their order
    const auto found = left.find(word);
    if (found == left.end()) continue;
    left.erase(found);
    if (!is_option(word)) {
      words.push_back({kSource, "", quoted(word), "options, and as many words as help shows",
                       fmt::format("remove it, or quote it together with the word before; see {}", help_of(command))});
      continue;
    }
    const std::string name = word.substr(0, word.find('='));
    if (const auto near = nearest_word(name, known)) meant.insert(*near);
    faults.push_back({kSource, name, "", fmt::format("{}", fmt::join(known, ", ")),
                      did_you_mean(name, known, fmt::format("there is no such option; see {}", help_of(command)))});
  }
  if (faults.empty()) faults = std::move(words);  // else they are an unknown option's values
  for (const CLI::Option* option : command.get_options()) {
    const std::string name = name_of(*option);
    if (!option->get_required() || option->count() > 0 || meant.contains(name)) continue;
    faults.push_back({kSource, name, "(missing)", option->get_description(),
                      fmt::format("add it; {} has examples", help_of(command))});
  }
  return faults;
}

template <class Number, class Range>
CLI::Option* add_option_in(CLI::App& command, Invocation& invocation, const std::string& name, Range range,
                           std::function<void(Number)> set, const std::string& meaning) {
  return command
      .add_option_function<std::string>(
          name,
          [name, range, set = std::move(set), &invocation](const std::string& text) {
            Number value = 0;
            const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
            if (error == std::errc() && end == text.data() + text.size() && contains(range, value))
              set(value);
            else
              invocation.faults.push_back({kSource, name, quoted(text), describe(range), "write it in decimal digits"});
          },
          meaning)
      ->type_name("N");
}

}  // namespace

CLI::Option* add_integer_option(CLI::App& command, Invocation& invocation, const std::string& name, IntegerRange range,
                                std::function<void(std::int64_t)> set, const std::string& meaning) {
  return add_option_in<std::int64_t>(command, invocation, name, range, std::move(set), meaning);
}

CLI::Option* add_number_option(CLI::App& command, Invocation& invocation, const std::string& name, NumberRange range,
                               std::function<void(double)> set, const std::string& meaning) {
  return add_option_in<double>(command, invocation, name, range, std::move(set), meaning);
}

std::vector<Diagnostic> command_line_faults(const CLI::App& app, const CLI::ParseError& error,
                                            const std::vector<std::string>& arguments) {
  const std::vector<CLI::App*> called = app.get_subcommands();
  if (called.empty() && (arguments.empty() || !is_option(arguments.front()))) return {no_command(app, arguments)};
  const CLI::App& command = called.empty() ? app : *called.front();
  std::vector<Diagnostic> faults;
  if (dynamic_cast<const CLI::RequiredError*>(&error) || dynamic_cast<const CLI::ExtrasError*>(&error)) {
    faults = left_over_and_missing(command, arguments);
  } else if (dynamic_cast<const CLI::ArgumentMismatch*>(&error)) {
    const std::string text = error.what(), name = text.substr(0, text.find(':'));
    if (const CLI::Option* option = command.get_option_no_throw(name))
      faults.push_back(option->count() > 1
                           ? Diagnostic{kSource, name, fmt::format("{}", fmt::join(option->results(), " and ")),
                                        "one value", "give it once"}
                           : Diagnostic{kSource, name, "(missing)",
                                        fmt::format("a value: {}", option->get_description()),
                                        fmt::format("{} has examples", help_of(command))});
  }
  // Nothing that is known better than CLI11 says it.
  if (faults.empty()) faults.push_back({kSource, error.what(), "", "", "see " + help_of(command)});
  return faults;
}

}  // namespace meshwright
