// Which operations of different stages meet. The n-th send from stage s to its neighbour meets the
// neighbour's n-th receive from s; the n-th collective of a group over stages meets the n-th of every other
// member.
#pragma once

#include <utility>

#include "model/program/op.h"
#include "model/program/program.h"

namespace meshwright {

// Where meetings happen, one after another: a place per boundary between stages and direction (boundary b
// lies before stage b; forwards 2b, backwards 2b + 1), and one per group over stages.
using MeetingPlace = int;
constexpr MeetingPlace kNoMeeting = -1;  // tp and dp: all members are the same by symmetry and are ready together

inline MeetingPlace place_of_group(Group group, const ProgramSet& set) {
  return 2 * (set.mesh.pp + 1) + (group == Group::kPp ? 0 : 1);
}
inline int meeting_places(const ProgramSet& set) { return 2 * (set.mesh.pp + 1) + 2; }

inline MeetingPlace meeting_place(const Op& op, int stage, const ProgramSet& set) {
  if (const auto* send = std::get_if<Send>(&op)) return send->to == Direction::kNext ? 2 * (stage + 1) : 2 * stage + 1;
  if (const auto* recv = std::get_if<Recv>(&op))
    return recv->from == Direction::kPrevious ? 2 * stage : 2 * (stage + 1) + 1;
  if (const auto* collective = std::get_if<Collective>(&op))
    if ((collective->group == Group::kPp || collective->group == Group::kPpEnds) && set.mesh.pp > 1)
      return place_of_group(collective->group, set);
  return kNoMeeting;
}

inline int members_at(MeetingPlace place, const ProgramSet& set) {
  return place == place_of_group(Group::kPp, set) ? set.mesh.pp : 2;
}

// The stages that may meet there: first and last.
inline std::pair<int, int> stages_at(MeetingPlace place, const ProgramSet& set) {
  const int boundary = place / 2;
  return boundary > set.mesh.pp ? std::pair(0, set.mesh.pp - 1) : std::pair(boundary - 1, boundary);
}

}  // namespace meshwright
