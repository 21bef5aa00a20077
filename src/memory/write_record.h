// Which pages of a guest's RAM this process has written: what KVM's dirty log does not have. GuestMemory owns
// one and speaks for it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "memory/guest_address.h"

namespace mayfly {

// Regions are known by their index. Off at first, and then one load for whoever would mark. mark() may be
// called by any threads at any time; it is switched, taken from and moved by one at a time.
//
// Whoever writes marks after the writing. A take() between the two is followed by the mark, which the next
// one tells; a mark before the writing could be taken, and the page copied, before its bytes are there.
class WriteRecord {
 public:
  WriteRecord() = default;
  // Not while others mark.
  WriteRecord(WriteRecord&& other) noexcept { *this = std::move(other); }
  WriteRecord& operator=(WriteRecord&& other) noexcept {
    regions_ = std::exchange(other.regions_, {});
    is_on_.store(other.is_on_.exchange(false));
    return *this;
  }
  WriteRecord(const WriteRecord&) = delete;
  WriteRecord& operator=(const WriteRecord&) = delete;
  ~WriteRecord() = default;

  // On, with nothing marked; on already: nothing happens. `sizes` are those of the regions, in bytes, the
  // same each time.
  void start(std::span<const std::uint64_t> sizes);
  // Its storage is kept: somebody may just be marking.
  void stop() { is_on_.store(false, std::memory_order_relaxed); }
  // Acquires what start() made; on x86 a load as any other.
  bool is_on() const { return is_on_.load(std::memory_order_acquire); }

  // The pages of `length` bytes, at least 1, from `offset` into a region on, which must lie in it. Only once
  // it was seen to be on.
  void mark(std::size_t region, std::uint64_t offset, std::uint64_t length);

  // The marked pages of a region, one bit a page, lowest first, and forgets them. Only while it is on.
  std::vector<std::uint64_t> take(std::size_t region);

 private:
  using Bits = std::vector<std::atomic<std::uint64_t>>;

  std::atomic<bool> is_on_ = false;
  std::vector<Bits> regions_;  // made by the first start() and never moved while it may be on
};

}  // namespace mayfly
