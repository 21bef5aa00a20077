// A driver's side of a split virtqueue that costs next to nothing, for measuring the device behind it: chains
// are laid out once, and what is left a request is an entry in the available ring and one in the used ring.
// It keeps to virtio 1.2, section 2.7, with VIRTIO_F_EVENT_IDX, and checks little;
// tests/support/virtio_driver is the driver that does.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>

#include "support/virtio_driver/split_ring.h"

namespace mayfly::bench {

// Guest RAM as the guest's processor sees it: plain memory. Borrows it.
class GuestRam {
 public:
  explicit GuestRam(const GuestMemory& memory)
      : bytes_(static_cast<std::byte*>(memory.regions().front().host),
               memory.regions().front().range.size()) {}

  // What lies at a guest address, which is aligned as T is. The caller keeps to the RAM that there is.
  template <typename T>
  T& at(std::uint64_t address) const {
    // SAFETY: within the mapping, aligned, and written by one thread at a time but for the rings' indices,
    // which are accessed through std::atomic_ref; no strict aliasing in this project.
    return *reinterpret_cast<T*>(bytes_.subspan(address, sizeof(T)).data());
  }

 private:
  std::span<std::byte> bytes_;
};

// Borrows the RAM. One thread, which is also the device's.
class LeanRing {
 public:
  struct Used {
    std::uint32_t head;
    std::uint32_t length;
  };

  LeanRing(GuestRam ram, const testing::RingLayout& layout) : ram_(ram), layout_(layout) {}

  const testing::RingLayout& layout() const { return layout_; }

  // A chain of one descriptor, number `head` of the table; or, with VIRTQ_DESC_F_INDIRECT, of those in the
  // table that it refers to.
  void set_chain(std::uint16_t head, const testing::Descriptor& descriptor) {
    ram_.at<testing::Descriptor>(layout_.descriptors + sizeof(descriptor) * head) = descriptor;
  }

  void offer(std::uint16_t head) {
    ram_.at<std::uint16_t>(layout_.available + kEntries + 2ULL * (available_ & (layout_.size - 1U))) = head;
    ++available_;
  }
  // Shows what was offered to the device. True where it wants the doorbell for it (2.7.10.1).
  bool expose() {
    index(layout_.available + kIndex).store(available_);  // sequentially consistent: 2.7.13.4.1
    const std::uint16_t before = std::exchange(exposed_, available_);
    const std::uint16_t event = index(layout_.used + kEntries + 8ULL * layout_.size).load();
    return static_cast<std::uint16_t>(available_ - event - 1) <
           static_cast<std::uint16_t>(available_ - before);
  }

  // The next buffer that came back, or nothing: then an interrupt was asked for (2.7.7.1) and none is there
  // yet.
  std::optional<Used> collect() {
    if (used_ == used_end_) {
      used_end_ = index(layout_.used + kIndex).load();
      if (used_ == used_end_) {
        index(layout_.available + kEntries + 2ULL * layout_.size).store(used_);
        used_end_ = index(layout_.used + kIndex).load();
      }
      if (used_ == used_end_) {
        return std::nullopt;
      }
    }
    const std::uint64_t entry = layout_.used + kEntries + 8ULL * (used_ & (layout_.size - 1U));
    ++used_;
    return Used{ram_.at<std::uint32_t>(entry), ram_.at<std::uint32_t>(entry + 4)};
  }

 private:
  static constexpr std::uint64_t kIndex = 2;
  static constexpr std::uint64_t kEntries = 4;

  std::atomic_ref<std::uint16_t> index(std::uint64_t address) const {
    return std::atomic_ref(ram_.at<std::uint16_t>(address));
  }

  GuestRam ram_;
  testing::RingLayout layout_;
  std::uint16_t available_ = 0;
  std::uint16_t exposed_ = 0;
  std::uint16_t used_ = 0;
  std::uint16_t used_end_ = 0;
};

}  // namespace mayfly::bench
