#include "sim/engine.h"

#include <algorithm>
#include <cassert>

#include "sim/checked_sum.h"

namespace meshwright {

TaskId TaskGraph::add(StreamId stream, Time duration, std::span<const TaskId> after, MatchId match) {
  const TaskId task = tasks();
  assert(duration >= 0);
  add_checked(all_, duration, 1, kTimeLimit);
  for (const TaskId t : after) {
    assert(t >= 0 && t < task);
    predecessors_.push_back(t);
  }
  if (last_of_stream_[stream] != kNoTask) predecessors_.push_back(last_of_stream_[stream]);
  last_of_stream_[stream] = task;
  first_predecessor_.push_back(static_cast<std::int32_t>(predecessors_.size()));
  duration_.push_back(duration);
  match_of_.push_back(match);
  next_in_match_.push_back(kNoTask);
  if (match != kNoMatch) {
    Match& m = matches_[match];
    assert(m.added < m.members);
    ++m.added;
    m.duration = std::max(m.duration, duration);
    next_in_match_[task] = m.last_added;
    m.last_added = task;
  }
  return task;
}

MatchId TaskGraph::new_match(int members) {
  matches_.push_back({.members = members});
  return static_cast<MatchId>(matches_.size()) - 1;
}

Engine::Engine(const TaskGraph& graph) : graph_(graph) {
  const auto tasks = static_cast<std::size_t>(graph.tasks());
  first_successor_.assign(tasks + 1, 0);
  for (const TaskId p : graph.predecessors_) ++first_successor_[p + 1];
  for (std::size_t t = 0; t < tasks; ++t) first_successor_[t + 1] += first_successor_[t];
  successors_.resize(graph.predecessors_.size());
  std::vector<std::int32_t> at(first_successor_.begin(), first_successor_.end() - 1);
  for (TaskId t = 0; t < graph.tasks(); ++t) {
    for (const TaskId p : graph.predecessors(t)) successors_[at[p]++] = t;
    if (graph.predecessors(t).empty()) sources_.push_back(t);
  }
  waits_for_.resize(tasks);
  match_missing_.resize(graph.matches_.size());
  heap_.resize(graph.last_of_stream_.size() + 1);  // at most one task of a stream runs at a time
  execution_.start.resize(tasks);
  execution_.finish.resize(tasks);
}

const Execution& Engine::run() {
  std::fill(execution_.start.begin(), execution_.start.end(), kNever);
  std::fill(execution_.finish.begin(), execution_.finish.end(), kNever);
  execution_.events = 0;
  heap_size_ = 0;
  for (TaskId t = 0; t < graph_.tasks(); ++t)
    waits_for_[t] = graph_.first_predecessor_[t + 1] - graph_.first_predecessor_[t];
  for (std::size_t m = 0; m < match_missing_.size(); ++m) match_missing_[m] = graph_.matches_[m].members;

  for (const TaskId t : sources_) ready(t, 0);
  while (heap_size_ > 0) {
    const Event event = pop();
    ++execution_.events;
    const std::int32_t end = first_successor_[event.task + 1];
    for (std::int32_t i = first_successor_[event.task]; i < end; ++i)
      if (const TaskId next = successors_[i]; --waits_for_[next] == 0) ready(next, event.time);
  }
  return execution_;
}

void Engine::ready(TaskId task, Time now) {
  const MatchId match = graph_.match_of_[task];
  if (match == kNoMatch) return start(task, now, graph_.duration_[task]);
  if (--match_missing_[match] > 0) return;
  const TaskGraph::Match& m = graph_.matches_[match];
  for (TaskId t = m.last_added; t != kNoTask; t = graph_.next_in_match_[t]) start(t, now, m.duration);
}

void Engine::start(TaskId task, Time now, Time duration) {
  execution_.start[task] = now;
  execution_.finish[task] = now + duration;
  push({now + duration, task});
}

void Engine::push(Event event) {
  std::size_t i = heap_size_++;
  while (i > 0) {
    const std::size_t parent = (i - 1) / 4;
    if (!(event < heap_[parent])) break;
    heap_[i] = heap_[parent];
    i = parent;
  }
  heap_[i] = event;
}

Engine::Event Engine::pop() {
  const Event top = heap_[0], last = heap_[--heap_size_];
  std::size_t i = 0;
  while (true) {
    const std::size_t first = 4 * i + 1;
    if (first >= heap_size_) break;
    std::size_t least = first;
    for (std::size_t c = first + 1; c < std::min(first + 4, heap_size_); ++c)
      if (heap_[c] < heap_[least]) least = c;
    if (!(heap_[least] < last)) break;
    heap_[i] = heap_[least];
    i = least;
  }
  heap_[i] = last;
  return top;
}

}  // namespace meshwright
