#include "sim/expansion.h"

#include <algorithm>
#include <array>
#include <cstdint>

#include "model/program/check.h"
#include "sim/meeting.h"

namespace meshwright {
namespace {

// The arena cut at every begin and end of an operand, with the tasks that touched each part last.
class TouchedBytes {
 public:
  explicit TouchedBytes(std::vector<std::int64_t> cuts) : cuts_(std::move(cuts)) {
    std::sort(cuts_.begin(), cuts_.end());
    cuts_.erase(std::unique(cuts_.begin(), cuts_.end()), cuts_.end());
    parts_.resize(cuts_.size());
  }

  // Calls f(part) for every part of [begin, end).
  template <class F>
  void for_each(std::int64_t begin, std::int64_t end, F&& f) {
    for (auto i = std::lower_bound(cuts_.begin(), cuts_.end(), begin) - cuts_.begin(); cuts_[i] < end; ++i)
      f(parts_[i]);
  }

  struct Part {
    TaskId writer = kNoTask;
    std::array<TaskId, kStreams> users;  // since that write, the last of each stream
    Part() { users.fill(kNoTask); }
  };

 private:
  std::vector<std::int64_t> cuts_;
  std::vector<Part> parts_;
};

template <class F>
void for_each_range(const Slot& slot, const Call& call, const Piece& piece, const Op& op, F&& f) {
  for_each_operand(op, [&](std::string_view, const View& view, Access access) {
    const Tensor& tensor = piece.tensors[view.tensor];
    const std::int64_t begin = address(slot, call, tensor);
    if (tensor.bytes() > 0) f(begin, begin + tensor.bytes(), access);
  });
}

}  // namespace

Expansion expand(const ProgramSet& set, const CostModel& cost) {
  std::vector<std::vector<Time>> durations(set.pieces.size());
  for (std::size_t p = 0; p < set.pieces.size(); ++p)
    for (const Op& op : set.pieces[p].ops) durations[p].push_back(duration(op, set.pieces[p], set, cost));

  const int stages = static_cast<int>(set.stages.size());
  Expansion e{TaskGraph(stages * kStreams), {}, {0}};
  std::vector<std::vector<MatchId>> matches(static_cast<std::size_t>(meeting_places(set)));
  std::vector<int> missing;  // per match: members

  for (int stage = 0; stage < stages; ++stage) {
    const Program& program = set.stages[stage];
    std::vector<std::int64_t> cuts;
    for_each_op(set, program, [&](const Slot& slot, const Call& call, const Piece& piece, const Op& op) {
      for_each_range(slot, call, piece, op, [&](std::int64_t begin, std::int64_t end, Access) {
        cuts.push_back(begin);
        cuts.push_back(end);
      });
    });
    TouchedBytes memory(std::move(cuts));
    std::vector<std::size_t> met(matches.size(), 0);  // meetings of this stage so far, per place

    for_each_op(set, program, [&](const Slot& slot, const Call& call, const Piece& piece, const Op& op) {
      if (std::holds_alternative<Free>(op)) return;
      const Stream stream = occupied_stream(op, cost);
      std::array<TaskId, kStreams> last;  // that it depends on, per stream
      last.fill(kNoTask);
      const auto depends_on = [&](TaskId t) {
        if (t == kNoTask) return;
        TaskId& seen = last[static_cast<int>(e.origins[t].stream)];
        seen = std::max(seen, t);
      };
      for_each_range(slot, call, piece, op, [&](std::int64_t begin, std::int64_t end, Access access) {
        memory.for_each(begin, end, [&](const TouchedBytes::Part& part) {
          depends_on(part.writer);
          if (access != Access::kRead)
            for (const TaskId user : part.users) depends_on(user);
        });
      });
      std::array<TaskId, kStreams> after;
      int n = 0;
      for (int s = 0; s < kStreams; ++s)
        if (last[s] != kNoTask && s != static_cast<int>(stream)) after[n++] = last[s];

      MatchId match = kNoMatch;
      if (const MeetingPlace place = meeting_place(op, stage, set); place != kNoMeeting) {
        auto& here = matches[place];
        const std::size_t nth = met[place]++;
        if (nth == here.size()) {
          here.push_back(e.graph.new_match(members_at(place, set)));
          missing.push_back(members_at(place, set));
        }
        match = here[nth];
        check(--missing[match] >= 0, "simulate: stage {}: one {} too many in {}", stage, op_name(op), piece.name);
      }
      const TaskId task =
          e.graph.add(stage * kStreams + static_cast<int>(stream), durations[call.piece][&op - piece.ops.data()],
                      {after.data(), static_cast<std::size_t>(n)}, match);
      e.origins.push_back({&slot, &call, &piece, &op, stream});

      for_each_range(slot, call, piece, op, [&](std::int64_t begin, std::int64_t end, Access access) {
        memory.for_each(begin, end, [&](TouchedBytes::Part& part) {
          if (access == Access::kRead) {
            part.users[static_cast<int>(stream)] = task;
          } else {
            part.writer = task;
            part.users.fill(kNoTask);
          }
        });
      });
    });
    e.first_of_stage.push_back(e.graph.tasks());
  }
  for (const int m : missing)
    check(m == 0, "simulate: {} member(s) of a transfer or a collective over stages never come", m);
  return e;
}

}  // namespace meshwright
