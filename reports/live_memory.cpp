#include "reports/live_memory.h"

#include <algorithm>
#include <vector>

namespace meshwright {
namespace {

bool lives_throughout(MemoryClass c) {
  return c == MemoryClass::kParameters || c == MemoryClass::kGradients || c == MemoryClass::kOptimizer ||
         c == MemoryClass::kData;
}

// Bytes that are always used together, between two neighbouring begins or ends of operands.
struct Part {
  bool live = false;
  std::int64_t begin = 0, end = 0;
  // Who wrote it: a tensor may be written in several windows, one after another.
  OpPlace writer;
  TensorId tensor = kNoTensor;
};

class Walk {
 public:
  Walk(const ProgramSet& set, const Program& program) : set_(set), program_(program) {}

  std::array<LiveBytes, kMemoryClasses> run(
      const std::vector<Interval>& timeline,
      const std::function<std::pair<std::int64_t, std::int64_t>(std::size_t)>& times) {
    cut(timeline);
    for (std::size_t i = 0; i < timeline.size(); ++i) {
      const auto [begin, end] = times(i);
      const OpPlace& place = timeline[i].place;
      for_each_range(place, [&](std::int64_t first, std::int64_t last, Access access, TensorId tensor) {
        for (std::size_t p = part_at(first); cuts_[p] < last; ++p) touch(p, access, place, tensor, begin, end);
      });
    }
    for (std::size_t p = 0; p < parts_.size(); ++p) finish(p);
    std::array<LiveBytes, kMemoryClasses> live;
    for (int c = 0; c < kMemoryClasses; ++c) {
      std::int64_t sum = lives_throughout(static_cast<MemoryClass>(c)) ? program_.bytes_by_class()[c] : 0;
      live[c][0] = sum;
      for (const auto& [time, change] : changes_[c])
        if (change != 0) live[c][time] = sum += change;
    }
    return live;
  }

 private:
  // Operands in memory that is used for different things in turn.
  template <class F>
  void for_each_range(const OpPlace& place, F&& f) const {
    const PlacedOp placed = op_at(set_, program_, place);
    for_each_operand(placed.op, [&](std::string_view, const View& view, Access access) {
      const Tensor& tensor = placed.piece.tensors[static_cast<std::size_t>(view.tensor)];
      const std::int64_t first = address(program_, placed.slot, placed.call, tensor);
      const Region* region = region_at(first);
      if (tensor.bytes() > 0 && region && !lives_throughout(region->memory_class))
        f(first, first + tensor.bytes(), access, view.tensor);
    });
  }

  const Region* region_at(std::int64_t address) const {
    for (const Region& r : program_.regions)
      if (r.offset <= address && address < r.offset + r.bytes) return &r;
    return nullptr;
  }

  void cut(const std::vector<Interval>& timeline) {
    for (const Interval& i : timeline)
      for_each_range(i.place, [&](std::int64_t first, std::int64_t last, Access, TensorId) {
        cuts_.push_back(first);
        cuts_.push_back(last);
      });
    std::sort(cuts_.begin(), cuts_.end());
    cuts_.erase(std::unique(cuts_.begin(), cuts_.end()), cuts_.end());
    parts_.resize(cuts_.size());
  }
  std::size_t part_at(std::int64_t address) const {
    return static_cast<std::size_t>(std::lower_bound(cuts_.begin(), cuts_.end(), address) - cuts_.begin());
  }

  void touch(std::size_t p, Access access, const OpPlace& place, TensorId tensor, std::int64_t begin,
             std::int64_t end) {
    Part& part = parts_[p];
    const bool another_window =
        part.tensor == tensor && part.writer.slot == place.slot && part.writer.call == place.call;
    if (access == Access::kWrite && !another_window) finish(p);
    if (!part.live) part = {true, begin, end, {}, kNoTensor};
    part.end = std::max(part.end, end);
    if (access == Access::kWrite) {
      part.writer = place;
      part.tensor = tensor;
    }
  }

  void finish(std::size_t p) {
    Part& part = parts_[p];
    if (!part.live) return;
    part.live = false;
    auto& changes = changes_[static_cast<int>(region_at(cuts_[p])->memory_class)];
    const std::int64_t bytes = cuts_[p + 1] - cuts_[p];
    changes[part.begin] += bytes;
    changes[part.end] -= bytes;
  }

  const ProgramSet& set_;
  const Program& program_;
  std::vector<std::int64_t> cuts_;
  std::vector<Part> parts_;  // parts_[p]: from cuts_[p] to the next one
  std::array<std::map<std::int64_t, std::int64_t>, kMemoryClasses> changes_;
};

}  // namespace

std::array<LiveBytes, kMemoryClasses> live_bytes(
    const ProgramSet& set, const Program& program, const std::vector<Interval>& timeline,
    const std::function<std::pair<std::int64_t, std::int64_t>(std::size_t)>& times) {
  return Walk(set, program).run(timeline, times);
}

}  // namespace meshwright
