// What a queue of a device may do: bytes and operations over time, each limited by a token bucket of its own
// or not at all. See token_bucket.h for the rules of a bucket, for times and for threads.
#pragma once

#include <cstdint>
#include <optional>

#include "base/result.h"
#include "rate_limiter/token_bucket.h"

namespace mayfly {

// An absent bucket is no limit, and so is one that does not limit; in an update an absent bucket is left as
// it is.
struct RateLimiterConfig {
  std::optional<TokenBucketConfig> bandwidth;  // a token is a byte
  std::optional<TokenBucketConfig> ops;        // a token is an operation

  friend bool operator==(const RateLimiterConfig&, const RateLimiterConfig&) = default;
};

// What a snapshot keeps of a limiter.
struct RateLimiterState {
  std::optional<TokenBucketState> bandwidth;
  std::optional<TokenBucketState> ops;

  friend bool operator==(const RateLimiterState&, const RateLimiterState&) = default;
};

class RateLimiter {
 public:
  // Limits nothing.
  RateLimiter() = default;

  // Full buckets. kInvalidArgument, naming bucket and field, for what TokenBucket::create() refuses.
  static Result<RateLimiter> create(const RateLimiterConfig& config, std::uint64_t now_ns);
  // The limiter that was saved. kInvalidArgument for a state that save() cannot have given.
  static Result<RateLimiter> restore(const RateLimiterState& state, std::uint64_t now_ns);

  RateLimiterState save(std::uint64_t now_ns) const;

  // The limits in force.
  RateLimiterConfig config() const;

  // A bucket that is given replaces the one there is, and starts full with its own burst, without the old
  // one's debt; one that does not limit takes the limit away. On an error nothing has changed. A queue that
  // waits is to be tried again at once: what ready_at() said no longer holds.
  Result<void> update(const RateLimiterConfig& changes, std::uint64_t now_ns);

  bool limits() const { return bandwidth_ || ops_; }

  // Takes what an operation of so many bytes costs from both buckets if both let it pass, else from neither.
  // One that makes several of the host has their number in `operations`.
  bool consume(std::uint64_t bytes, std::uint64_t now_ns, std::uint64_t operations = 1);
  // When consume() of as much will succeed at the earliest, if nothing else is consumed before: one
  // timer is enough for both buckets. `now_ns` if it would now. Waiting longer loses nothing as long as no
  // bucket is full by then, so a device may wait for several operations' worth.
  std::uint64_t ready_at(std::uint64_t bytes, std::uint64_t now_ns, std::uint64_t operations = 1) const;
  // Undoes consume() for an operation that was not carried out after all; see TokenBucket::give_back().
  void give_back(std::uint64_t bytes, std::uint64_t now_ns, std::uint64_t operations = 1);

 private:
  std::optional<TokenBucket> bandwidth_;
  std::optional<TokenBucket> ops_;
};

}  // namespace mayfly
