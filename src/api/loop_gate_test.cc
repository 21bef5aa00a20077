#include "api/loop_gate.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

namespace mayfly::api {
namespace {

TEST(LoopGate, a_task_runs_on_the_loops_thread_and_its_sender_waits_for_its_end) {
  auto loop = EventLoop::create();
  ASSERT_TRUE(loop);
  LoopGate gate(**loop);
  std::thread::id ran_on;
  bool told = false;
  std::thread sender([&] {
    told = gate.run([&] { ran_on = std::this_thread::get_id(); });
    (*loop)->stop();
  });
  ASSERT_TRUE((*loop)->run());
  sender.join();
  EXPECT_TRUE(told);
  EXPECT_EQ(ran_on, std::this_thread::get_id());
}

TEST(LoopGate, closing_lets_a_waiting_sender_go_and_refuses_the_next) {
  auto loop = EventLoop::create();
  ASSERT_TRUE(loop);
  LoopGate gate(**loop);
  std::atomic<bool> ran{false};
  bool told = true;
  std::thread sender([&] { told = gate.run([&] { ran = true; }); });
  gate.close();
  sender.join();
  EXPECT_FALSE(told);
  EXPECT_FALSE(gate.run([&] { ran = true; }));
  EXPECT_FALSE(ran);
}

}  // namespace
}  // namespace mayfly::api
