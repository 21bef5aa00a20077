// A token bucket: so many tokens at once, so many over time.
//
// It starts full and fills linearly: `size` tokens in `refill_time_ms`, never beyond `size`. What it gains is
// exact: parts of a token are kept, so that neither rounding nor the frequency of calls changes the rate.
// One-time burst tokens are spent before any other and do not come back.
//
// An operation of more tokens than the bucket can ever hold is let through and leaves a debt, which the
// refill pays first; until it is paid nothing passes. It would wait for ever otherwise, and so over time the
// rate holds for it, too.
//
// Times are nanoseconds of a monotonic clock that the caller reads: once for a batch, or made up by a test. A
// time before one that was given earlier counts as that one. No function allocates but create() and restore()
// for their errors; one thread.
#pragma once

#include <cstdint>

#include "base/result.h"

namespace mayfly {

struct TokenBucketConfig {
  std::uint64_t size = 0;            // tokens
  std::uint64_t refill_time_ms = 0;  // from empty to full
  std::uint64_t one_time_burst = 0;  // tokens

  // No limit at all is asked for by a size or a refill time of 0.
  bool limits() const { return size != 0 && refill_time_ms != 0; }

  friend bool operator==(const TokenBucketConfig&, const TokenBucketConfig&) = default;
};

// What a snapshot keeps of a bucket. It has no time in it: while a machine is not running, nothing is
// refilled.
struct TokenBucketState {
  TokenBucketConfig config;
  std::uint64_t tokens = 0;    // in the bucket
  std::uint64_t fraction = 0;  // of one token more, in parts of 1 / (refill time in nanoseconds)
  std::uint64_t debt = 0;      // tokens; the bucket is empty where there is any
  std::uint64_t burst = 0;     // one-time tokens that are left

  friend bool operator==(const TokenBucketState&, const TokenBucketState&) = default;
};

class TokenBucket {
 public:
  // A hundred years. Longer ones are refused: they are a mistake, and below it no product here overflows 128
  // bits.
  static constexpr std::uint64_t kMaxRefillTimeMs = 100ULL * 365 * 24 * 3600 * 1000;

  // A full bucket. kInvalidArgument, naming the field, for a configuration that does not limit or that
  // refills too slowly.
  static Result<TokenBucket> create(const TokenBucketConfig& config, std::uint64_t now_ns);
  // The bucket that was saved. kInvalidArgument for a state that save() cannot have given.
  static Result<TokenBucket> restore(const TokenBucketState& state, std::uint64_t now_ns);

  TokenBucketState save(std::uint64_t now_ns) const;

  const TokenBucketConfig& config() const { return config_; }

  // Whether an operation of so many tokens (0 is one, too: it waits for a debt to be paid) may pass now.
  bool allows(std::uint64_t tokens, std::uint64_t now_ns);
  // Takes the tokens if the operation may pass; takes none otherwise.
  bool consume(std::uint64_t tokens, std::uint64_t now_ns);
  // The first time at which an operation may pass if nothing else is taken before: `now_ns` if it may now,
  // 2^64 - 1 if that lies beyond the clock.
  std::uint64_t ready_at(std::uint64_t tokens, std::uint64_t now_ns) const;
  // Returns tokens of an operation that was not carried out after all: first against the debt, then into the
  // bucket, what does not fit there is lost. One-time tokens do not become such again.
  void give_back(std::uint64_t tokens, std::uint64_t now_ns);

 private:
  __extension__ using Wide = unsigned __int128;

  TokenBucket(const TokenBucketConfig& config, std::uint64_t now_ns);

  void refill(std::uint64_t now_ns);
  void add(Wide tokens);
  // What is left of an operation after the one-time tokens.
  std::uint64_t beyond_burst(std::uint64_t tokens) const { return tokens > burst_ ? tokens - burst_ : 0; }

  TokenBucketConfig config_;
  std::uint64_t refill_ns_;
  std::uint64_t tokens_;
  std::uint64_t fraction_ = 0;
  std::uint64_t debt_ = 0;
  std::uint64_t burst_;
  std::uint64_t refilled_at_;  // the time that tokens_, fraction_ and debt_ stand for
};

}  // namespace mayfly
