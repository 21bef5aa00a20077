// A descriptor chain that was collected and checked whole: what a device sees of a driver's buffer.
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "memory/guest_memory.h"

namespace mayfly {

// Walks the bytes of a chain's slices from front to back, whatever their division (virtio 1.2, section
// 2.7.4.1: a device makes no assumptions about the arrangement of descriptors). Borrows the slices.
class SliceCursor {
 public:
  explicit SliceCursor(std::span<const GuestSlice> slices);

  std::uint64_t remaining() const { return remaining_; }  // bytes

  // Passes over `bytes`; false, and nothing done, where fewer remain.
  bool skip(std::uint64_t bytes);

  // Appends where the next `bytes` lie, one entry a slice, and passes over them; false, and nothing done,
  // where fewer remain. For readv(2), writev(2) and their kin only, as GuestSlice::for_system_call().
  bool take(std::uint64_t bytes, std::vector<iovec>& to);

 protected:
  // Calls `visit` with each slice (or part of one) of the next `bytes`, of which there are that many, and
  // passes over them.
  template <typename Visit>
  void consume(std::uint64_t bytes, Visit visit) {
    remaining_ -= bytes;
    while (bytes != 0) {
      const GuestSlice& slice = slices_[index_];
      const std::uint64_t here = std::min<std::uint64_t>(bytes, slice.size() - offset_);
      visit(slice.part(offset_, here));
      offset_ += here;
      bytes -= here;
      if (offset_ == slice.size()) {
        ++index_;
        offset_ = 0;
      }
    }
  }

 private:
  std::span<const GuestSlice> slices_;
  std::size_t index_ = 0;
  std::uint64_t offset_ = 0;
  std::uint64_t remaining_ = 0;
};

// The bytes that the driver wrote for the device. What was read is a copy: it does not change any more.
class ChainReader : public SliceCursor {
 public:
  using SliceCursor::SliceCursor;

  // Fills `destination`; false, and nothing done, where fewer bytes remain.
  bool read(std::span<std::byte> destination);

  template <typename T>
  requires std::is_trivially_copyable_v<T> std::optional<T> read_object() {
    T value;
    return read(std::as_writable_bytes(std::span(&value, 1))) ? std::optional<T>(value) : std::nullopt;
  }
};

// The bytes that the device writes for the driver.
class ChainWriter : public SliceCursor {
 public:
  using SliceCursor::SliceCursor;

  // Writes all of `source`; false, and nothing done, where there is less room.
  bool write(std::span<const std::byte> source);
  // Writes `bytes` zeroes; false, and nothing done, where there is less room.
  bool write_zeroes(std::uint64_t bytes);

  template <typename T>
  requires std::is_trivially_copyable_v<T>
  bool write_object(const T& value) { return write(std::as_bytes(std::span(&value, 1))); }
};

// One buffer of the driver's: first its device-readable, then its device-writable bytes, together at most
// 2^32 - 1, in no more slices than the queue has descriptors. Taken from a VirtQueue and given back to it
// once, by complete() or put_back(). Destroyed without that only where its queue goes as well (a reset), or
// is not used any more until it does. Move-only; a moved-from chain has no slices.
//
// However a chain ends, its device-writable bytes are then noted as written (GuestMemory::note_written): all,
// since a device that failed has written more than it tells, and one that took a buffer ahead may have tried
// it. So whoever has a chain lets nothing write to its slices after its end.
class DescriptorChain {
 public:
  // The index of the chain's first descriptor, by which the driver knows it.
  std::uint16_t head() const { return head_; }

  std::span<const GuestSlice> readable() const {
    return storage_ ? std::span(storage_->slices).first(storage_->readable_count)
                    : std::span<const GuestSlice>();
  }
  std::span<const GuestSlice> writable() const {
    return storage_ ? std::span(storage_->slices).subspan(storage_->readable_count)
                    : std::span<const GuestSlice>();
  }
  ChainReader reader() const { return ChainReader(readable()); }
  ChainWriter writer() const { return ChainWriter(writable()); }

 private:
  friend class VirtQueue;

  // Kept by the queue from chain to chain, so that a running queue allocates nothing.
  struct Storage {
    explicit Storage(GuestMemory& of) : memory(of) {}
    Storage(const Storage&) = delete;
    Storage& operator=(const Storage&) = delete;
    ~Storage() { end(); }

    // The chain that it holds, if any, is over.
    void end();

    GuestMemory& memory;
    std::vector<GuestSlice> slices;
    std::size_t readable_count = 0;
  };

  DescriptorChain(std::uint16_t head, std::uint16_t entry, std::unique_ptr<Storage> storage)
      : storage_(std::move(storage)), head_(head), entry_(entry) {}

  std::unique_ptr<Storage> storage_;
  std::uint16_t head_;
  std::uint16_t entry_;  // of the available ring, counted as VirtQueueState does
};

}  // namespace mayfly
