#include "rate_limiter/rate_limiter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <random>

namespace mayfly {
namespace {

using testing::StartsWith;

constexpr std::uint64_t kMs = 1'000'000;
constexpr std::uint64_t kSecond = 1000 * kMs;
constexpr std::uint64_t kMax = std::numeric_limits<std::uint64_t>::max();

constexpr TokenBucketConfig kThousandBytes{.size = 1000, .refill_time_ms = 1000};
constexpr TokenBucketConfig kTenOps{.size = 10, .refill_time_ms = 1000};

RateLimiter limiter_of(const RateLimiterConfig& config, std::uint64_t now_ns = 0) {
  return RateLimiter::create(config, now_ns).value();
}

TEST(RateLimiter, without_buckets_everything_passes) {
  RateLimiter none;
  EXPECT_FALSE(none.limits());
  EXPECT_TRUE(none.consume(kMax, 0));
  EXPECT_EQ(none.ready_at(kMax, 3), 3u);
  none.give_back(kMax, 0);
  EXPECT_EQ(none.config(), RateLimiterConfig{});
  EXPECT_EQ(none.save(0), RateLimiterState{});

  // As the interface has it: a size or a refill time of 0 is no limit.
  auto zero = limiter_of({.bandwidth = TokenBucketConfig{.size = 0, .refill_time_ms = 5},
                          .ops = TokenBucketConfig{.size = 5, .refill_time_ms = 0}});
  EXPECT_FALSE(zero.limits());
  EXPECT_TRUE(zero.consume(kMax, 0));
  EXPECT_EQ(zero.config(), RateLimiterConfig{});
}

TEST(RateLimiter, each_bucket_limits_its_own) {
  auto bytes = limiter_of({.bandwidth = kThousandBytes, .ops = std::nullopt});
  for (int i = 0; i < 1000; ++i) {
    ASSERT_TRUE(bytes.consume(1, 0));
  }
  EXPECT_FALSE(bytes.consume(1, 0));
  EXPECT_TRUE(bytes.consume(0, 0)) << "an operation without bytes costs no bandwidth";

  auto ops = limiter_of({.bandwidth = std::nullopt, .ops = kTenOps});
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(ops.consume(1'000'000'000, 0));
  }
  EXPECT_FALSE(ops.consume(0, 0));
  EXPECT_TRUE(ops.consume(0, 100 * kMs));
}

TEST(RateLimiter, operation_refused_by_one_bucket_costs_nothing_in_the_other) {
  auto limiter = limiter_of({.bandwidth = kThousandBytes, .ops = kTenOps});
  EXPECT_TRUE(limiter.consume(600, 0));
  auto before = limiter.save(0);
  EXPECT_FALSE(limiter.consume(600, 0));
  EXPECT_EQ(limiter.save(0), before);

  for (int i = 0; i < 9; ++i) {
    EXPECT_TRUE(limiter.consume(1, 0));
  }
  before = limiter.save(0);
  EXPECT_FALSE(limiter.consume(1, 0));
  EXPECT_EQ(limiter.save(0), before);
}

TEST(RateLimiter, ready_at_is_the_later_of_both) {
  auto limiter = limiter_of({.bandwidth = kThousandBytes, .ops = kTenOps});
  EXPECT_EQ(limiter.ready_at(1000, 5), 5u);
  EXPECT_TRUE(limiter.consume(1000, 0));
  EXPECT_EQ(limiter.ready_at(50, 0), 50 * kMs) << "bandwidth";
  for (int i = 0; i < 9; ++i) {
    EXPECT_TRUE(limiter.consume(0, 0));
  }
  EXPECT_EQ(limiter.ready_at(50, 0), 100 * kMs) << "operations";
  EXPECT_EQ(limiter.ready_at(500, 0), 500 * kMs) << "bandwidth again";
  EXPECT_FALSE(limiter.consume(500, 500 * kMs - 1));
  EXPECT_TRUE(limiter.consume(500, 500 * kMs));
}

TEST(RateLimiter, debt_of_bandwidth_holds_back_operations_without_bytes) {
  auto limiter = limiter_of({.bandwidth = kThousandBytes, .ops = kTenOps});
  EXPECT_TRUE(limiter.consume(3000, 0));
  EXPECT_FALSE(limiter.consume(0, 2 * kSecond - 1));
  EXPECT_EQ(limiter.ready_at(0, 0), 2 * kSecond);
  EXPECT_TRUE(limiter.consume(0, 2 * kSecond));
}

TEST(RateLimiter, operation_given_back_costs_nothing) {
  auto limiter = limiter_of({.bandwidth = kThousandBytes, .ops = kTenOps});
  EXPECT_TRUE(limiter.consume(200, 0));
  const auto before = limiter.save(0);
  EXPECT_TRUE(limiter.consume(300, 0));
  limiter.give_back(300, 0);
  EXPECT_EQ(limiter.save(0), before);
}

TEST(RateLimiter, operation_that_is_several_costs_as_many) {
  auto limiter = limiter_of({.bandwidth = kThousandBytes, .ops = kTenOps});
  EXPECT_TRUE(limiter.consume(10, 0, 7));
  const auto before = limiter.save(0);
  EXPECT_FALSE(limiter.consume(10, 0, 4));
  EXPECT_EQ(limiter.save(0), before);
  EXPECT_EQ(limiter.ready_at(10, 0, 4), 100 * kMs);
  EXPECT_TRUE(limiter.consume(10, 0, 3));
  limiter.give_back(10, 0, 3);
  EXPECT_EQ(limiter.save(0), before);
}

TEST(RateLimiter, update_replaces_what_it_names_and_leaves_the_rest) {
  auto limiter = limiter_of({.bandwidth = kThousandBytes, .ops = kTenOps});
  EXPECT_TRUE(limiter.consume(5000, 0));  // in debt, one operation gone

  const TokenBucketConfig larger{.size = 2000, .refill_time_ms = 10, .one_time_burst = 7};
  ASSERT_TRUE(limiter.update({.bandwidth = larger, .ops = std::nullopt}, 0).has_value());
  EXPECT_EQ(limiter.config(), (RateLimiterConfig{.bandwidth = larger, .ops = kTenOps}));
  const auto state = limiter.save(0);
  EXPECT_EQ(state.bandwidth->tokens, 2000u) << "full, without the debt";
  EXPECT_EQ(state.bandwidth->burst, 7u);
  EXPECT_EQ(state.ops->tokens, 9u) << "as it was";

  ASSERT_TRUE(limiter.update({.bandwidth = TokenBucketConfig{}, .ops = std::nullopt}, 0).has_value());
  EXPECT_EQ(limiter.config(), (RateLimiterConfig{.bandwidth = std::nullopt, .ops = kTenOps}));
  ASSERT_TRUE(limiter.update({.bandwidth = std::nullopt, .ops = std::nullopt}, 0).has_value());
  EXPECT_EQ(limiter.config(), (RateLimiterConfig{.bandwidth = std::nullopt, .ops = kTenOps}));
  ASSERT_TRUE(limiter.update({.bandwidth = std::nullopt, .ops = TokenBucketConfig{}}, 0).has_value());
  EXPECT_FALSE(limiter.limits());
}

TEST(RateLimiter, update_with_an_error_changes_nothing) {
  auto limiter = limiter_of({.bandwidth = kThousandBytes, .ops = kTenOps});
  const auto before = limiter.save(0);
  const auto result = limiter.update({.bandwidth = TokenBucketConfig{.size = 5, .refill_time_ms = 5},
                                      .ops = TokenBucketConfig{.size = 1, .refill_time_ms = kMax}},
                                     0);
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_THAT(result.error().message(), StartsWith("ops: refill_time: 18446744073709551615 ms"));
  EXPECT_EQ(limiter.save(0), before);
}

TEST(RateLimiter, bad_configuration_names_its_bucket) {
  const auto limiter = RateLimiter::create(
      {.bandwidth = TokenBucketConfig{.size = 1, .refill_time_ms = kMax}, .ops = std::nullopt}, 0);
  ASSERT_FALSE(limiter.has_value());
  EXPECT_THAT(limiter.error().message(), StartsWith("bandwidth: refill_time"));
}

TEST(RateLimiter, saved_limiter_goes_on_where_it_was) {
  auto limiter = limiter_of({.bandwidth = kThousandBytes, .ops = kTenOps});
  EXPECT_TRUE(limiter.consume(5000, 0));
  auto restored = RateLimiter::restore(limiter.save(kSecond + 1), 9 * kSecond).value();
  EXPECT_EQ(restored.config(), limiter.config());
  EXPECT_EQ(restored.ready_at(0, 9 * kSecond), 9 * kSecond + 3 * kSecond - 1);
  EXPECT_EQ(RateLimiter::restore({}, 0).value().config(), RateLimiterConfig{});
}

TEST(RateLimiter, bad_state_names_its_bucket) {
  auto state = limiter_of({.bandwidth = kThousandBytes, .ops = kTenOps}).save(0);
  state.ops->tokens = 11;
  const auto limiter = RateLimiter::restore(state, 0);
  ASSERT_FALSE(limiter.has_value());
  EXPECT_THAT(limiter.error().message(), StartsWith("ops: saved token bucket: holds more"));
}

TEST(RateLimiterProperty, two_buckets_agree_with_two_buckets_alone) {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    std::mt19937_64 random(seed);
    const TokenBucketConfig bandwidth{.size = 1 + random() % 100'000,
                                      .refill_time_ms = 1 + random() % 100,
                                      .one_time_burst = random() % 1000};
    const TokenBucketConfig ops{.size = 1 + random() % 50, .refill_time_ms = 1 + random() % 100};
    auto limiter = limiter_of({.bandwidth = bandwidth, .ops = ops});
    auto bytes_alone = TokenBucket::create(bandwidth, 0).value();
    auto ops_alone = TokenBucket::create(ops, 0).value();
    std::uint64_t now = 0;
    for (int step = 0; step < 300; ++step) {
      now += random() % (5 * kMs);
      const std::uint64_t bytes = random() % (bandwidth.size * 2);
      const std::uint64_t ready = limiter.ready_at(bytes, now);
      const bool both = bytes_alone.allows(bytes, now) && ops_alone.allows(1, now);
      ASSERT_EQ(ready == now, both);
      ASSERT_EQ(limiter.consume(bytes, now), both);
      if (both) {
        bytes_alone.consume(bytes, now);
        ops_alone.consume(1, now);
      } else {
        RateLimiter early = limiter;
        ASSERT_FALSE(early.consume(bytes, ready - 1));
        ASSERT_TRUE(RateLimiter(limiter).consume(bytes, ready));
      }
      ASSERT_EQ(limiter.save(now).bandwidth, bytes_alone.save(now));
      ASSERT_EQ(limiter.save(now).ops, ops_alone.save(now));
    }
  }
}

}  // namespace
}  // namespace mayfly
