// Every plan there is for a model, a training shape and a number of devices, in a fixed order; what is
// illegal is counted by reason with cheap exact checks, without lowering anything.
//
// The axes and their values:
//   mesh          every dp * pp * tp = devices
//   fsdp          0, 1, 2, 3
//   microbatches  every divisor of a dp shard's sequences that can be scheduled (unschedulable() of lower.h)
//   schedule      every Schedule that suits them and the balance loss (unbalanced() of lower.h)
//   recompute     none, selective, full
// The layers of its stages are left open. Which combinations are legal is illegalities() of model/lowering/lower.h, nothing else.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/lowering/lower.h"
#include "model/plan.h"
#include "model/spec.h"

namespace meshwright {

// What is searched.
struct Problem {
  ModelSpec model;
  TrainingShape shape;
  int devices = 1;
};

// A part of the space that is illegal for one reason: every plan with this mesh, or, where the reason is
// about FSDP, every plan with this mesh and this stage of it, or, where it is about microbatches (too many, or more than a
// balance loss allows under a schedule), every plan with this mesh and such ones. It counts as one, as how many plans an
// impossible mesh "would have" is arbitrary (its shards may not even be whole).
struct IllegalPart {
  MeshShape mesh;
  std::optional<int> fsdp;  // none: the whole mesh
  Illegality why;
};

class PlanSpace {
 public:
  // Precondition: devices >= 1.
  explicit PlanSpace(const Problem& problem);

  // Legal plans, one after another: meshes by tp, then pp, upwards (so dp downwards); on a mesh by FSDP,
  // microbatches, schedule, recomputation, the last the fastest. nullopt after the last.
  std::optional<Plan> next();

  // How many next() gives in all; plain arithmetic.
  std::int64_t size() const;

  // In the order of meshes, an illegal mesh once for each of its reasons. Microbatches and FSDP are only looked at on
  // legal meshes.
  const std::vector<IllegalPart>& illegal() const { return illegal_; }

 private:
  struct Choices {
    MeshShape mesh;
    std::vector<int> fsdp;
    std::vector<std::pair<int, Schedule>> passes;  // microbatches under a schedule
    std::int64_t size() const;
  };
  std::vector<Choices> choices_;
  std::vector<IllegalPart> illegal_;
  std::size_t mesh_ = 0;   // of choices_, that next() is at
  std::int64_t plan_ = 0;  // of the mesh's
};

// All of a space, in its order.
std::vector<Plan> all_plans(const Problem& problem);

}  // namespace meshwright
