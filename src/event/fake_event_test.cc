// The fake that device tests build on keeps the promises of the real registrar.
#include <gtest/gtest.h>

#include <vector>

#include "support/fake_event.h"

namespace mayfly {
namespace {

using std::chrono::nanoseconds;
using testing::ManualRegistrar;

TEST(ManualRegistrar, reports_only_what_is_waited_for) {
  ManualRegistrar registrar;
  std::vector<Readiness> seen;
  const auto watch = registrar.watch(7, Interest::kReadable, [&](Readiness r) { seen.push_back(r); }).value();
  EXPECT_TRUE(registrar.notify(7, {.readable = true, .writable = true}));
  EXPECT_FALSE(registrar.notify_writable(7));
  EXPECT_FALSE(registrar.notify_readable(8));
  ASSERT_EQ(seen.size(), 1U);
  EXPECT_TRUE(seen[0].readable);
  EXPECT_FALSE(seen[0].writable);
}

TEST(ManualRegistrar, a_disabled_or_destroyed_watch_is_silent) {
  ManualRegistrar registrar;
  int calls = 0;
  auto watch = registrar.watch(7, Interest::kReadable, [&](Readiness) { ++calls; }).value();
  ASSERT_TRUE(watch->update(Interest::kReadable, false).has_value());
  EXPECT_TRUE(registrar.watched(7));
  EXPECT_FALSE(registrar.interest(7).has_value());
  EXPECT_FALSE(registrar.notify_readable(7));
  watch.reset();
  EXPECT_FALSE(registrar.watched(7));
  EXPECT_FALSE(registrar.notify(7, {.hung_up = true}));
  EXPECT_EQ(calls, 0);
}

TEST(ManualRegistrar, a_callback_may_destroy_its_own_watch) {
  ManualRegistrar registrar;
  std::unique_ptr<Watch> watch;
  watch = registrar.watch(7, Interest::kReadable, [&](Readiness) { watch.reset(); }).value();
  EXPECT_TRUE(registrar.notify_readable(7));
  EXPECT_FALSE(registrar.notify_readable(7));
}

TEST(ManualRegistrar, timers_fire_in_order_as_time_is_advanced) {
  ManualRegistrar registrar;
  std::vector<int> order;
  const auto late = registrar.make_timer([&] { order.push_back(3); }).value();
  std::unique_ptr<EventRegistrar::Timer> chained = registrar.make_timer([&] { order.push_back(2); }).value();
  const auto early = registrar
                         .make_timer([&] {
                           order.push_back(1);
                           EXPECT_EQ(registrar.now(), nanoseconds{10});
                           EXPECT_TRUE(chained->start(nanoseconds{5}).has_value());
                         })
                         .value();
  const auto cancelled = registrar.make_timer([&] { order.push_back(4); }).value();
  ASSERT_TRUE(late->start(nanoseconds{20}).has_value());
  ASSERT_TRUE(early->start(nanoseconds{10}).has_value());
  ASSERT_TRUE(cancelled->start(nanoseconds{1}).has_value());
  cancelled->cancel();
  registrar.advance(nanoseconds{9});
  EXPECT_TRUE(order.empty());
  EXPECT_EQ(registrar.running_timers(), 2U);
  registrar.advance(nanoseconds{11});
  EXPECT_EQ(order, (std::vector<int>{1, 2, 3}));
  EXPECT_EQ(registrar.running_timers(), 0U);
}

TEST(ManualRegistrar, a_failure_asked_for_is_given_once) {
  ManualRegistrar registrar;
  registrar.fail_next(Error(ErrorCode::kExhausted, "no more"));
  EXPECT_EQ(registrar.watch(7, Interest::kReadable, [](Readiness) {}).error().code(), ErrorCode::kExhausted);
  EXPECT_TRUE(registrar.watch(7, Interest::kReadable, [](Readiness) {}).has_value());
}

}  // namespace
}  // namespace mayfly
