// Where things lie that do not live throughout a step.
#pragma once

#include <cstdint>
#include <vector>

namespace meshwright {

// Slots [first, last] of a stage in which an entry is used or a message on its way into or out of it may be under way.
struct Lifetime {
  int first = 0, last = 0;
  int entry = -1;  // set by place_entries()
};

// Gives things of equal size their entries: those that live in the same slot have different ones, and there are as many as
// live at once, which is the least that will do. Of the free entries that one is taken which has been free longest, so
// that whoever fills it waits as little as can be. Returns how many. Precondition: ascending by `first`.
int place_entries(std::vector<Lifetime>& lifetimes);

}  // namespace meshwright
