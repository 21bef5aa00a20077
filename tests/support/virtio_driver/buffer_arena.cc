#include "support/virtio_driver/buffer_arena.h"

#include <algorithm>
#include <iterator>
#include <new>

namespace mayfly::testing {
namespace {

constexpr std::uint64_t kGrain = 16;

std::uint64_t grains(std::uint64_t size) {
  return (std::max<std::uint64_t>(size, 1) + kGrain - 1) / kGrain * kGrain;
}

}  // namespace

BufferArena::BufferArena(std::uint64_t base, std::uint64_t size) {
  const std::uint64_t first = (base + kGrain - 1) / kGrain * kGrain;
  const std::uint64_t end = (base + size) / kGrain * kGrain;
  if (end > first) {
    free_.emplace(first, end - first);
  }
}

std::uint64_t BufferArena::take(std::uint64_t size) {
  const std::uint64_t wanted = grains(size);
  const auto piece =
      std::find_if(free_.begin(), free_.end(), [&](const auto& entry) { return entry.second >= wanted; });
  if (piece == free_.end()) {
    throw std::bad_alloc();
  }
  const auto [address, available] = *piece;
  free_.erase(piece);
  if (available > wanted) {
    free_.emplace(address + wanted, available - wanted);
  }
  return address;
}

void BufferArena::give_back(std::uint64_t address, std::uint64_t size) {
  auto piece = free_.emplace(address, grains(size)).first;
  const auto next = std::next(piece);
  if (next != free_.end() && piece->first + piece->second == next->first) {
    piece->second += next->second;
    free_.erase(next);
  }
  if (piece != free_.begin()) {
    const auto before = std::prev(piece);
    if (before->first + before->second == piece->first) {
      before->second += piece->second;
      free_.erase(piece);
    }
  }
}

std::uint64_t BufferArena::free_bytes() const {
  std::uint64_t sum = 0;
  for (const auto& [address, size] : free_) {
    sum += size;
  }
  return sum;
}

}  // namespace mayfly::testing
