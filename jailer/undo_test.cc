#include "undo.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>

#include <string>

namespace mayfly::jail {
namespace {

using ::testing::ElementsAre;

TEST(Undo, the_last_is_taken_back_first_and_each_once) {
  std::vector<int> order;
  Undo undo;
  for (int number = 1; number <= 3; ++number) {
    undo.add([&order, number]() -> Result<void> {
      order.push_back(number);
      return {};
    });
  }
  EXPECT_TRUE(undo.run().empty());
  EXPECT_TRUE(undo.run().empty());
  EXPECT_THAT(order, ElementsAre(3, 2, 1));
}

TEST(Undo, what_fails_is_told_and_holds_up_nothing) {
  bool is_first_undone = false;
  Undo undo;
  undo.add([&]() -> Result<void> {
    is_first_undone = true;
    return {};
  });
  undo.add([]() -> Result<void> { return fail(ErrorCode::kIo, "stuck"); });
  const auto left = undo.run();
  ASSERT_EQ(left.size(), 1U);
  EXPECT_EQ(left[0].message(), "stuck");
  EXPECT_TRUE(is_first_undone);
}

TEST(UndoThread, it_keeps_what_the_other_thread_gives_up) {
  // The timer slack is a thread's own, as credentials are, and nobody needs rights to change it.
  Undo undo;
  int seen = -1;
  undo.add([&seen]() -> Result<void> {
    seen = ::prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
    return fail(ErrorCode::kIo, "stuck");
  });
  const int before = ::prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
  const auto thread = UndoThread::start(undo);
  ASSERT_TRUE(thread);
  ASSERT_EQ(::prctl(PR_SET_TIMERSLACK, before + 1, 0, 0, 0), 0);
  const auto left = (*thread)->run();
  ::prctl(PR_SET_TIMERSLACK, before, 0, 0, 0);
  ASSERT_EQ(left.size(), 1U);
  EXPECT_EQ(seen, before);
}

TEST(UndoThread, it_ends_without_an_order) {
  Undo undo;
  bool is_undone = false;
  undo.add([&is_undone]() -> Result<void> {
    is_undone = true;
    return {};
  });
  EXPECT_TRUE(UndoThread::start(undo));
  EXPECT_FALSE(is_undone);
}

}  // namespace
}  // namespace mayfly::jail
