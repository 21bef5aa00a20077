#include "base/worker_thread.h"

#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "base/thread_name.h"

namespace mayfly {
namespace {

TEST(WorkerThread, a_task_runs_on_the_thread_and_is_over_when_run_comes_back) {
  const auto worker = WorkerThread::start("worker", {}).value();
  std::thread::id where;
  int value = 0;
  worker->run([&] {
    where = std::this_thread::get_id();
    value = 7;
  });
  EXPECT_NE(where, std::this_thread::get_id());
  EXPECT_EQ(value, 7);
}

TEST(WorkerThread, tasks_of_many_threads_run_one_at_a_time) {
  const auto worker = WorkerThread::start("worker", {}).value();
  int inside = 0;  // touched by tasks only: a second one beside the first is a data race
  int most = 0;
  int done = 0;
  constexpr int kCallers = 8;
  std::vector<std::thread> callers;
  callers.reserve(kCallers);
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 50; ++round) {
        worker->run([&] {
          most = std::max(most, ++inside);
          --inside;
          ++done;
        });
      }
    });
  }
  for (std::thread& caller : callers) {
    caller.join();
  }
  EXPECT_EQ(most, 1);
  EXPECT_EQ(done, 400);
}

TEST(WorkerThread, it_is_confined_before_its_first_task) {
  std::thread::id confined;
  const auto worker = WorkerThread::start("worker", [&]() -> Result<void> {
                        confined = std::this_thread::get_id();
                        return {};
                      }).value();
  ASSERT_TRUE(worker->wait_confined().has_value());
  std::thread::id where;
  worker->run([&] { where = std::this_thread::get_id(); });
  EXPECT_EQ(confined, where);
}

TEST(WorkerThread, one_that_cannot_be_confined_says_why) {
  const auto worker = WorkerThread::start("worker", [] {
                        return Result<void>(fail(ErrorCode::kUnsupported, "no walls here"));
                      }).value();
  const auto confined = worker->wait_confined();
  ASSERT_FALSE(confined.has_value());
  EXPECT_EQ(confined.error().message(), "no walls here");
}

}  // namespace
}  // namespace mayfly
