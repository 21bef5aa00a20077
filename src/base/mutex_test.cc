#include "base/mutex.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <thread>

namespace mayfly {
namespace {

struct Shared {
  Mutex mutex;
  CondVar changed;
  int count MAYFLY_GUARDED_BY(mutex) = 0;
};

TEST(Mutex, keeps_threads_apart) {
  Shared shared;
  std::array<std::thread, 4> threads;
  for (auto& thread : threads) {
    thread = std::thread([&shared] {
      for (int i = 0; i < 10'000; ++i) {
        const MutexLock lock(shared.mutex);
        ++shared.count;
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  const MutexLock lock(shared.mutex);
  EXPECT_EQ(shared.count, 40'000);
}

TEST(CondVar, a_wait_lets_others_in_and_holds_the_lock_again_after) {
  Shared shared;
  std::thread other;
  {
    const MutexLock lock(shared.mutex);
    other = std::thread([&shared] {
      const MutexLock inside(shared.mutex);
      shared.count = 1;
      shared.changed.notify_all();
    });
    while (shared.count == 0) {
      shared.changed.wait(shared.mutex);
    }
    shared.count = 2;
  }
  other.join();
  const MutexLock lock(shared.mutex);
  EXPECT_EQ(shared.count, 2);
}

TEST(CondVar, a_deadline_that_has_passed_ends_the_wait_with_the_lock_held) {
  Shared shared;
  std::atomic<bool> got_in{false};
  std::thread other;
  {
    const MutexLock lock(shared.mutex);
    const auto passed = std::chrono::steady_clock::now() - std::chrono::seconds(1);
    while (shared.changed.wait_until(shared.mutex, passed)) {
    }
    other = std::thread([&] {
      const MutexLock inside(shared.mutex);
      got_in = true;
    });
    EXPECT_FALSE(got_in.load());
  }
  other.join();
  EXPECT_TRUE(got_in.load());
}

}  // namespace
}  // namespace mayfly
