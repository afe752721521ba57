#include "sim/piece_time.h"

#include <algorithm>
#include <array>

#include "model/program/check.h"
#include "sim/stretch.h"

namespace meshwright {
namespace {

// Its frames lie apart, as those of a call do.
const Structure& structure_of(Library& library, int piece) {
  constexpr std::int64_t kApart = std::int64_t{1} << 56;
  std::vector<PlacedFrame> frames;
  std::vector<std::int32_t> place;
  for (const FrameUse& use : library.piece(piece).frames) {
    place.push_back(static_cast<std::int32_t>(frames.size()));
    frames.push_back({use.frame, use.streams, kApart * place.back(), use.begin, use.end});
  }
  const Call call{.piece = piece};
  return library.structure(library.structure_of({&call, 1}, frames, place));
}

}  // namespace

std::vector<PieceTime> piece_times(const ProgramSet& set, std::span<const int> pieces, const CostModel& cost) {
  Library library(set, cost);
  std::vector<PieceTime> times(set.pieces.size());
  std::vector<Time> finish;
  for (const int piece : pieces) {
    const Structure& s = structure_of(library, piece);
    check(!s.meets, "{} can't be timed without the stages that it meets", set.pieces[piece].name);
    std::array<Time, kStreams> free{};
    finish.clear();
    Time last = 0;
    for (const Structure::Operation& op : s.ops) {
      Time& at = free[static_cast<int>(op.timed.stream)];
      for (std::int32_t d = op.first_dependency; d < op.end_dependency; ++d)
        at = std::max(at, finish[s.dependencies[d]]);
      at += op.timed.duration;
      finish.push_back(at);
      last = std::max(last, at);
    }
    (s.streams & mask_of(Stream::kCompute) ? times[piece].busy : times[piece].beside) = last;
  }
  return times;
}

}  // namespace meshwright
