#include "devices/virtio/queue/virt_queue.h"

#include <array>
#include <bit>
#include <utility>

#include "base/check.h"
#include "base/text.h"
#include "devices/virtio/queue/event_index.h"

namespace mayfly {
namespace {

// 2.7.5: struct virtq_desc.
struct Descriptor {
  std::uint64_t address;
  std::uint32_t length;
  std::uint16_t flags;
  std::uint16_t next;
};
static_assert(sizeof(Descriptor) == 16);

// 2.7.8: struct virtq_used_elem.
struct UsedElement {
  std::uint32_t id;
  std::uint32_t length;
};
static_assert(sizeof(UsedElement) == 8);

constexpr std::uint16_t kNext = 1;
constexpr std::uint16_t kWrite = 2;
constexpr std::uint16_t kIndirect = 4;

// Offsets within the available and the used ring (2.7.6, 2.7.8); the event field follows the last entry.
constexpr std::size_t kFlags = 0;
constexpr std::size_t kIndex = 2;
constexpr std::size_t kEntries = 4;
constexpr std::uint16_t kNoInterrupt = 1;  // in the available ring's flags
constexpr std::uint16_t kNoNotify = 1;     // in the used ring's flags

constexpr std::uint64_t kMaxBytes = UINT32_MAX;

struct Part {
  std::string_view name;
  GuestAddress address;
  std::uint64_t size;  // bytes
  std::uint64_t alignment;
};

Result<GuestSlice> check_part(const GuestMemory& memory, const Part& part) {
  const auto wrong = [&part](std::string_view what) {
    return fail(ErrorCode::kInvalidArgument, "the queue's " + std::string(part.name) + " at " +
                                                 hex(part.address.value()) + " (" +
                                                 std::to_string(part.size) + " bytes) " + std::string(what));
  };
  if (!part.address.is_aligned(part.alignment)) {
    return wrong("is not aligned to " + std::to_string(part.alignment) + " bytes");
  }
  const auto slice = memory.slice(part.address, part.size);
  if (!slice) {
    return wrong("does not lie in the guest's RAM");
  }
  return *slice;
}

}  // namespace

std::string_view to_string(QueueFault fault) {
  switch (fault) {
    case QueueFault::kIndexRanAhead:
      return "the available index runs ahead by more than the queue's size";
    case QueueFault::kTooManyInFlight:
      return "more chains are made available and not yet returned than the queue has descriptors";
    case QueueFault::kDescriptorOutOfRange:
      return "a descriptor index lies past the end of its table";
    case QueueFault::kChainTooLong:
      return "a chain has more descriptors than the queue";
    case QueueFault::kTooManyBytes:
      return "a chain has 4 GiB or more";
    case QueueFault::kUnknownFlags:
      return "a descriptor has unknown flags";
    case QueueFault::kReadableAfterWritable:
      return "a device-readable descriptor follows a device-writable one";
    case QueueFault::kIndirectNotNegotiated:
      return "an indirect descriptor, which was not negotiated";
    case QueueFault::kIndirectInIndirect:
      return "an indirect descriptor within an indirect table";
    case QueueFault::kIndirectWithNext:
      return "an indirect descriptor that has a next one";
    case QueueFault::kIndirectTableSize:
      return "an indirect table whose size is not a positive multiple of 16 bytes";
    case QueueFault::kOutsideMemory:
      return "a buffer or an indirect table does not lie in the guest's RAM";
  }
  return "unknown fault";
}

Result<VirtQueue> VirtQueue::create(GuestMemory& memory, const VirtQueueConfig& config,
                                    VirtQueueState state) {
  if (!std::has_single_bit(config.size) || config.size > kMaxSize) {
    return fail(ErrorCode::kInvalidArgument,
                "the queue's size " + std::to_string(config.size) + " is not a power of two from 1 to 32768");
  }
  const std::uint64_t size = config.size;
  const std::array<Part, 3> parts = {{
      {"descriptor table", config.descriptor_table, sizeof(Descriptor) * size, 16},
      {"available ring", config.available_ring, kEntries + 2 * size + 2, 2},
      {"used ring", config.used_ring, kEntries + sizeof(UsedElement) * size + 2, 4},
  }};
  std::vector<GuestSlice> slices;
  for (const Part& part : parts) {
    auto slice = check_part(memory, part);
    if (!slice) {
      return tl::make_unexpected(std::move(slice.error()));
    }
    const auto range = GuestRange::make(part.address, part.size);
    for (std::size_t earlier = 0; earlier < slices.size(); ++earlier) {
      if (range->overlaps(*GuestRange::make(parts[earlier].address, parts[earlier].size))) {
        return fail(ErrorCode::kInvalidArgument, "the queue's " + std::string(part.name) + " at " +
                                                     hex(part.address.value()) + " overlaps its " +
                                                     std::string(parts[earlier].name));
      }
    }
    slices.push_back(*slice);
  }
  return VirtQueue(memory, config, {slices[0], slices[1], slices[2]}, state);
}

VirtQueue::VirtQueue(GuestMemory& memory, const VirtQueueConfig& config, const Parts& parts,
                     VirtQueueState state)
    : memory_(&memory),
      config_(config),
      parts_(parts),
      next_available_(state.next_available),
      available_end_(state.next_available),
      next_used_(state.next_used),
      published_used_(state.next_used) {}

QueueResult<std::uint16_t> VirtQueue::available_count() {
  // The driver's index is looked at only where all it showed last time is used up: once a batch. The load
  // also orders what follows it: an entry and its descriptors were written before the index (2.7.13.3.1).
  if (available_end_ == next_available_) {
    available_end_ = parts_.available_ring.load<std::uint16_t>(kIndex);
  }
  const auto count = static_cast<std::uint16_t>(available_end_ - next_available_);
  if (count > config_.size) {
    return tl::make_unexpected(QueueFault::kIndexRanAhead);
  }
  return count;
}

QueueResult<std::optional<DescriptorChain>> VirtQueue::take() {
  const auto count = available_count();
  if (!count) {
    return tl::make_unexpected(count.error());
  }
  if (*count == 0) {
    return std::nullopt;
  }
  if (in_flight_ >= config_.size) {
    return tl::make_unexpected(QueueFault::kTooManyInFlight);
  }
  const std::uint16_t entry = next_available_;
  const auto head =
      parts_.available_ring.object<std::uint16_t>(kEntries + std::size_t{2} * (entry & (config_.size - 1)));
  auto collected = storage();
  if (const auto done = collect(head, *collected); !done) {
    return tl::make_unexpected(done.error());
  }
  ++next_available_;
  ++in_flight_;
  return DescriptorChain(head, entry, std::move(collected));
}

QueueResult<void> VirtQueue::collect(std::uint16_t head, DescriptorChain::Storage& storage) const {
  GuestSlice table = parts_.descriptor_table;
  std::uint32_t table_size = config_.size;  // descriptors
  bool in_indirect = false;
  std::uint32_t index = head;
  std::uint64_t readable = 0;
  std::uint64_t writable = 0;
  // The bound on a chain, whichever tables it runs through (2.7.5.3.1). The descriptor that refers to an
  // indirect table is none of its buffers and not counted; there is one at most.
  std::uint32_t met = 0;
  while (met < config_.size) {
    if (index >= table_size) {
      return tl::make_unexpected(QueueFault::kDescriptorOutOfRange);
    }
    const auto descriptor = table.object<Descriptor>(std::size_t{index} * sizeof(Descriptor));
    if ((descriptor.flags & ~(kNext | kWrite | kIndirect)) != 0) {
      return tl::make_unexpected(QueueFault::kUnknownFlags);
    }
    if ((descriptor.flags & kIndirect) != 0) {
      if (!config_.indirect) {
        return tl::make_unexpected(QueueFault::kIndirectNotNegotiated);
      }
      if (in_indirect) {
        return tl::make_unexpected(QueueFault::kIndirectInIndirect);
      }
      if ((descriptor.flags & kNext) != 0) {
        return tl::make_unexpected(QueueFault::kIndirectWithNext);
      }
      if (descriptor.length == 0 || descriptor.length % sizeof(Descriptor) != 0) {
        return tl::make_unexpected(QueueFault::kIndirectTableSize);
      }
      const auto indirect = memory_->slice(GuestAddress(descriptor.address), descriptor.length);
      if (!indirect) {
        return tl::make_unexpected(QueueFault::kOutsideMemory);
      }
      table = *indirect;
      table_size = descriptor.length / sizeof(Descriptor);
      in_indirect = true;
      index = 0;
      continue;
    }
    ++met;
    const bool is_writable = (descriptor.flags & kWrite) != 0;
    if (!is_writable && writable != 0) {
      return tl::make_unexpected(QueueFault::kReadableAfterWritable);
    }
    // A descriptor of no bytes is allowed and is nothing.
    if (descriptor.length != 0) {
      const auto slice = memory_->slice(GuestAddress(descriptor.address), descriptor.length);
      if (!slice) {
        return tl::make_unexpected(QueueFault::kOutsideMemory);
      }
      storage.slices.push_back(*slice);
      (is_writable ? writable : readable) += descriptor.length;
      storage.readable_count += is_writable ? 0 : 1;
      if (readable + writable > kMaxBytes) {
        return tl::make_unexpected(QueueFault::kTooManyBytes);
      }
    }
    if ((descriptor.flags & kNext) == 0) {
      return {};
    }
    index = descriptor.next;
  }
  return tl::make_unexpected(QueueFault::kChainTooLong);
}

VirtQueueState VirtQueue::state() const {
  MAYFLY_CHECK(in_flight_ == 0 && published_used_ == next_used_,
               "a queue's state is saved between two batches");
  return {next_available_, next_used_};
}

void VirtQueue::put_back(DescriptorChain chain) {
  MAYFLY_CHECK(chain.entry_ == static_cast<std::uint16_t>(next_available_ - 1),
               "a chain is put back before those that were taken after it");
  recycle(std::move(chain));
  --next_available_;
}

void VirtQueue::complete(DescriptorChain chain, std::uint32_t written) {
  const std::uint16_t head = chain.head();
  recycle(std::move(chain));
  const std::size_t entry = next_used_ & (config_.size - 1);
  const std::size_t offset = kEntries + sizeof(UsedElement) * entry;
  parts_.used_ring.set_object(offset, UsedElement{head, written});
  note_used(offset, sizeof(UsedElement));
  ++next_used_;
}

bool VirtQueue::publish() {
  const std::uint16_t before = std::exchange(published_used_, next_used_);
  if (before == next_used_) {
    return false;
  }
  // The entries and the buffers' bytes are written before the index (2.7.8.2), and the index before we look
  // whether the driver wants to know: load() and store() keep that order. A driver that does the reverse in
  // its own order either sees the index or is seen asking.
  put_used(kIndex, next_used_);
  if (config_.event_index) {
    const auto used_event =
        parts_.available_ring.load<std::uint16_t>(kEntries + std::size_t{2} * config_.size);
    return passed_event(used_event, before, next_used_);
  }
  return (parts_.available_ring.load<std::uint16_t>(kFlags) & kNoInterrupt) == 0;
}

void VirtQueue::spare_doorbell() {
  // With an event index the driver rings for one entry and no other, until it is moved (2.7.10.1).
  if (!config_.event_index) {
    put_used(kFlags, kNoNotify);
  }
}

QueueResult<bool> VirtQueue::want_doorbell() {
  if (config_.event_index) {
    put_used(kEntries + sizeof(UsedElement) * config_.size, next_available_);
  } else {
    put_used(kFlags, 0);
  }
  // The wish is visible before we look again: what the driver makes available after this look, it rings for.
  const auto count = available_count();
  if (!count) {
    return tl::make_unexpected(count.error());
  }
  return *count != 0;
}

std::unique_ptr<DescriptorChain::Storage> VirtQueue::storage() {
  if (spare_.empty()) {
    return std::make_unique<DescriptorChain::Storage>(*memory_);
  }
  auto storage = std::move(spare_.back());
  spare_.pop_back();
  return storage;
}

void VirtQueue::recycle(DescriptorChain chain) {
  MAYFLY_CHECK(chain.storage_ && in_flight_ != 0, "a chain was given back twice");
  --in_flight_;
  chain.storage_->end();
  spare_.push_back(std::move(chain.storage_));
}

void VirtQueue::put_used(std::size_t offset, std::uint16_t value) {
  parts_.used_ring.store<std::uint16_t>(offset, value);
  note_used(offset, sizeof(value));
}

void VirtQueue::note_used(std::size_t offset, std::size_t size) {
  memory_->note_written(GuestAddress(config_.used_ring.value() + offset), size);
}

}  // namespace mayfly
