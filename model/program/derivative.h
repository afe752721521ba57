// The derivative of every kind of operation: given the gradients of what it writes, the operations that give the gradients
// of what it reads. Backward passes follow from these rules (model/lowering/differentiate.h); none is written by hand.
#pragma once

#include <cstdint>
#include <string>

#include "model/program/op.h"

namespace meshwright {

// What a rule asks for, and where it puts what it emits. Views of the operation that is differentiated go in, views of the
// backward come out. A rule asks for gradient() of what was written first: without one it emits nothing.
class Backward {
 public:
  virtual ~Backward() = default;

  // The gradient of an operand that the operation wrote, complete; none: the loss does not depend on it.
  virtual View gradient(const View& written) = 0;
  // The same, to be changed in place: nobody else may read it afterwards (asserted).
  virtual View changeable_gradient(const View& written) = 0;

  // Where the gradient of an operand that the operation read goes. `accumulate`: it is added to what is there. None: nobody
  // wants it (token ids, metrics).
  struct Into {
    View view;
    bool accumulate = false;
    explicit operator bool() const { return static_cast<bool>(view); }
  };
  virtual Into into(const View& read) = 0;
  // The same where the rule's operation can only overwrite: asserts that nothing is there.
  View overwrite(const View& read);
  // The gradient of `read`, a whole tensor, is `d` itself: nothing is emitted. Asserts that it has none yet.
  virtual void pass(const View& read, const View& d) = 0;

  // An operand's value as it was in the forward pass: kept, or computed again.
  virtual View value(const View& forward) = 0;
  // The same, of which the rule may change the bits: whoever asks later gets another.
  virtual View changeable_value(const View& forward) = 0;
  virtual DType dtype(const View& forward) const = 0;

  // A tensor of the backward's workspace. Lives until its last use.
  virtual View temporary(const std::string& name, std::int64_t rows, std::int64_t cols, DType dtype) = 0;
  virtual void add(Op op) = 0;
  virtual const MeshShape& mesh() const = 0;
};

// Throws std::logic_error for the kinds that no forward pass has: derivatives, the optimizer, messages.
void differentiate(const Op& op, Backward& backward);

// `op` once more, in a backward pass, for outputs that were not kept: without what it adds to sums of the step.
// `known`: of an operand that it writes, whether its value is there already and is to be read instead.
template <class Known>
Op again(Op op, Known&& known) {
  if (auto* norm = std::get_if<RmsNorm>(&op)) norm->rstd_known = known(norm->rstd);
  if (auto* norm = std::get_if<LayerNorm>(&op)) norm->known = known(norm->mean) && known(norm->rstd);
  if (auto* route = std::get_if<Route>(&op)) {
    route->metrics = {};
    if (route->fraction_tokens > 0) route->fraction = {};
  }
  return op;
}

// Whether what the operation writes costs little more than reading it, so that a backward pass computes it again, whatever
// is kept: row-wise and cheap (norms' outputs, activations, rows sent to experts), or a gather of such.
bool is_cheap_again(const Op& op);

}  // namespace meshwright
