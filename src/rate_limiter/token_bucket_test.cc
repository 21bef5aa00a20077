#include "rate_limiter/token_bucket.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace mayfly {
namespace {

using testing::HasSubstr;

__extension__ using Parts = __int128;

constexpr std::uint64_t kMs = 1'000'000;
constexpr std::uint64_t kSecond = 1000 * kMs;
constexpr std::uint64_t kMax = std::numeric_limits<std::uint64_t>::max();

TokenBucket bucket_of(const TokenBucketConfig& config, std::uint64_t now_ns = 0) {
  return TokenBucket::create(config, now_ns).value();
}

TEST(TokenBucket, size_or_refill_time_of_zero_does_not_limit) {
  EXPECT_FALSE(TokenBucketConfig{}.limits());
  EXPECT_FALSE((TokenBucketConfig{.size = 1, .refill_time_ms = 0}).limits());
  EXPECT_FALSE((TokenBucketConfig{.size = 0, .refill_time_ms = 1}).limits());
  EXPECT_TRUE((TokenBucketConfig{.size = 1, .refill_time_ms = 1}).limits());
}

TEST(TokenBucket, configuration_that_cannot_be_kept_is_refused_by_the_name_of_its_field) {
  const auto refusal = [](const TokenBucketConfig& config) {
    const auto bucket = TokenBucket::create(config, 0);
    EXPECT_FALSE(bucket.has_value());
    return bucket ? "" : bucket.error().message();
  };
  EXPECT_THAT(refusal({.size = 0, .refill_time_ms = 1}), HasSubstr("size"));
  EXPECT_THAT(refusal({.size = 1, .refill_time_ms = 0}), HasSubstr("refill_time"));
  EXPECT_THAT(refusal({.size = 1, .refill_time_ms = TokenBucket::kMaxRefillTimeMs + 1}),
              HasSubstr("refill_time"));
  EXPECT_TRUE(
      TokenBucket::create({.size = kMax, .refill_time_ms = TokenBucket::kMaxRefillTimeMs}, 0).has_value());
}

TEST(TokenBucket, full_at_first_and_refilled_linearly_up_to_its_size) {
  auto bucket = bucket_of({.size = 1000, .refill_time_ms = 100});
  EXPECT_TRUE(bucket.consume(1000, 0));
  EXPECT_FALSE(bucket.consume(1, 0));
  EXPECT_FALSE(bucket.consume(500, 50 * kMs - 1));
  EXPECT_TRUE(bucket.consume(500, 50 * kMs));
  EXPECT_FALSE(bucket.consume(1, 50 * kMs));
  EXPECT_FALSE(bucket.consume(1000, 150 * kMs - 1));
  EXPECT_TRUE(bucket.consume(1000, 10 * kSecond)) << "full again";
  EXPECT_FALSE(bucket.consume(1, 10 * kSecond)) << "and no fuller than full";
}

TEST(TokenBucket, refused_operation_takes_nothing) {
  auto bucket = bucket_of({.size = 10, .refill_time_ms = 1000, .one_time_burst = 5});
  EXPECT_TRUE(bucket.consume(8, 0));
  const auto before = bucket.save(0);
  EXPECT_EQ(before.tokens, 7u);
  EXPECT_FALSE(bucket.consume(8, 0));
  EXPECT_EQ(bucket.save(0), before);
}

TEST(TokenBucket, one_time_burst_is_spent_first_and_does_not_come_back) {
  auto bucket = bucket_of({.size = 10, .refill_time_ms = 1000, .one_time_burst = 100});
  EXPECT_TRUE(bucket.consume(60, 0));
  EXPECT_EQ(bucket.save(0).burst, 40u);
  EXPECT_EQ(bucket.save(0).tokens, 10u);
  EXPECT_TRUE(bucket.consume(45, 0)) << "partly from the burst";
  EXPECT_EQ(bucket.save(0).burst, 0u);
  EXPECT_EQ(bucket.save(0).tokens, 5u);
  EXPECT_EQ(bucket.save(100 * kSecond).burst, 0u);
  EXPECT_EQ(bucket.save(100 * kSecond).tokens, 10u);
}

TEST(TokenBucket, operation_larger_than_the_bucket_passes_and_blocks_until_paid) {
  auto bucket = bucket_of({.size = 10, .refill_time_ms = 1000});
  EXPECT_TRUE(bucket.consume(35, 0));  // 25 too many: 2.5 s
  EXPECT_EQ(bucket.save(0).debt, 25u);
  EXPECT_FALSE(bucket.consume(0, 2500 * kMs - 1)) << "nothing passes a debt";
  EXPECT_FALSE(bucket.consume(100, 2500 * kMs - 1));
  EXPECT_TRUE(bucket.consume(0, 2500 * kMs));
  EXPECT_FALSE(bucket.consume(1, 2500 * kMs)) << "the bucket is empty then";
  EXPECT_TRUE(bucket.consume(1, 2600 * kMs));
  EXPECT_TRUE(bucket.consume(11, 2600 * kMs)) << "without a debt it need not wait";
}

TEST(TokenBucket, operation_that_exactly_empties_burst_and_bucket_leaves_no_debt) {
  auto bucket = bucket_of({.size = 10, .refill_time_ms = 1000, .one_time_burst = 5});
  EXPECT_TRUE(bucket.consume(15, 0));
  EXPECT_EQ(bucket.save(0).debt, 0u);
  EXPECT_TRUE(bucket.consume(0, 0));
}

TEST(TokenBucket, ready_at_names_the_first_nanosecond) {
  auto bucket = bucket_of({.size = 3, .refill_time_ms = 1});
  EXPECT_EQ(bucket.ready_at(3, 7), 7u);
  EXPECT_TRUE(bucket.consume(3, 0));
  EXPECT_EQ(bucket.ready_at(1, 0), 333'334u);  // 333,333 1/3 ns
  EXPECT_EQ(bucket.ready_at(2, 0), 666'667u);
  EXPECT_EQ(bucket.ready_at(3, 0), kMs);
  EXPECT_EQ(bucket.ready_at(4, 0), 0u) << "never fits, so it passes";
  EXPECT_FALSE(bucket.consume(1, 333'333));
  EXPECT_TRUE(bucket.consume(1, 333'334));
  EXPECT_EQ(bucket.ready_at(1, 333'334), 666'667u) << "the third of a nanosecond is not lost";
}

TEST(TokenBucket, time_that_runs_back_counts_as_standing_still) {
  auto bucket = bucket_of({.size = 10, .refill_time_ms = 10}, kSecond);
  EXPECT_TRUE(bucket.consume(10, kSecond));
  EXPECT_FALSE(bucket.consume(1, 0));
  EXPECT_EQ(bucket.ready_at(1, 0), kSecond + kMs);
  EXPECT_TRUE(bucket.consume(1, kSecond + kMs));
  EXPECT_FALSE(bucket.consume(1, kSecond + kMs));
}

TEST(TokenBucket, largest_values_do_not_overflow) {
  const TokenBucketConfig slow{.size = 1, .refill_time_ms = TokenBucket::kMaxRefillTimeMs};
  auto bucket = bucket_of(slow);
  EXPECT_TRUE(bucket.consume(kMax, 0));
  EXPECT_EQ(bucket.save(0).debt, kMax - 1);
  EXPECT_EQ(bucket.ready_at(1, 0), kMax) << "beyond the clock";
  EXPECT_EQ(bucket.ready_at(0, 5), kMax);
  // 2^64 - 1 ns are 5.8 times a hundred years.
  EXPECT_EQ(bucket.save(kMax).debt, kMax - 6);

  auto wide =
      bucket_of({.size = kMax, .refill_time_ms = TokenBucket::kMaxRefillTimeMs, .one_time_burst = kMax});
  EXPECT_TRUE(wide.consume(kMax, 0));
  EXPECT_TRUE(wide.consume(kMax, 0));
  EXPECT_EQ(wide.ready_at(kMax, 0), TokenBucket::kMaxRefillTimeMs * kMs);
  EXPECT_FALSE(wide.consume(kMax, TokenBucket::kMaxRefillTimeMs * kMs - 1));
  EXPECT_TRUE(wide.consume(kMax, kMax));

  auto fast = bucket_of({.size = kMax, .refill_time_ms = 1});
  EXPECT_TRUE(fast.consume(kMax, 0));
  EXPECT_TRUE(fast.consume(kMax, kMax));
}

TEST(TokenBucket, tokens_given_back_pay_the_debt_and_never_overfill) {
  auto bucket = bucket_of({.size = 10, .refill_time_ms = 1000, .one_time_burst = 5});
  EXPECT_TRUE(bucket.consume(40, 0));
  EXPECT_EQ(bucket.save(0).debt, 25u);
  bucket.give_back(20, 0);
  EXPECT_EQ(bucket.save(0).debt, 5u);
  bucket.give_back(8, 0);
  EXPECT_EQ(bucket.save(0).debt, 0u);
  EXPECT_EQ(bucket.save(0).tokens, 3u);
  bucket.give_back(kMax, 0);
  EXPECT_EQ(bucket.save(0).tokens, 10u);
  EXPECT_EQ(bucket.save(0).burst, 0u);
}

TEST(TokenBucket, saved_bucket_goes_on_where_it_was_at_another_time) {
  auto bucket = bucket_of({.size = 7, .refill_time_ms = 3, .one_time_burst = 9}, 5);
  EXPECT_TRUE(bucket.consume(15, 5));
  const auto state = bucket.save(1'000'001);
  EXPECT_NE(state.fraction, 0u);
  auto restored = TokenBucket::restore(state, 77 * kSecond).value();
  EXPECT_EQ(restored.save(77 * kSecond), state) << "no time passes in a snapshot";
  for (std::uint64_t later = 0; later < 4 * kMs; later += 12'345) {
    ASSERT_EQ(restored.save(77 * kSecond + later), bucket.save(1'000'001 + later));
    ASSERT_EQ(restored.ready_at(7, 77 * kSecond + later) - 77 * kSecond,
              bucket.ready_at(7, 1'000'001 + later) - 1'000'001);
  }
}

TEST(TokenBucket, state_that_no_bucket_has_is_refused) {
  const TokenBucketState good{.config = {.size = 10, .refill_time_ms = 1, .one_time_burst = 3},
                              .tokens = 4,
                              .fraction = 999'999,
                              .burst = 3};
  EXPECT_TRUE(TokenBucket::restore(good, 0).has_value());
  const auto refused = [&](auto change) {
    TokenBucketState state = good;
    change(state);
    const auto bucket = TokenBucket::restore(state, 0);
    return !bucket && bucket.error().code() == ErrorCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused([](auto& state) { state.tokens = 11; }));
  EXPECT_TRUE(refused([](auto& state) { state.fraction = 1'000'000; }));
  EXPECT_TRUE(refused([](auto& state) { state.tokens = 10; }));
  EXPECT_TRUE(refused([](auto& state) { state.debt = 1; }));
  EXPECT_TRUE(refused([](auto& state) { state.burst = 4; }));
  EXPECT_TRUE(refused([](auto& state) { state.config.size = 0; }));
  EXPECT_TRUE(refused([](auto& state) { state.config.refill_time_ms = 0; }));
}

// --- Properties ---

// A bucket as one signed number, in parts of a token: a nanosecond adds `size` of them, a token is
// `refill_ns`.
class Model {
 public:
  explicit Model(const TokenBucketConfig& config)
      : size_(config.size),
        token_(Parts{config.refill_time_ms} * kMs),
        level_(size_ * token_),
        burst_(config.one_time_burst) {}

  void pass(std::uint64_t ns) { level_ = std::min(size_ * token_, level_ + size_ * ns); }
  bool consume(std::uint64_t tokens) {
    const Parts rest = std::max<Parts>(0, Parts{tokens} - burst_);
    if (level_ < 0 || (rest <= size_ && rest * token_ > level_)) {
      return false;
    }
    burst_ -= tokens - rest;
    level_ -= rest * token_;
    return true;
  }
  Parts level() const { return level_; }
  Parts burst() const { return burst_; }
  Parts token() const { return token_; }

 private:
  Parts size_;
  Parts token_;
  Parts level_;
  Parts burst_;
};

TokenBucketConfig any_config(std::mt19937_64& random) {
  const auto up_to = [&random](std::uint64_t limit) {
    return std::uniform_int_distribution<std::uint64_t>(1, limit)(random);
  };
  const std::vector<std::uint64_t> sizes{1, 7, up_to(100), up_to(1 << 20), up_to(1ULL << 40)};
  const std::vector<std::uint64_t> times{1, 3, up_to(1000), up_to(100'000)};
  return {.size = sizes[random() % sizes.size()],
          .refill_time_ms = times[random() % times.size()],
          .one_time_burst = random() % 2 == 0 ? 0 : up_to(1 << 20)};
}

// Waits and operations of all magnitudes.
struct Walk {
  std::mt19937_64 random;

  std::uint64_t up_to_bits(unsigned bits) { return random() & ((1ULL << random() % bits) - 1); }
  std::uint64_t wait_ns() { return up_to_bits(36); }
  std::uint64_t operation(const TokenBucketConfig& config) {
    switch (random() % 4) {
      case 0:
        return random() % (config.size + 1);
      case 1:
        return config.size;
      case 2:
        return random() % (3 * config.size) + 1;
      default:
        return up_to_bits(24);
    }
  }
};

TEST(TokenBucketProperty, random_walk_agrees_with_the_model) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    Walk walk{std::mt19937_64(seed)};
    const TokenBucketConfig config = any_config(walk.random);
    std::uint64_t now = walk.up_to_bits(40);
    auto bucket = bucket_of(config, now);
    Model model(config);
    Parts consumed = 0;  // tokens
    const std::uint64_t start = now;
    for (int step = 0; step < 400; ++step) {
      const std::uint64_t wait = walk.wait_ns();
      now += wait;
      model.pass(wait);
      const std::uint64_t tokens = walk.operation(config);

      // The time it is ready at is exactly the first.
      const std::uint64_t ready = bucket.ready_at(tokens, now);
      Model then = model;
      if (ready > now) {
        then.pass(ready - now - 1);
        ASSERT_FALSE(Model(then).consume(tokens)) << "seed " << seed << " step " << step;
        then.pass(1);
      }
      ASSERT_TRUE(then.consume(tokens)) << "seed " << seed << " step " << step;

      const bool passed = bucket.consume(tokens, now);
      ASSERT_EQ(passed, model.consume(tokens)) << "seed " << seed << " step " << step;
      consumed += passed ? tokens : 0;
      const TokenBucketState state = bucket.save(now);
      ASSERT_TRUE(model.level() ==
                  (Parts{state.tokens} - Parts{state.debt}) * model.token() + Parts{state.fraction});
      ASSERT_TRUE(model.burst() == state.burst);

      // Never more than what there was, what the time brought, and what is owed.
      ASSERT_TRUE((consumed - state.debt) * model.token() <=
                  (Parts{config.one_time_burst} + config.size) * model.token() +
                      Parts{config.size} * (now - start));

      // A bucket that goes through a snapshot is the same bucket.
      if (walk.random() % 16 == 0) {
        bucket = TokenBucket::restore(state, now).value();
      }
    }
  }
}

TEST(TokenBucketProperty, consumer_that_waits_as_told_gets_all_that_the_time_brings) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    Walk walk{std::mt19937_64(seed)};
    const TokenBucketConfig config = any_config(walk.random);
    auto bucket = bucket_of(config);
    const Parts refill_ns = Parts{config.refill_time_ms} * kMs;
    std::uint64_t now = 0;
    Parts consumed = 0;
    Parts lost_before = 0;
    std::uint64_t debt = 0;
    for (int step = 0; step < 400; ++step) {
      const std::uint64_t tokens = walk.operation(config);
      const std::uint64_t ready = bucket.ready_at(tokens, now);
      // No operation waits for more than its predecessor's debt and a whole bucket.
      ASSERT_TRUE(Parts{ready - now} * config.size <= (Parts{debt} + config.size) * refill_ns + config.size);
      now = ready;
      const bool full = bucket.save(now).tokens == config.size;
      ASSERT_TRUE(bucket.consume(tokens, now)) << "seed " << seed << " step " << step;
      consumed += tokens;
      const TokenBucketState state = bucket.save(now);
      debt = state.debt;
      // Not a part of a token is lost or made, but for the rest of the nanosecond in which the bucket got
      // full.
      const Parts lost =
          (Parts{config.one_time_burst} + config.size - consumed - state.tokens - state.burst + debt) *
              refill_ns +
          Parts{config.size} * now - state.fraction;
      ASSERT_TRUE(lost >= lost_before && lost < lost_before + (full ? Parts{config.size} : Parts{1}))
          << "seed " << seed << " step " << step;
      lost_before = lost;
    }
  }
}

TEST(TokenBucketProperty, rate_does_not_depend_on_how_often_it_is_asked) {
  // 7 tokens in 3 ms: a token every 428,571 3/7 ns, asked for every nanosecond and a half on average.
  auto often = bucket_of({.size = 7, .refill_time_ms = 3});
  auto seldom = bucket_of({.size = 7, .refill_time_ms = 3});
  EXPECT_TRUE(often.consume(7 + 7'000, 0));
  EXPECT_TRUE(seldom.consume(7 + 7'000, 0));
  std::mt19937_64 random(1);
  std::uint64_t now = 0;
  for (int i = 0; i < 200'000; ++i) {
    now += random() % 4;
    often.allows(1, now);
  }
  EXPECT_EQ(often.save(now), seldom.save(now));
}

}  // namespace
}  // namespace mayfly
