#include "sim/engine.h"

#include <gtest/gtest.h>

#include <array>
#include <random>

namespace meshwright {
namespace {

using Ids = std::vector<TaskId>;

TEST(Engine, TasksOfAStreamRunOneAfterAnother) {
  TaskGraph g(1);
  g.add(0, 5, {});
  g.add(0, 7, {});
  const Execution e = Engine(g).run();
  EXPECT_EQ(e.start, (std::vector<Time>{0, 5}));
  EXPECT_EQ(e.finish, (std::vector<Time>{5, 12}));
  EXPECT_EQ(e.events, 2);
}

TEST(Engine, ATaskWaitsForItsStreamAndForItsDependencies) {
  // compute 0-10, gather 0-4, gather 4-8 beside it; the next compute task needs the second gather and the
  // stream: 10.
  TaskGraph g(2);
  const TaskId a = g.add(0, 10, {});
  g.add(1, 4, {});
  const TaskId gather = g.add(1, 4, {});
  const TaskId next = g.add(0, 3, Ids{gather});
  const TaskId late = g.add(1, 1, Ids{a});  // 10-11 on the other stream
  const Execution e = Engine(g).run();
  EXPECT_EQ(e.start[next], 10);
  EXPECT_EQ(e.start[late], 10);
  EXPECT_EQ(e.finish[next], 13);
}

TEST(Engine, MembersOfAMatchStartWithTheLastAndLastAsLongAsTheLongest) {
  TaskGraph g(3);
  const MatchId match = g.new_match(3);
  const TaskId before = g.add(0, 10, {});
  const TaskId x = g.add(0, 2, Ids{before}, match), y = g.add(1, 4, {}, match), z = g.add(2, 3, {}, match);
  const Execution e = Engine(g).run();
  for (const TaskId t : {x, y, z}) {
    EXPECT_EQ(e.start[t], 10);
    EXPECT_EQ(e.finish[t], 14);
  }
}

TEST(Engine, TasksThatTakeNoTimeKeepTheirOrder) {
  TaskGraph g(2);
  const TaskId a = g.add(0, 0, {}), b = g.add(1, 0, Ids{a}), c = g.add(0, 0, Ids{b});
  const Execution e = Engine(g).run();
  EXPECT_TRUE(e.complete());
  EXPECT_EQ(e.finish[c], 0);
}

TEST(Engine, ADeadlockIsReportedAndNothingElseIsLost) {
  TaskGraph g(2);
  const MatchId m = g.new_match(2), n = g.new_match(2);
  const TaskId free = g.add(0, 1, {});
  g.add(0, 1, {}, m);
  g.add(0, 1, {}, n);
  g.add(1, 1, {}, n);  // the other way round
  const TaskId stuck = g.add(1, 1, {}, m);
  const Execution e = Engine(g).run();
  EXPECT_FALSE(e.complete());
  EXPECT_EQ(e.finish[free], 1);
  EXPECT_EQ(e.finish[stuck], kNever);
}

// On random graphs: the recurrence finish = max(finish of predecessors) + duration, in the order in which
// tasks were added.
TEST(Engine, GivesTheLongestPathOfRandomGraphsAndTheSameWhenRunAgain) {
  std::mt19937_64 random(7);
  for (int trial = 0; trial < 50; ++trial) {
    const int streams = 1 + static_cast<int>(random() % 20);
    TaskGraph g(streams);
    std::vector<Time> expected;
    std::vector<Time> durations;
    for (TaskId t = 0; t < 400; ++t) {
      Ids after;
      for (int i = 0; t > 0 && i < static_cast<int>(random() % 4); ++i)
        after.push_back(static_cast<TaskId>(random() % static_cast<unsigned>(t)));
      durations.push_back(static_cast<Time>(random() % 5));
      g.add(static_cast<StreamId>(random() % static_cast<unsigned>(streams)), durations.back(), after);
    }
    for (TaskId t = 0; t < g.tasks(); ++t) {
      Time start = 0;
      for (const TaskId p : g.predecessors(t)) start = std::max(start, expected[p]);
      expected.push_back(start + durations[t]);
    }
    Engine engine(g);
    EXPECT_EQ(engine.run().finish, expected);
    EXPECT_EQ(engine.run().finish, expected);
  }
}

}  // namespace
}  // namespace meshwright
