// The driver's side of a split virtqueue, written from virtio 1.2, section 2.7, and independent of our queue.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "support/virtio_driver/buffer_arena.h"
#include "support/virtio_driver/driver_memory.h"

namespace mayfly::testing {

// 2.7.5
inline constexpr std::uint16_t VIRTQ_DESC_F_NEXT = 1;
inline constexpr std::uint16_t VIRTQ_DESC_F_WRITE = 2;
inline constexpr std::uint16_t VIRTQ_DESC_F_INDIRECT = 4;
// 2.7.6 and 2.7.8
inline constexpr std::uint16_t VIRTQ_AVAIL_F_NO_INTERRUPT = 1;
inline constexpr std::uint16_t VIRTQ_USED_F_NO_NOTIFY = 1;

// Where the three parts of a queue lie. Anything can be written here; at() makes what the table in 2.7
// allows.
struct RingLayout {
  std::uint64_t descriptors = 0;
  std::uint64_t available = 0;
  std::uint64_t used = 0;
  std::uint16_t size = 0;  // entries

  // The three parts behind one another from `base`, a multiple of 16, on.
  static RingLayout at(std::uint64_t base, std::uint16_t size);
  std::uint64_t end() const;  // behind the used ring
};

// An entry of a descriptor table, verbatim.
struct Descriptor {
  std::uint64_t address = 0;
  std::uint32_t length = 0;
  std::uint16_t flags = 0;
  std::uint16_t next = 0;

  friend bool operator==(const Descriptor&, const Descriptor&) = default;
};

// What the driver negotiated.
struct RingFeatures {
  bool event_idx = false;  // VIRTIO_F_EVENT_IDX
  bool in_order = false;   // VIRTIO_F_IN_ORDER
};

// A buffer that came back.
struct Completion {
  std::uint16_t head = 0;
  std::uint32_t length = 0;  // as the device wrote it
  // All bytes of its writable() buffers in the chain's order, written or not.
  std::vector<std::byte> writable{};

  // What the device says that it wrote.
  std::span<const std::byte> written() const;
};

// Owns what the driver knows of one queue; borrows the memory. One thread; the device may run on another.
//
// The device's misdeeds are collected, not thrown: a test looks at violations() at its end.
class SplitRing {
 public:
  class Chain;

  // Zeroes the queue's memory, as 4.2.3.2 step 4 has it. `buffers` is memory for what chains carry.
  SplitRing(DriverMemory& memory, const RingLayout& layout, BufferArena buffers, RingFeatures features = {});

  const RingLayout& layout() const { return layout_; }
  std::size_t free_descriptors() const { return free_.size(); }
  std::size_t outstanding() const { return order_.size(); }  // chains that the device has and not returned

  // --- Supplying buffers: 2.7.13 ---

  // Starts a chain; see Chain.
  Chain chain();
  // Puts a head into the next entry of the available ring (step 2), without showing it to the device. The
  // head may be any number.
  void offer(std::uint16_t head);
  // Shows all that was offered to the device (step 5).
  void expose();
  // Whether the device must be notified of what was exposed since this was last asked: 2.7.10.
  bool should_notify();

  // --- Receiving used buffers: 2.7.14 ---

  // The next used buffer, or nothing where there is none yet.
  std::optional<Completion> collect();
  std::vector<Completion> collect_all();
  // How many collect() has returned, not wrapping at 65536.
  std::uint64_t collected() const { return collected_; }

  // 2.7.7. With EVENT_IDX by used_event, otherwise by the flag. enable_interrupts() asks for one at the next
  // used buffer and says whether some are there already, which no interrupt may tell of.
  bool enable_interrupts();
  void disable_interrupts();
  void set_used_event(std::uint16_t event);

  // Whether the index passes `event` on its way: one of from, from + 1, ... to - 1 equals it. The rule
  // of 2.7.7.2 and 2.7.10.1, for the driver's use and to hold the device to.
  static bool passes(std::uint16_t event, std::uint16_t from, std::uint16_t to);

  // --- What the device must uphold ---

  // Every breach found so far, in words: by collect() a used index that runs back or ahead, a head that the
  // device does not have, a length above what is writable (2.7.8.2), a changed device-readable buffer
  // (2.7.5.1); by should_notify() undefined flags (2.7.10.2).
  const std::vector<std::string>& violations() const { return violations_; }
  // Compares the descriptor table and the available ring with what was written there through this object:
  // neither is the device's to write.
  void check_driver_areas();

  // --- Lies: anything, anywhere, at once ---

  void write_descriptor(std::uint16_t index, const Descriptor& descriptor);
  Descriptor read_descriptor(std::uint16_t index) const;
  void write_available_entry(std::uint16_t slot, std::uint16_t head);
  // Shown to the device at once, as are the others. expose() goes on from here.
  void write_available_index(std::uint16_t index);
  void write_available_flags(std::uint16_t flags);

  std::uint16_t available_index() const { return available_index_; }
  std::uint16_t used_index() const;  // as it stands in memory
  std::uint16_t used_flags() const;
  std::uint16_t available_event() const;
  DriverMemory& memory() { return memory_; }

 private:
  struct Piece {
    std::uint64_t address = 0;
    std::uint32_t length = 0;
    bool from_arena = false;
    bool device_writable = false;
    std::vector<std::byte> contents{};  // of a device-readable buffer that the driver filled
  };
  // A placed chain, kept under its head until the device returns it.
  struct Placed {
    std::vector<std::uint16_t> descriptors;
    std::vector<Piece> pieces;
    std::uint64_t writable_bytes = 0;
    bool knows_writable = true;  // false: the chain lies about its buffers
  };

  std::uint64_t entry_address(std::uint16_t index) const { return layout_.descriptors + 16ULL * index; }
  void put_descriptor(std::uint64_t address, const Descriptor& descriptor);
  void put_available(std::uint64_t offset, std::uint16_t value);  // both bytes, and their shadow
  std::uint16_t slot(std::uint16_t index) const { return static_cast<std::uint16_t>(index % layout_.size); }
  void full_barrier();
  void violation(std::string what) { violations_.push_back(std::move(what)); }
  bool take_used_entries();
  void complete(std::uint16_t head, std::optional<std::uint32_t> length);

  DriverMemory& memory_;
  RingLayout layout_;
  BufferArena buffers_;
  RingFeatures features_;

  std::deque<std::uint16_t> free_;  // in ring order, which IN_ORDER needs: 2.7.5
  std::vector<std::optional<Placed>> placed_;
  std::deque<std::uint16_t> offered_;  // heads in the ring that are not exposed yet
  std::deque<std::uint16_t> order_;    // heads that the device has, in the order in which they were exposed
  std::vector<std::byte> table_shadow_;
  std::vector<std::byte> available_shadow_;

  std::uint16_t available_index_ = 0;
  std::uint16_t asked_index_ = 0;  // how far should_notify() has been asked
  std::uint16_t used_seen_ = 0;    // the used ring's entries before this index have been taken
  std::uint64_t collected_ = 0;
  std::deque<Completion> ready_;
  std::vector<std::string> violations_;
  std::atomic<unsigned> barrier_{0};
};

// Builds one chain: `ring.chain().readable(header).writable(512).submit()`. Elements stand in the descriptor
// table in the order of the calls. Used once.
class SplitRing::Chain {
 public:
  explicit Chain(SplitRing& ring) : ring_(ring) {}

  // A buffer with this content, or of this many bytes (all 0xee), in the ring's buffer memory, which gets it
  // back with the chain.
  Chain& readable(std::span<const std::byte> content);
  Chain& writable(std::uint32_t length);
  // A buffer anywhere, also where no memory is. The driver neither reads nor writes it: no Completion has its
  // bytes.
  Chain& readable_at(std::uint64_t address, std::uint32_t length);
  Chain& writable_at(std::uint64_t address, std::uint32_t length);

  // Elements behind the first `direct` ones stand in an indirect table: 2.7.5.3.
  Chain& indirect(std::size_t direct = 0);

  // Lies about the last element: exactly these flags, this next, this length, this address.
  Chain& with_flags(std::uint16_t flags);
  Chain& with_next(std::uint16_t next);
  Chain& with_length(std::uint32_t length);
  Chain& with_address(std::uint64_t address);
  // Lies about the indirect table: its length in bytes as the descriptor tells it, and more flags on it.
  Chain& with_table_length(std::uint32_t length);
  Chain& with_table_flags(std::uint16_t flags);

  // Writes the descriptors only (step 1); the head. Throws std::length_error where too few descriptors are
  // free.
  std::uint16_t place();
  // Writes the descriptors, offers and exposes the chain; the head. Notifying is left to the caller.
  std::uint16_t submit();

 private:
  struct Element {
    Piece piece;
    std::optional<std::uint16_t> flags{};
    std::optional<std::uint16_t> next{};
    std::optional<std::uint32_t> length{};
    std::optional<std::uint64_t> address{};
  };

  Element& last();
  static Descriptor describe(const Element& element, std::optional<std::uint16_t> next);

  SplitRing& ring_;
  std::vector<Element> elements_;
  std::optional<std::size_t> direct_;
  std::optional<std::uint32_t> table_length_;
  std::uint16_t table_flags_ = 0;
};

}  // namespace mayfly::testing
