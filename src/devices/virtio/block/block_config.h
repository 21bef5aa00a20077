// What a drive is to be: plain data.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"
#include "rate_limiter/rate_limiter.h"

namespace mayfly {

enum class BlockCacheType : std::uint8_t {
  kUnsafe,     // flushes are not offered and do nothing: fast, and a host that crashes loses data
  kWriteback,  // a completed flush is on stable storage
};

enum class BlockEngineType : std::uint8_t {
  kSync,   // each request is done and waited for in turn
  kAsync,  // io_uring; falls back to kSync where the host refuses it
};

// What the guest writes goes here, and the image itself is only read: many drives can share it.
struct BlockOverlayConfig {
  std::optional<std::string> path;  // a file, made if need be; absent: in memory, gone with the drive
};

struct BlockDeviceConfig {
  static constexpr unsigned kMaxQueues = 16;

  std::string id;    // is_resource_id()
  std::string path;  // a regular file or a block device
  bool is_root = false;
  std::optional<std::string> partuuid;  // of the root partition; for the kernel's command line only
  bool read_only = false;
  BlockCacheType cache_type = BlockCacheType::kUnsafe;
  BlockEngineType engine = BlockEngineType::kSync;
  bool discard = false;      // whether the guest may give storage back
  unsigned queue_count = 1;  // 1 to kMaxQueues
  // Whether the image is locked: one that is written by this drive alone, one that is read by readers only.
  bool lock = true;
  RateLimiterConfig rate_limiter;  // of all its queues together
  std::optional<BlockOverlayConfig> overlay;

  // What contradicts itself; opens nothing. Errors: kInvalidArgument, naming the drive.
  Result<void> validate() const;
  // The same of all but the id, which errors do not name: for who has not given it yet.
  Result<void> check() const;
};

}  // namespace mayfly
