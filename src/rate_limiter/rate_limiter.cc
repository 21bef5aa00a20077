#include "rate_limiter/rate_limiter.h"

#include <algorithm>
#include <string_view>

namespace mayfly {
namespace {

// The bucket for `config`, or none where that does not limit.
Result<std::optional<TokenBucket>> make_bucket(const TokenBucketConfig& config, std::uint64_t now_ns,
                                               std::string_view name) {
  if (!config.limits()) {
    return std::optional<TokenBucket>();
  }
  auto bucket = TokenBucket::create(config, now_ns);
  if (!bucket) {
    return tl::make_unexpected(bucket.error().within(name));
  }
  return std::optional<TokenBucket>(*bucket);
}

Result<std::optional<TokenBucket>> restore_bucket(const std::optional<TokenBucketState>& state,
                                                  std::uint64_t now_ns, std::string_view name) {
  if (!state) {
    return std::optional<TokenBucket>();
  }
  auto bucket = TokenBucket::restore(*state, now_ns);
  if (!bucket) {
    return tl::make_unexpected(bucket.error().within(name));
  }
  return std::optional<TokenBucket>(*bucket);
}

}  // namespace

Result<RateLimiter> RateLimiter::create(const RateLimiterConfig& config, std::uint64_t now_ns) {
  RateLimiter limiter;
  MAYFLY_TRY(limiter.update(config, now_ns));
  return limiter;
}

Result<RateLimiter> RateLimiter::restore(const RateLimiterState& state, std::uint64_t now_ns) {
  RateLimiter limiter;
  MAYFLY_TRY_ASSIGN(limiter.bandwidth_, restore_bucket(state.bandwidth, now_ns, "bandwidth"));
  MAYFLY_TRY_ASSIGN(limiter.ops_, restore_bucket(state.ops, now_ns, "ops"));
  return limiter;
}

RateLimiterState RateLimiter::save(std::uint64_t now_ns) const {
  RateLimiterState state;
  if (bandwidth_) {
    state.bandwidth = bandwidth_->save(now_ns);
  }
  if (ops_) {
    state.ops = ops_->save(now_ns);
  }
  return state;
}

RateLimiterConfig RateLimiter::config() const {
  RateLimiterConfig config;
  if (bandwidth_) {
    config.bandwidth = bandwidth_->config();
  }
  if (ops_) {
    config.ops = ops_->config();
  }
  return config;
}

Result<void> RateLimiter::update(const RateLimiterConfig& changes, std::uint64_t now_ns) {
  auto bandwidth = bandwidth_;
  auto ops = ops_;
  if (changes.bandwidth) {
    MAYFLY_TRY_ASSIGN(bandwidth, make_bucket(*changes.bandwidth, now_ns, "bandwidth"));
  }
  if (changes.ops) {
    MAYFLY_TRY_ASSIGN(ops, make_bucket(*changes.ops, now_ns, "ops"));
  }
  bandwidth_ = bandwidth;
  ops_ = ops;
  return {};
}

bool RateLimiter::consume(std::uint64_t bytes, std::uint64_t now_ns, std::uint64_t operations) {
  if (ops_ && !ops_->allows(operations, now_ns)) {
    return false;
  }
  if (bandwidth_ && !bandwidth_->consume(bytes, now_ns)) {
    return false;
  }
  if (ops_) {
    ops_->consume(operations, now_ns);
  }
  return true;
}

std::uint64_t RateLimiter::ready_at(std::uint64_t bytes, std::uint64_t now_ns,
                                    std::uint64_t operations) const {
  std::uint64_t when = now_ns;
  if (bandwidth_) {
    when = std::max(when, bandwidth_->ready_at(bytes, now_ns));
  }
  if (ops_) {
    when = std::max(when, ops_->ready_at(operations, now_ns));
  }
  return when;
}

void RateLimiter::give_back(std::uint64_t bytes, std::uint64_t now_ns, std::uint64_t operations) {
  if (bandwidth_) {
    bandwidth_->give_back(bytes, now_ns);
  }
  if (ops_) {
    ops_->give_back(operations, now_ns);
  }
}

}  // namespace mayfly
