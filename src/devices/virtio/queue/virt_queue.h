// The device's side of a split virtqueue (virtio 1.2, section 2.7).
//
// A VirtQueueConfig says what the driver has set up; VirtQueue::create() checks it against guest memory and
// makes the running queue. There is no queue that is neither: a device that has one may use it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "devices/virtio/queue/chain.h"
#include "memory/guest_memory.h"

namespace mayfly {

// Where a driver has put a queue, and what was negotiated for it. All of it is the guest's word.
struct VirtQueueConfig {
  std::uint32_t size = 0;         // descriptors
  GuestAddress descriptor_table;  // 16 bytes a descriptor, 16-byte aligned
  GuestAddress available_ring;    // 6 + 2 * size bytes, 2-byte aligned: what the driver writes
  GuestAddress used_ring;         // 6 + 8 * size bytes, 4-byte aligned: what the device writes
  bool event_index = false;       // VIRTIO_F_EVENT_IDX
  bool indirect = false;          // VIRTIO_F_INDIRECT_DESC
};

// How far a queue has come, between two chains: all there is to save but its configuration. Counted modulo
// 2^16, as the rings do.
struct VirtQueueState {
  std::uint16_t next_available = 0;  // the entry of the available ring that is looked at next
  std::uint16_t next_used = 0;       // the entry of the used ring that is written next
};

// What a driver did to a queue that the specification forbids. The queue cannot be used after it: its device
// needs a reset.
enum class QueueFault : std::uint8_t {
  kIndexRanAhead,         // more entries available than the queue has
  kTooManyInFlight,       // more chains made available and not returned than the queue has descriptors
  kDescriptorOutOfRange,  // an index past the end of its table
  kChainTooLong,          // more descriptors than the queue has: a loop, or 2.7.5.3.1
  kTooManyBytes,          // 2^32 bytes (of which a used length cannot tell) or more (2.7.5.2)
  kUnknownFlags,
  kReadableAfterWritable,  // 2.7.4.2
  kIndirectNotNegotiated,
  kIndirectInIndirect,
  kIndirectWithNext,
  kIndirectTableSize,  // not a positive multiple of a descriptor's size
  kOutsideMemory,      // a buffer or an indirect table that does not lie in guest RAM
};

// "its available index runs ahead by more than the queue's size", ...
std::string_view to_string(QueueFault fault);

template <typename T>
using QueueResult = tl::expected<T, QueueFault>;

// Owned by one device, used under its lock. Copies every word of the guest's once and uses the copy; a
// hostile driver can make take() fail and nothing else. Allocates only while it meets more chains at once, or
// longer ones, than ever before: bounded by its size each.
//
// All that it writes to guest memory itself, in the used ring, it notes there as written; for what devices
// write, see DescriptorChain.
class VirtQueue {
 public:
  static constexpr std::uint32_t kMaxSize = 32768;  // 2.7

  // `memory` is borrowed and outlives the queue. Errors: kInvalidArgument for a size that is no power of two
  // up to kMaxSize, for a part that is misaligned, lies outside guest RAM or on another part, naming it.
  static Result<VirtQueue> create(GuestMemory& memory, const VirtQueueConfig& config,
                                  VirtQueueState state = {});

  const VirtQueueConfig& config() const { return config_; }
  // To be asked only while no chain is out (see in_flight()) and all that was completed is published, else:
  // aborts. A queue made with it goes on where this one stops.
  VirtQueueState state() const;
  // Chains taken and not given back.
  std::uint32_t in_flight() const { return in_flight_; }

  // The next chain that the driver has made available, whole and checked, or nothing where there is none.
  QueueResult<std::optional<DescriptorChain>> take();

  // Undoes the last take(): its chain, which is still out, will be the next again. Several are put back in
  // the reverse of the order in which they were taken; any other chain: aborts.
  void put_back(DescriptorChain chain);

  // Returns a chain to the driver. `written` is how many bytes, from the first device-writable one on, the
  // device has written (2.7.8.2: rather too few than too many). The driver sees it after publish() only.
  void complete(DescriptorChain chain, std::uint32_t written);

  // Shows the driver all that was completed since the last call, at once. True where the driver wants an
  // interrupt for it; false also where there was nothing new.
  [[nodiscard]] bool publish();

  // Whether the driver need ring the doorbell for further chains. Both may be called at any time; a doorbell
  // may come all the same. want_doorbell() returns true where chains are there already, which the driver may
  // not ring for: they must be taken.
  void spare_doorbell();
  [[nodiscard]] QueueResult<bool> want_doorbell();

 private:
  struct Parts {
    GuestSlice descriptor_table;
    GuestSlice available_ring;
    GuestSlice used_ring;
  };

  VirtQueue(GuestMemory& memory, const VirtQueueConfig& config, const Parts& parts, VirtQueueState state);

  // How many entries the driver has made available that were not taken.
  QueueResult<std::uint16_t> available_count();
  QueueResult<void> collect(std::uint16_t head, DescriptorChain::Storage& storage) const;
  std::unique_ptr<DescriptorChain::Storage> storage();
  void recycle(DescriptorChain chain);
  // A field of the used ring, and that it was written.
  void put_used(std::size_t offset, std::uint16_t value);
  void note_used(std::size_t offset, std::size_t size);

  GuestMemory* memory_;
  VirtQueueConfig config_;
  Parts parts_;
  std::uint16_t next_available_;
  std::uint16_t available_end_;  // the driver's index when it was last looked at
  std::uint16_t next_used_;      // as the driver sees it, once publish() has shown it
  std::uint16_t published_used_;
  std::uint32_t in_flight_ = 0;
  std::vector<std::unique_ptr<DescriptorChain::Storage>> spare_;
};

}  // namespace mayfly
