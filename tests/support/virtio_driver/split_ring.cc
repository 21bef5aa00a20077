#include "support/virtio_driver/split_ring.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace mayfly::testing {
namespace {

constexpr std::uint64_t kDescriptorSize = 16;
constexpr std::uint64_t kUsedEntrySize = 8;
constexpr std::uint64_t kRingHeader = 4;  // flags and idx, of both rings
constexpr std::byte kUnwritten{0xee};

std::uint64_t align_up(std::uint64_t value, std::uint64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

std::uint64_t table_bytes(const RingLayout& layout) {
  return kDescriptorSize * layout.size;
}
std::uint64_t available_bytes(const RingLayout& layout) {
  return kRingHeader + 2ULL * layout.size + 2;
}
std::uint64_t used_bytes(const RingLayout& layout) {
  return kRingHeader + kUsedEntrySize * layout.size + 2;
}

std::array<std::byte, kDescriptorSize> encode(const Descriptor& descriptor) {
  std::array<std::byte, kDescriptorSize> bytes{};
  const auto put = [&bytes](std::size_t offset, unsigned width, std::uint64_t value) {
    for (unsigned i = 0; i < width; ++i) {
      bytes.at(offset + i) = static_cast<std::byte>(value >> (8 * i));
    }
  };
  put(0, 8, descriptor.address);
  put(8, 4, descriptor.length);
  put(12, 2, descriptor.flags);
  put(14, 2, descriptor.next);
  return bytes;
}

}  // namespace

RingLayout RingLayout::at(std::uint64_t base, std::uint16_t size) {
  RingLayout layout{.descriptors = base, .available = 0, .used = 0, .size = size};
  layout.available = base + table_bytes(layout);
  layout.used = align_up(layout.available + available_bytes(layout), 4);
  return layout;
}

std::uint64_t RingLayout::end() const {
  return used + used_bytes(*this);
}

std::span<const std::byte> Completion::written() const {
  return std::span(writable).first(std::min<std::size_t>(length, writable.size()));
}

SplitRing::SplitRing(DriverMemory& memory, const RingLayout& layout, BufferArena buffers,
                     RingFeatures features)
    : memory_(memory),
      layout_(layout),
      buffers_(std::move(buffers)),
      features_(features),
      placed_(layout.size),
      table_shadow_(table_bytes(layout)),
      available_shadow_(available_bytes(layout)) {
  for (std::uint16_t i = 0; i < layout_.size; ++i) {
    free_.push_back(i);
  }
  memory_.write(layout_.descriptors, table_shadow_);
  memory_.write(layout_.available, available_shadow_);
  memory_.write(layout_.used, std::vector<std::byte>(used_bytes(layout_)));
}

SplitRing::Chain SplitRing::chain() {
  return Chain(*this);
}

void SplitRing::put_descriptor(std::uint64_t address, const Descriptor& descriptor) {
  memory_.write(address, encode(descriptor));
}

void SplitRing::put_available(std::uint64_t offset, std::uint16_t value) {
  available_shadow_.at(offset) = static_cast<std::byte>(value);
  available_shadow_.at(offset + 1) = static_cast<std::byte>(value >> 8);
  memory_.store_index(layout_.available + offset, value);
}

void SplitRing::write_descriptor(std::uint16_t index, const Descriptor& descriptor) {
  std::ranges::copy(encode(descriptor), std::span(table_shadow_).subspan(16ULL * index).begin());
  put_descriptor(entry_address(index), descriptor);
}

Descriptor SplitRing::read_descriptor(std::uint16_t index) const {
  const std::uint64_t entry = entry_address(index);
  return {.address = memory_.read_le(entry, 8),
          .length = static_cast<std::uint32_t>(memory_.read_le(entry + 8, 4)),
          .flags = static_cast<std::uint16_t>(memory_.read_le(entry + 12, 2)),
          .next = static_cast<std::uint16_t>(memory_.read_le(entry + 14, 2))};
}

void SplitRing::write_available_flags(std::uint16_t flags) {
  put_available(0, flags);
}

void SplitRing::write_available_index(std::uint16_t index) {
  available_index_ = index;
  put_available(2, index);
}

void SplitRing::write_available_entry(std::uint16_t slot, std::uint16_t head) {
  put_available(kRingHeader + 2ULL * slot, head);
}

void SplitRing::set_used_event(std::uint16_t event) {
  put_available(kRingHeader + 2ULL * layout_.size, event);
}

std::uint16_t SplitRing::used_flags() const {
  return memory_.load_index(layout_.used);
}

std::uint16_t SplitRing::used_index() const {
  return memory_.load_index(layout_.used + 2);
}

std::uint16_t SplitRing::available_event() const {
  return memory_.load_index(layout_.used + kRingHeader + kUsedEntrySize * layout_.size);
}

void SplitRing::offer(std::uint16_t head) {
  write_available_entry(slot(static_cast<std::uint16_t>(available_index_ + offered_.size())), head);
  offered_.push_back(head);
}

void SplitRing::expose() {
  const auto index = static_cast<std::uint16_t>(available_index_ + offered_.size());
  for (const std::uint16_t head : offered_) {
    order_.push_back(head);
  }
  offered_.clear();
  write_available_index(index);  // a release: step 4's barrier
}

void SplitRing::full_barrier() {
  // SAFETY: a locked read-modify-write orders all of this thread's accesses around it on x86-64, as the store
  // of the index before the load of the event must be (2.7.13.4.1). ThreadSanitizer does not know plain
  // fences.
  barrier_.fetch_add(1, std::memory_order_seq_cst);
}

bool SplitRing::passes(std::uint16_t event, std::uint16_t from, std::uint16_t to) {
  for (std::uint16_t index = from; index != to; ++index) {
    if (index == event) {
      return true;
    }
  }
  return false;
}

bool SplitRing::should_notify() {
  full_barrier();
  const std::uint16_t from = std::exchange(asked_index_, available_index_);
  const std::uint16_t flags = used_flags();
  if (flags > VIRTQ_USED_F_NO_NOTIFY || (features_.event_idx && flags != 0)) {
    violation("the used ring's flags are " + std::to_string(flags));
  }
  if (features_.event_idx) {
    return passes(available_event(), from, available_index_);
  }
  return from != available_index_ && (flags & VIRTQ_USED_F_NO_NOTIFY) == 0;
}

bool SplitRing::enable_interrupts() {
  if (features_.event_idx) {
    set_used_event(used_seen_);
  } else {
    write_available_flags(0);
  }
  full_barrier();
  return !ready_.empty() || used_index() != used_seen_;
}

void SplitRing::disable_interrupts() {
  if (features_.event_idx) {
    // As far away as it gets: passed after 65535 more used buffers.
    set_used_event(static_cast<std::uint16_t>(used_seen_ - 1));
  } else {
    write_available_flags(VIRTQ_AVAIL_F_NO_INTERRUPT);
  }
}

std::optional<Completion> SplitRing::collect() {
  if (ready_.empty() && !take_used_entries()) {
    return std::nullopt;
  }
  Completion first = std::move(ready_.front());
  ready_.pop_front();
  ++collected_;
  return first;
}

std::vector<Completion> SplitRing::collect_all() {
  std::vector<Completion> all;
  while (auto next = collect()) {
    all.push_back(std::move(*next));
  }
  return all;
}

// Takes what the used ring shows. Whether there is a completion now.
bool SplitRing::take_used_entries() {
  const std::uint16_t index = used_index();
  const auto fresh = static_cast<std::uint16_t>(index - used_seen_);
  if (fresh > order_.size()) {
    violation("the used index went from " + std::to_string(used_seen_) + " to " + std::to_string(index) +
              " with " + std::to_string(order_.size()) + " buffers at the device");
    used_seen_ = index;
    return false;
  }
  while (used_seen_ != index) {
    const std::uint64_t entry = layout_.used + kRingHeader + kUsedEntrySize * slot(used_seen_);
    const auto id = static_cast<std::uint32_t>(memory_.read_le(entry, 4));
    const auto length = static_cast<std::uint32_t>(memory_.read_le(entry + 4, 4));
    const auto found = std::find(order_.begin(), order_.end(), id);
    if (found == order_.end()) {
      violation("used entry " + std::to_string(used_seen_) + " returns head " + std::to_string(id) +
                ", which the device does not have");
      ++used_seen_;
      continue;
    }
    if (!features_.in_order) {
      order_.erase(found);
      complete(static_cast<std::uint16_t>(id), length);
      ++used_seen_;
      continue;
    }
    // 2.7.9: the entry may stand for a batch, of which it names the last buffer.
    const auto batch = static_cast<std::uint16_t>(found - order_.begin() + 1);
    if (batch > static_cast<std::uint16_t>(index - used_seen_)) {
      violation("used entry " + std::to_string(used_seen_) + " returns head " + std::to_string(id) +
                " out of order");
      used_seen_ = index;
      break;
    }
    for (std::uint16_t i = 1; i <= batch; ++i) {
      const std::uint16_t head = order_.front();
      order_.pop_front();
      complete(head, i == batch ? std::optional(length) : std::nullopt);
    }
    used_seen_ = static_cast<std::uint16_t>(used_seen_ + batch);
  }
  return !ready_.empty();
}

// `length` nothing: a buffer that a batch covers without an entry; it is used completely.
void SplitRing::complete(std::uint16_t head, std::optional<std::uint32_t> length) {
  Completion done{.head = head, .length = length.value_or(0)};
  // A head that is none, or twice at the device, is a lie of the driver's: the first return gives the buffers
  // back.
  if (head < placed_.size() && placed_[head]) {
    auto& placed = placed_[head];
    if (!length) {
      done.length = static_cast<std::uint32_t>(placed->writable_bytes);
    }
    if (placed->knows_writable && done.length > placed->writable_bytes) {
      violation("head " + std::to_string(head) + " returns with length " + std::to_string(done.length) +
                " of " + std::to_string(placed->writable_bytes) + " writable bytes");
    }
    for (const Piece& piece : placed->pieces) {
      if (piece.device_writable && piece.from_arena) {
        const auto bytes = memory_.read_bytes(piece.address, piece.length);
        done.writable.insert(done.writable.end(), bytes.begin(), bytes.end());
      } else if (!piece.contents.empty() &&
                 memory_.read_bytes(piece.address, piece.length) != piece.contents) {
        violation("head " + std::to_string(head) + " returns with a device-readable buffer changed");
      }
      if (piece.from_arena) {
        buffers_.give_back(piece.address, piece.length);
      }
    }
    free_.insert(free_.end(), placed->descriptors.begin(), placed->descriptors.end());
    placed.reset();
  }
  ready_.push_back(std::move(done));
}

void SplitRing::check_driver_areas() {
  if (memory_.read_bytes(layout_.descriptors, table_shadow_.size()) != table_shadow_) {
    violation("the descriptor table has changed");
  }
  if (memory_.read_bytes(layout_.available, available_shadow_.size()) != available_shadow_) {
    violation("the available ring has changed");
  }
}

SplitRing::Chain& SplitRing::Chain::readable(std::span<const std::byte> content) {
  const auto length = static_cast<std::uint32_t>(content.size());
  const std::uint64_t address = ring_.buffers_.take(length);
  ring_.memory_.write(address, content);
  elements_.push_back({.piece = {.address = address,
                                 .length = length,
                                 .from_arena = true,
                                 .device_writable = false,
                                 .contents = {content.begin(), content.end()}}});
  return *this;
}

SplitRing::Chain& SplitRing::Chain::writable(std::uint32_t length) {
  const std::uint64_t address = ring_.buffers_.take(length);
  ring_.memory_.write(address, std::vector(length, kUnwritten));
  elements_.push_back(
      {.piece = {.address = address, .length = length, .from_arena = true, .device_writable = true}});
  return *this;
}

SplitRing::Chain& SplitRing::Chain::readable_at(std::uint64_t address, std::uint32_t length) {
  elements_.push_back({.piece = {.address = address, .length = length}});
  return *this;
}

SplitRing::Chain& SplitRing::Chain::writable_at(std::uint64_t address, std::uint32_t length) {
  elements_.push_back({.piece = {.address = address, .length = length, .device_writable = true}});
  return *this;
}

SplitRing::Chain& SplitRing::Chain::indirect(std::size_t direct) {
  direct_ = direct;
  return *this;
}

SplitRing::Chain::Element& SplitRing::Chain::last() {
  if (elements_.empty()) {
    throw std::logic_error("a chain without elements has no last one");
  }
  return elements_.back();
}

SplitRing::Chain& SplitRing::Chain::with_flags(std::uint16_t flags) {
  last().flags = flags;
  return *this;
}

SplitRing::Chain& SplitRing::Chain::with_next(std::uint16_t next) {
  last().next = next;
  return *this;
}

SplitRing::Chain& SplitRing::Chain::with_length(std::uint32_t length) {
  last().length = length;
  return *this;
}

SplitRing::Chain& SplitRing::Chain::with_address(std::uint64_t address) {
  last().address = address;
  return *this;
}

SplitRing::Chain& SplitRing::Chain::with_table_length(std::uint32_t length) {
  table_length_ = length;
  return *this;
}

SplitRing::Chain& SplitRing::Chain::with_table_flags(std::uint16_t flags) {
  table_flags_ = flags;
  return *this;
}

Descriptor SplitRing::Chain::describe(const Element& element, std::optional<std::uint16_t> next) {
  auto flags = static_cast<std::uint16_t>(element.piece.device_writable ? VIRTQ_DESC_F_WRITE : 0);
  if (next) {
    flags |= VIRTQ_DESC_F_NEXT;
  }
  return {.address = element.address.value_or(element.piece.address),
          .length = element.length.value_or(element.piece.length),
          .flags = element.flags.value_or(flags),
          .next = element.next.value_or(next.value_or(0))};
}

std::uint16_t SplitRing::Chain::place() {
  const std::size_t direct = direct_ ? std::min(*direct_, elements_.size()) : elements_.size();
  const std::size_t needed = direct + (direct_ ? 1 : 0);
  if (needed == 0 || needed > ring_.free_.size()) {
    throw std::length_error("a chain of " + std::to_string(needed) + " descriptors with " +
                            std::to_string(ring_.free_.size()) + " free");
  }

  Placed placed;
  placed.descriptors.assign(ring_.free_.begin(), ring_.free_.begin() + static_cast<std::ptrdiff_t>(needed));
  ring_.free_.erase(ring_.free_.begin(), ring_.free_.begin() + static_cast<std::ptrdiff_t>(needed));

  for (std::size_t i = 0; i < direct; ++i) {
    const auto next = i + 1 < needed ? std::optional(placed.descriptors[i + 1]) : std::nullopt;
    ring_.write_descriptor(placed.descriptors[i], describe(elements_[i], next));
  }
  if (direct_) {
    const std::size_t entries = elements_.size() - direct;
    const auto table_size = static_cast<std::uint32_t>(kDescriptorSize * entries);
    const std::uint64_t table = ring_.buffers_.take(table_size);
    for (std::size_t i = 0; i < entries; ++i) {
      const auto next = i + 1 < entries ? std::optional(static_cast<std::uint16_t>(i + 1)) : std::nullopt;
      ring_.put_descriptor(table + kDescriptorSize * i, describe(elements_[direct + i], next));
    }
    ring_.write_descriptor(placed.descriptors.back(),
                           {.address = table,
                            .length = table_length_.value_or(table_size),
                            .flags = static_cast<std::uint16_t>(VIRTQ_DESC_F_INDIRECT | table_flags_),
                            .next = 0});
    placed.pieces.push_back({.address = table,
                             .length = table_size,
                             .from_arena = true,
                             .device_writable = false,
                             .contents = ring_.memory_.read_bytes(table, table_size)});
  }

  for (Element& element : elements_) {
    const bool lies = element.flags || element.next || element.length || element.address;
    placed.knows_writable = placed.knows_writable && !lies;
    placed.writable_bytes += element.piece.device_writable ? element.piece.length : 0;
    placed.pieces.push_back(std::move(element.piece));
  }
  placed.knows_writable = placed.knows_writable && !table_length_ && table_flags_ == 0;
  elements_.clear();

  const std::uint16_t head = placed.descriptors.front();
  ring_.placed_[head] = std::move(placed);
  return head;
}

std::uint16_t SplitRing::Chain::submit() {
  const std::uint16_t head = place();
  ring_.offer(head);
  ring_.expose();
  return head;
}

}  // namespace mayfly::testing
