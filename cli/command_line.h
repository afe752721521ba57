// What is wrong with a command line, said as of any other input: where, what stands there, what may stand there, what to do.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cli/command.h"
#include "model/input/json_reader.h"

namespace meshwright {

// An option whose value is a whole decimal number, given to `set` if it is in the range. Otherwise, and so for "", 0x10 or
// more than 64 bits, which CLI11 would take, a fault is added to invocation.faults: all of them are said at once.
CLI::Option* add_integer_option(CLI::App& command, Invocation& invocation, const std::string& name, IntegerRange range,
                                std::function<void(std::int64_t)> set, const std::string& meaning);
// The same of a finite decimal number, such as 0.92 or 1e3: "nan", "inf" and "92%" are none.
CLI::Option* add_number_option(CLI::App& command, Invocation& invocation, const std::string& name, NumberRange range,
                               std::function<void(double)> set, const std::string& meaning);

// What `error` means that app.parse() threw on these arguments (without the program's name): unknown commands and options
// with the nearest known one, words too many, values and required options that are missing. At least one fault.
std::vector<Diagnostic> command_line_faults(const CLI::App& app, const CLI::ParseError& error,
                                            const std::vector<std::string>& arguments);

}  // namespace meshwright
