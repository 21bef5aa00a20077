#include "memory/write_record.h"

#include <algorithm>

namespace mayfly {
namespace {

constexpr std::uint64_t kPagesPerWord = 64;

}  // namespace

void WriteRecord::start(std::span<const std::uint64_t> sizes) {
  if (is_on()) {
    return;
  }
  if (regions_.empty()) {
    for (const std::uint64_t size : sizes) {
      regions_.emplace_back((size / kGuestPage + kPagesPerWord - 1) / kPagesPerWord);
    }
  }
  for (Bits& bits : regions_) {
    for (std::atomic<std::uint64_t>& word : bits) {
      word.store(0, std::memory_order_relaxed);
    }
  }
  is_on_.store(true, std::memory_order_release);
}

void WriteRecord::mark(std::size_t region, std::uint64_t offset, std::uint64_t length) {
  Bits& bits = regions_[region];
  const std::uint64_t last = (offset + length - 1) / kGuestPage;
  for (std::uint64_t page = offset / kGuestPage; page <= last;) {
    const std::uint64_t bit = page % kPagesPerWord;
    const std::uint64_t count = std::min(kPagesPerWord - bit, last - page + 1);
    const std::uint64_t mask = (~std::uint64_t{0} >> (kPagesPerWord - count)) << bit;
    // Always, also where the bits are set already: a look that says so may come before the bytes that are
    // marked here are seen by others, and after it somebody may take the bits and copy the page without them.
    bits[page / kPagesPerWord].fetch_or(mask, std::memory_order_release);
    page += count;
  }
}

std::vector<std::uint64_t> WriteRecord::take(std::size_t region) {
  Bits& bits = regions_[region];
  std::vector<std::uint64_t> taken(bits.size());
  std::transform(bits.begin(), bits.end(), taken.begin(), [](std::atomic<std::uint64_t>& word) {
    // Whoever takes a bit sees the bytes that were written before it was set.
    return word.load(std::memory_order_relaxed) == 0 ? 0 : word.exchange(0, std::memory_order_acquire);
  });
  return taken;
}

}  // namespace mayfly
