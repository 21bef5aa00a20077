#include "rate_limiter/token_bucket.h"

#include <algorithm>
#include <limits>
#include <string>

namespace mayfly {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;
constexpr std::uint64_t kNever = std::numeric_limits<std::uint64_t>::max();

}  // namespace

TokenBucket::TokenBucket(const TokenBucketConfig& config, std::uint64_t now_ns)
    : config_(config),
      refill_ns_(config.refill_time_ms * kNsPerMs),
      tokens_(config.size),
      burst_(config.one_time_burst),
      refilled_at_(now_ns) {}

Result<TokenBucket> TokenBucket::create(const TokenBucketConfig& config, std::uint64_t now_ns) {
  if (config.size == 0) {
    return fail(ErrorCode::kInvalidArgument, "size: a token bucket of 0 tokens limits nothing");
  }
  if (config.refill_time_ms == 0) {
    return fail(ErrorCode::kInvalidArgument, "refill_time: a token bucket refilled in 0 ms limits nothing");
  }
  if (config.refill_time_ms > kMaxRefillTimeMs) {
    return fail(ErrorCode::kInvalidArgument, "refill_time: " + std::to_string(config.refill_time_ms) +
                                                 " ms are more than a hundred years (" +
                                                 std::to_string(kMaxRefillTimeMs) + " ms)");
  }
  return TokenBucket(config, now_ns);
}

Result<TokenBucket> TokenBucket::restore(const TokenBucketState& state, std::uint64_t now_ns) {
  MAYFLY_TRY_ASSIGN(TokenBucket bucket, create(state.config, now_ns));
  const auto refuse = [](const char* what) {
    return fail(ErrorCode::kInvalidArgument, std::string("saved token bucket: ") + what);
  };
  if (state.tokens > state.config.size) {
    return refuse("holds more tokens than its size");
  }
  if (state.fraction >= bucket.refill_ns_) {
    return refuse("the fraction of a token is a whole one");
  }
  if (state.tokens == state.config.size && state.fraction != 0) {
    return refuse("is more than full");
  }
  if (state.debt != 0 && state.tokens != 0) {
    return refuse("has both tokens and a debt");
  }
  if (state.burst > state.config.one_time_burst) {
    return refuse("has more one-time tokens left than there were");
  }
  bucket.tokens_ = state.tokens;
  bucket.fraction_ = state.fraction;
  bucket.debt_ = state.debt;
  bucket.burst_ = state.burst;
  return bucket;
}

TokenBucketState TokenBucket::save(std::uint64_t now_ns) const {
  TokenBucket at_now = *this;
  at_now.refill(now_ns);
  return {.config = config_,
          .tokens = at_now.tokens_,
          .fraction = at_now.fraction_,
          .debt = at_now.debt_,
          .burst = at_now.burst_};
}

void TokenBucket::refill(std::uint64_t now_ns) {
  if (now_ns <= refilled_at_) {
    return;
  }
  const std::uint64_t elapsed_ns = now_ns - refilled_at_;
  refilled_at_ = now_ns;
  if (tokens_ == config_.size) {
    return;
  }
  // Each nanosecond brings size / refill_ns_ of a token. Both factors and the fraction fit 64 bits, so the
  // sum fits 128: (2^64 - 1)^2 + 2^64 - 1 < 2^128.
  const Wide parts = Wide{elapsed_ns} * config_.size + fraction_;
  fraction_ = static_cast<std::uint64_t>(parts % refill_ns_);
  add(parts / refill_ns_);
}

void TokenBucket::add(Wide tokens) {
  const Wide repaid = std::min<Wide>(debt_, tokens);
  debt_ -= static_cast<std::uint64_t>(repaid);
  tokens -= repaid;
  if (tokens >= config_.size - tokens_) {
    // A full bucket does not collect fractions either. Where the debt is just paid, the bucket is not full:
    // it is empty, and its size is not 0.
    tokens_ = config_.size;
    fraction_ = 0;
  } else {
    tokens_ += static_cast<std::uint64_t>(tokens);
  }
}

bool TokenBucket::allows(std::uint64_t tokens, std::uint64_t now_ns) {
  refill(now_ns);
  const std::uint64_t wanted = beyond_burst(tokens);
  return debt_ == 0 && (wanted <= tokens_ || wanted > config_.size);
}

bool TokenBucket::consume(std::uint64_t tokens, std::uint64_t now_ns) {
  if (!allows(tokens, now_ns)) {
    return false;
  }
  const std::uint64_t wanted = beyond_burst(tokens);
  burst_ -= tokens - wanted;
  const std::uint64_t taken = std::min(wanted, tokens_);
  tokens_ -= taken;
  debt_ = wanted - taken;
  return true;
}

std::uint64_t TokenBucket::ready_at(std::uint64_t tokens, std::uint64_t now_ns) const {
  TokenBucket at_now = *this;
  if (at_now.allows(tokens, now_ns)) {
    return now_ns;
  }
  const std::uint64_t wanted = beyond_burst(tokens);
  const std::uint64_t short_by =
      wanted > config_.size || wanted <= at_now.tokens_ ? 0 : wanted - at_now.tokens_;
  // At least 1, as it may not pass now, and below 2^65; refill_ns_ is below 2^62.
  const Wide missing = Wide{at_now.debt_} + short_by;
  const Wide parts = missing * refill_ns_ - at_now.fraction_;
  const Wide wait_ns = (parts - 1) / config_.size + 1;
  const Wide when = at_now.refilled_at_ + wait_ns;
  return when > kNever ? kNever : static_cast<std::uint64_t>(when);
}

void TokenBucket::give_back(std::uint64_t tokens, std::uint64_t now_ns) {
  refill(now_ns);
  add(tokens);
}

}  // namespace mayfly
