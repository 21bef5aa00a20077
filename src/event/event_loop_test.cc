#include "event/event_loop.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <thread>
#include <vector>

#include "event/signal_watch.h"

namespace mayfly {
namespace {

using std::chrono::hours;
using std::chrono::nanoseconds;

// Two connected descriptors.
struct Pair {
  UniqueFd near;
  UniqueFd far;
};

Pair make_pair_of_sockets() {
  std::array<int, 2> fds{};
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds.data()), 0);
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

void send_byte(const UniqueFd& fd) {
  EXPECT_EQ(::write(fd.get(), "x", 1), 1);
}

void take_byte(const UniqueFd& fd) {
  char byte = 0;
  EXPECT_EQ(::read(fd.get(), &byte, 1), 1);
}

class EventLoopTest : public ::testing::Test {
 protected:
  // Runs everything that is due now: stops by a task, which is posted from a task so that at least two rounds
  // look at the descriptors.
  void run_rounds(int rounds) {
    std::function<void()> next = [&] {
      if (--rounds <= 0) {
        loop_->stop();
      } else {
        loop_->post(next);
      }
    };
    // With no other work, a round takes at most kTasksPerRound of these; that many make sure of another look.
    rounds *= EventLoop::kTasksPerRound;
    loop_->post(next);
    ASSERT_TRUE(loop_->run().has_value());
  }

  std::unique_ptr<Watch> watch(const UniqueFd& fd, Interest interest,
                               std::function<void(Readiness)> callback) {
    return loop_->watch(fd.get(), interest, std::move(callback)).value();
  }

  std::unique_ptr<EventLoop> loop_ = EventLoop::create().value();
};

TEST_F(EventLoopTest, a_readable_descriptor_is_reported_until_it_is_read) {
  Pair pair = make_pair_of_sockets();
  int calls = 0;
  const auto watching = watch(pair.near, Interest::kReadable, [&](Readiness readiness) {
    EXPECT_TRUE(readiness.readable);
    EXPECT_FALSE(readiness.writable);
    EXPECT_FALSE(readiness.hung_up);
    if (++calls == 3) {
      take_byte(pair.near);
    }
  });
  send_byte(pair.far);
  run_rounds(5);
  EXPECT_EQ(calls, 3);
}

TEST_F(EventLoopTest, a_hang_up_is_reported_whatever_is_waited_for) {
  Pair pair = make_pair_of_sockets();
  bool hung_up = false;
  std::unique_ptr<Watch> watching = watch(
      pair.near, Interest::kWritable, [&](Readiness readiness) { hung_up = hung_up || readiness.hung_up; });
  pair.far.reset();
  run_rounds(2);
  EXPECT_TRUE(hung_up);
}

TEST_F(EventLoopTest, who_waits_for_a_hang_up_hears_of_nothing_else) {
  Pair pair = make_pair_of_sockets();
  int hang_ups = 0;
  const auto watching = watch(pair.near, Interest::kHangUp, [&](Readiness readiness) {
    EXPECT_TRUE(readiness.hung_up);
    ++hang_ups;
  });
  send_byte(pair.far);
  run_rounds(2);
  EXPECT_EQ(hang_ups, 0);
  pair.far.reset();
  run_rounds(2);
  EXPECT_GT(hang_ups, 0);
}

TEST_F(EventLoopTest, update_changes_what_is_waited_for) {
  Pair pair = make_pair_of_sockets();
  int readable = 0;
  int writable = 0;
  const auto watching = watch(pair.near, Interest::kReadable, [&](Readiness readiness) {
    readable += readiness.readable ? 1 : 0;
    writable += readiness.writable ? 1 : 0;
  });
  run_rounds(2);
  EXPECT_EQ(readable + writable, 0);
  ASSERT_TRUE(watching->update(Interest::kReadableAndWritable, true).has_value());
  run_rounds(2);
  EXPECT_EQ(readable, 0);
  EXPECT_GT(writable, 0);
}

TEST_F(EventLoopTest, a_disabled_watch_is_silent_even_when_hung_up_and_can_be_enabled_again) {
  Pair pair = make_pair_of_sockets();
  int calls = 0;
  const auto watching = watch(pair.near, Interest::kReadable, [&](Readiness) { ++calls; });
  ASSERT_TRUE(watching->update(Interest::kReadable, false).has_value());
  ASSERT_TRUE(watching->update(Interest::kReadable, false).has_value());
  pair.far.reset();
  run_rounds(2);
  EXPECT_EQ(calls, 0);
  ASSERT_TRUE(watching->update(Interest::kReadable, true).has_value());
  run_rounds(2);
  EXPECT_GT(calls, 0);
}

TEST_F(EventLoopTest, a_callback_may_destroy_its_own_watch) {
  Pair pair = make_pair_of_sockets();
  int calls = 0;
  std::unique_ptr<Watch> watching;
  std::string captured(100, 'c');  // freed with the callback: a sanitizer sees a use after it
  watching = watch(pair.near, Interest::kReadable, [&, captured](Readiness) {
    watching.reset();
    calls += captured == std::string(100, 'c') ? 1 : 100;
  });
  send_byte(pair.far);
  run_rounds(3);
  EXPECT_EQ(calls, 1);
}

TEST_F(EventLoopTest, of_two_ready_watches_that_destroy_each_other_only_one_is_called) {
  Pair first = make_pair_of_sockets();
  Pair second = make_pair_of_sockets();
  std::unique_ptr<Watch> first_watch;
  std::unique_ptr<Watch> second_watch;
  int calls = 0;
  first_watch = watch(first.near, Interest::kReadable, [&](Readiness) {
    ++calls;
    take_byte(first.near);
    second_watch.reset();
  });
  second_watch = watch(second.near, Interest::kReadable, [&](Readiness) {
    ++calls;
    take_byte(second.near);
    first_watch.reset();
  });
  send_byte(first.far);
  send_byte(second.far);
  run_rounds(3);
  EXPECT_EQ(calls, 1);
}

TEST_F(EventLoopTest, readiness_pending_for_a_destroyed_watch_does_not_reach_a_new_one_on_the_same_number) {
  Pair first = make_pair_of_sockets();
  Pair second = make_pair_of_sockets();
  Pair fresh = make_pair_of_sockets();
  std::array<std::unique_ptr<Watch>, 2> watches;
  std::unique_ptr<Watch> fresh_watch;
  int stale_calls = 0;
  // Whichever is called first closes the other's descriptor and puts a silent one in its place.
  const auto replace = [&](std::size_t other, Pair& mine, Pair& victim) {
    take_byte(mine.near);
    watches[other].reset();
    const int number = victim.near.release();
    ASSERT_EQ(::dup2(fresh.near.get(), number), number);
    victim.near = UniqueFd(number);
    fresh_watch = watch(victim.near, Interest::kReadable, [&](Readiness) { ++stale_calls; });
  };
  watches[0] = watch(first.near, Interest::kReadable, [&](Readiness) { replace(1, first, second); });
  watches[1] = watch(second.near, Interest::kReadable, [&](Readiness) { replace(0, second, first); });
  send_byte(first.far);
  send_byte(second.far);
  run_rounds(3);
  EXPECT_NE(fresh_watch, nullptr);
  EXPECT_EQ(stale_calls, 0);
}

TEST_F(EventLoopTest, a_watch_disabled_by_another_callback_of_the_batch_is_not_called) {
  Pair first = make_pair_of_sockets();
  Pair second = make_pair_of_sockets();
  std::array<std::unique_ptr<Watch>, 2> watches;
  int calls = 0;
  watches[0] = watch(first.near, Interest::kReadable, [&](Readiness) {
    ++calls;
    take_byte(first.near);
    EXPECT_TRUE(watches[1]->update(Interest::kReadable, false).has_value());
  });
  watches[1] = watch(second.near, Interest::kReadable, [&](Readiness) {
    ++calls;
    take_byte(second.near);
    EXPECT_TRUE(watches[0]->update(Interest::kReadable, false).has_value());
  });
  send_byte(first.far);
  send_byte(second.far);
  run_rounds(3);
  EXPECT_EQ(calls, 1);
}

TEST_F(EventLoopTest, a_callback_that_owns_the_last_of_another_watch_can_be_destroyed) {
  Pair first = make_pair_of_sockets();
  Pair second = make_pair_of_sockets();
  std::shared_ptr<Watch> inner = watch(second.near, Interest::kReadable, [](Readiness) {});
  std::unique_ptr<Watch> outer = watch(first.near, Interest::kReadable, [inner](Readiness) {});
  inner.reset();
  outer.reset();
  // Both are gone: the descriptors can be watched again.
  EXPECT_TRUE(loop_->watch(first.near.get(), Interest::kReadable, [](Readiness) {}).has_value());
  EXPECT_TRUE(loop_->watch(second.near.get(), Interest::kReadable, [](Readiness) {}).has_value());
}

TEST_F(EventLoopTest, watches_and_timers_may_outlive_the_loop) {
  Pair pair = make_pair_of_sockets();
  const auto watching = watch(pair.near, Interest::kReadable, [](Readiness) {});
  const auto timer = loop_->make_timer([] {}).value();
  loop_.reset();
  EXPECT_EQ(watching->update(Interest::kWritable, true).error().code(), ErrorCode::kBusy);
  EXPECT_TRUE(timer->start(nanoseconds{1}).has_value());
  timer->cancel();
}

TEST_F(EventLoopTest, a_descriptor_that_cannot_be_watched_is_an_error) {
  EXPECT_FALSE(loop_->watch(-1, Interest::kReadable, [](Readiness) {}).has_value());
  const UniqueFd file = open_file("/proc/self/exe", O_RDONLY, "regular file").value();
  EXPECT_EQ(loop_->watch(file.get(), Interest::kReadable, [](Readiness) {}).error().code(),
            ErrorCode::kPermission);
}

TEST_F(EventLoopTest, tasks_run_in_the_order_of_posting) {
  std::vector<int> order;
  for (int i = 0; i < 100; ++i) {
    loop_->post([&order, i] { order.push_back(i); });
  }
  loop_->post([&] { loop_->stop(); });
  ASSERT_TRUE(loop_->run().has_value());
  ASSERT_EQ(order.size(), 100U);
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(order[static_cast<std::size_t>(i)], i);
  }
}

TEST_F(EventLoopTest, a_task_that_posts_itself_for_ever_does_not_starve_a_descriptor) {
  Pair pair = make_pair_of_sockets();
  const auto watching = watch(pair.near, Interest::kReadable, [&](Readiness) { loop_->stop(); });
  std::function<void()> again = [&] { loop_->post(again); };
  loop_->post(again);
  send_byte(pair.far);
  EXPECT_TRUE(loop_->run().has_value());
}

TEST_F(EventLoopTest, a_stop_leaves_the_tasks_behind_it_for_the_next_run) {
  int later = 0;
  loop_->post([&] { loop_->stop(); });
  loop_->post([&] { ++later; });
  loop_->post([&] { loop_->stop(); });
  ASSERT_TRUE(loop_->run().has_value());
  EXPECT_EQ(later, 0);
  ASSERT_TRUE(loop_->run().has_value());
  EXPECT_EQ(later, 1);
}

TEST_F(EventLoopTest, a_stop_before_run_is_kept) {
  int calls = 0;
  loop_->post([&] { ++calls; });
  loop_->stop();
  ASSERT_TRUE(loop_->run().has_value());
  EXPECT_EQ(calls, 0);
}

TEST_F(EventLoopTest, threads_that_post_wake_the_loop_and_every_task_runs_once) {
  constexpr int kThreads = 4;
  constexpr int kTasks = 500;
  int ran = 0;
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      for (int task = 0; task < kTasks; ++task) {
        loop_->post([&] {
          if (++ran == kThreads * kTasks) {
            loop_->stop();
          }
        });
      }
    });
  }
  ASSERT_TRUE(loop_->run().has_value());
  for (auto& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(ran, kThreads * kTasks);
}

TEST_F(EventLoopTest, another_thread_can_stop_a_waiting_loop) {
  std::thread stopper([&] { loop_->stop(); });
  EXPECT_TRUE(loop_->run().has_value());
  stopper.join();
}

TEST_F(EventLoopTest, queued_tasks_are_dropped_with_the_loop_even_when_they_hold_a_watch) {
  Pair pair = make_pair_of_sockets();
  std::shared_ptr<Watch> watching = watch(pair.near, Interest::kReadable, [](Readiness) {});
  bool ran = false;
  loop_->post([&ran, watching] { ran = true; });
  watching.reset();
  loop_.reset();
  EXPECT_FALSE(ran);
}

TEST_F(EventLoopTest, timers_fire_once_in_the_order_of_their_ends) {
  std::vector<int> order;
  std::unique_ptr<EventRegistrar::Timer> last;
  last = loop_
             ->make_timer([&] {
               order.push_back(2);
               loop_->stop();
             })
             .value();
  const auto first = loop_
                         ->make_timer([&] {
                           order.push_back(1);
                           EXPECT_TRUE(last->start(nanoseconds{0}).has_value());
                         })
                         .value();
  ASSERT_TRUE(first->start(nanoseconds{-5}).has_value());
  ASSERT_TRUE(loop_->run().has_value());
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
}

TEST_F(EventLoopTest, a_cancelled_or_postponed_timer_does_not_fire_even_when_it_had_ended) {
  int calls = 0;
  const auto cancelled = loop_->make_timer([&] { ++calls; }).value();
  const auto postponed = loop_->make_timer([&] { ++calls; }).value();
  const auto sure = loop_->make_timer([&] { loop_->stop(); }).value();
  ASSERT_TRUE(cancelled->start(nanoseconds{0}).has_value());
  ASSERT_TRUE(postponed->start(nanoseconds{0}).has_value());
  cancelled->cancel();
  ASSERT_TRUE(postponed->start(hours{1}).has_value());
  ASSERT_TRUE(sure->start(nanoseconds{0}).has_value());
  ASSERT_TRUE(loop_->run().has_value());
  run_rounds(2);
  EXPECT_EQ(calls, 0);
}

TEST_F(EventLoopTest, a_timer_cancelled_by_another_of_the_same_batch_does_not_fire) {
  std::array<std::unique_ptr<EventRegistrar::Timer>, 2> timers;
  int calls = 0;
  for (std::size_t i = 0; i < 2; ++i) {
    timers[i] = loop_
                    ->make_timer([&, i] {
                      ++calls;
                      timers[1 - i]->cancel();
                      loop_->post([&] { loop_->stop(); });  // the batch under way is finished first
                    })
                    .value();
  }
  ASSERT_TRUE(timers[0]->start(nanoseconds{0}).has_value());
  ASSERT_TRUE(timers[1]->start(nanoseconds{0}).has_value());
  ASSERT_TRUE(loop_->run().has_value());
  run_rounds(2);
  EXPECT_EQ(calls, 1);
}

TEST_F(EventLoopTest, a_timer_may_destroy_itself) {
  std::unique_ptr<EventRegistrar::Timer> timer;
  timer = loop_
              ->make_timer([&] {
                timer.reset();
                loop_->stop();
              })
              .value();
  ASSERT_TRUE(timer->start(nanoseconds{0}).has_value());
  ASSERT_TRUE(loop_->run().has_value());
  EXPECT_EQ(timer, nullptr);
}

TEST_F(EventLoopTest, every_watched_signal_is_reported_with_its_number) {
  std::vector<int> seen;
  const std::array signals{SIGUSR1, SIGUSR2};
  const auto signal_watch = SignalWatch::create(*loop_, signals, [&](int signal) {
    seen.push_back(signal);
    if (seen.size() == 2) {
      loop_->stop();
    }
  });
  ASSERT_TRUE(signal_watch.has_value());
  ::raise(SIGUSR2);
  ::raise(SIGUSR1);
  ASSERT_TRUE(loop_->run().has_value());
  EXPECT_EQ(seen, (std::vector<int>{SIGUSR1, SIGUSR2}));  // the lowest number first: signal(7)
}

TEST_F(EventLoopTest, a_number_that_is_no_signal_is_refused) {
  const std::array signals{4711};
  EXPECT_EQ(SignalWatch::create(*loop_, signals, [](int) {}).error().code(), ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace mayfly
