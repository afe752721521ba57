// Training that has left the finite numbers.
#pragma once

#include <cstdint>
#include <exception>
#include <string>

namespace meshwright {

// Thrown on all ranks of a step at once, before its update: weights and moments are, bit for bit, those of before the step,
// and the executor can go on (with other data, or a lower rate). Neither an error of ours nor a fault of the input's form.
class Diverged : public std::exception {
 public:
  struct Facts {
    std::int64_t step = 0;  // counted from 0
    double loss = 0, gradient_norm = 0;
    // The first tensor, in the order of the model's parameters, whose gradient (summed over ranks and microbatches) has an
    // element that is not finite, the lowest rank that keeps such an element, and its stage. Empty if all are finite, and
    // only their norm or the loss is not.
    std::string tensor;
    int rank = 0, stage = 0;
    int tensors = 0, of_tensors = 0;  // so many such tensors, of all

    bool operator==(const Facts&) const = default;
  };

  // `more`: appended to the sentence that the facts make.
  explicit Diverged(Facts facts, const std::string& more = "");

  const Facts& facts() const { return facts_; }
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  Facts facts_;
  std::string text_;
};

}  // namespace meshwright
