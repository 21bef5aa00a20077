#include "memory/x86_64/ranges.h"

#include <algorithm>
#include <string>

namespace mayfly::x86_64 {

Result<std::vector<GuestRange>> memory_ranges(std::uint64_t size) {
  constexpr std::uint64_t kPage = 4096;
  if (size < kMinMemorySize || size > kMaxMemorySize || size % kPage != 0) {
    return fail(ErrorCode::kInvalidArgument,
                "memory size " + std::to_string(size) + " bytes: must be a multiple of 4096 from " +
                    std::to_string(kMinMemorySize) + " to " + std::to_string(kMaxMemorySize));
  }
  const std::uint64_t below = std::min(size, kMmioGapStart);
  std::vector<GuestRange> ranges;
  ranges.push_back(*GuestRange::make(GuestAddress(0), below));  // not empty: checked above
  if (size > below) {
    ranges.push_back(*GuestRange::make(GuestAddress(kMmioGapEnd), size - below));
  }
  return ranges;
}

}  // namespace mayfly::x86_64
