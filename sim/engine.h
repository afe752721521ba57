// A deterministic discrete-event engine: tasks on the streams of ranks, in the order of their stream, after
// the tasks that they depend on, and starting together with those that they meet. Knows no programs and no
// hardware. Not for: links shared by concurrent transfers; a task's duration is given.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/program/units.h"

namespace meshwright {

using TaskId = std::int32_t;
using StreamId = std::int32_t;  // of the whole machine: a rank's streams are numbered by who makes the graph
using MatchId = std::int32_t;
constexpr TaskId kNoTask = -1;
constexpr MatchId kNoMatch = -1;

// Tasks are numbered as they are added. Who adds rank by rank, each in program order, has ids ordered by
// (rank, op).
class TaskGraph {
 public:
  explicit TaskGraph(int streams) : last_of_stream_(static_cast<std::size_t>(streams), kNoTask) {}

  // A task that starts after the task added last to its stream and after all of `after` (added before it).
  // Members of a match start together when the last is ready, and last as long as the longest of them.
  // Durations are not negative. Throws InputError if those of all tasks exceed kLongestTime together, so that no time of
  // an execution overflows.
  TaskId add(StreamId stream, Time duration, std::span<const TaskId> after, MatchId match = kNoMatch);
  // A new match of so many members, all of which must be added before the graph is run.
  MatchId new_match(int members);

  int tasks() const { return static_cast<int>(duration_.size()); }
  // Everything that task t waits for on its own rank: its dependencies, and its stream predecessor last (if
  // any).
  std::span<const TaskId> predecessors(TaskId t) const {
    return {predecessors_.data() + first_predecessor_[t], predecessors_.data() + first_predecessor_[t + 1]};
  }

 private:
  friend class Engine;
  struct Match {
    int members = 0, added = 0;
    TaskId last_added = kNoTask;
    Time duration = 0;
  };
  std::vector<Time> duration_;
  std::vector<MatchId> match_of_;
  std::vector<TaskId> next_in_match_;  // a chain through a match's members
  std::vector<std::int32_t> first_predecessor_{0};
  std::vector<TaskId> predecessors_;
  std::vector<TaskId> last_of_stream_;
  std::vector<Match> matches_;
  Time all_ = 0;  // durations
};

struct Execution {
  std::vector<Time> start, finish;  // per task, from 0; kNever for a task that never starts
  std::int64_t events = 0;          // tasks that finished
  bool complete() const { return events == static_cast<std::int64_t>(start.size()); }  // false: a deadlock
};
constexpr Time kNever = -1;

// Runs a graph, as often as wanted. Events are taken in the order (time, task): no two tie. Nothing is
// allocated while events are processed. Precondition: the graph outlives the engine, and every match has all
// its members.
class Engine {
 public:
  explicit Engine(const TaskGraph& graph);
  const Execution& run();

 private:
  struct Event {
    Time time;
    TaskId task;
    bool operator<(const Event& o) const { return time != o.time ? time < o.time : task < o.task; }
  };
  void ready(TaskId task, Time now);
  void start(TaskId task, Time now, Time duration);
  void push(Event event);
  Event pop();

  const TaskGraph& graph_;
  std::vector<std::int32_t> first_successor_;
  std::vector<TaskId> successors_;
  std::vector<TaskId> sources_;              // tasks that wait for nothing
  std::vector<std::int32_t> waits_for_;      // per task: predecessors that have not finished
  std::vector<std::int32_t> match_missing_;  // per match: members that are not ready
  std::vector<Event> heap_;                  // 4-ary, smallest first; one entry per running task
  std::size_t heap_size_ = 0;
  Execution execution_;
};

}  // namespace meshwright
