// What is wrong with something the user gave us, said so that they can mend it: where, what stands there,
// what may stand there, and what to do. Not for our own mistakes: those assert.
#pragma once

#include <exception>
#include <string>
#include <vector>

namespace meshwright {

struct Diagnostic {
  std::string source;   // a file's name, "--set", "--plan"
  std::string path;     // JSON path such as model_config.n_head, or "line 3, column 5"; empty: the whole source
  std::string value;    // what was found there, as JSON, shortened; empty: there is nothing to show
  std::string allowed;  // completes "allowed: ..."
  std::string hint;     // what to do about it; may be empty

  bool operator==(const Diagnostic&) const = default;
};

// `source: path = value: allowed: ...; hint: ...`, without the parts that are empty; one line, whatever the
// parts hold.
std::string to_string(const Diagnostic& diagnostic);

// Input that can't be used, with everything found wrong in it. what(): one line a diagnostic, the first 200.
class InputError : public std::exception {
 public:
  explicit InputError(std::vector<Diagnostic> diagnostics);  // at least one
  explicit InputError(Diagnostic diagnostic);

  const std::vector<Diagnostic>& diagnostics() const { return diagnostics_; }
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::vector<Diagnostic> diagnostics_;
  std::string text_;
};

}  // namespace meshwright
