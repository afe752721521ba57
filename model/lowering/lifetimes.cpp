#include "model/lowering/lifetimes.h"

#include <functional>
#include <queue>
#include <utility>

namespace meshwright {

int place_entries(std::vector<Lifetime>& lifetimes) {
  using LastUse = std::pair<int, int>;  // slot, entry
  std::priority_queue<LastUse, std::vector<LastUse>, std::greater<>> ends;
  int entries = 0;
  for (Lifetime& life : lifetimes) {
    if (!ends.empty() && ends.top().first < life.first) {
      life.entry = ends.top().second;
      ends.pop();
    } else {
      life.entry = entries++;
    }
    ends.push({life.last, life.entry});
  }
  return entries;
}

}  // namespace meshwright
