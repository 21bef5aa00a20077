// A VirtQueue under any sequence of a driver's and a device's steps, beside a model of it.
//
// The driver is raw: it writes descriptors, ring entries and indices as the input has them, mostly what the
// specification allows and sometimes not. The model reads a copy of the guest's memory, walks chains one
// descriptor at a time and event indices one entry at a time, and knows nothing of the queue's code. One
// thread: what a driver that races does is not for a model.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "devices/virtio/queue/virt_queue.h"
#include "memory/guest_memory.h"

namespace mayfly::testing {

// Bytes that decide what is done, one after the other; zeros where they have ended.
class Decisions {
 public:
  explicit Decisions(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  bool empty() const { return bytes_.empty(); }
  template <typename T>
  T take() {
    T value{};
    const std::size_t size = std::min(sizeof(T), bytes_.size());
    if (size > 0) {
      std::memcpy(&value, bytes_.data(), size);
    }
    bytes_ = bytes_.subspan(size);
    return value;
  }
  // Less than `end`.
  std::uint32_t below(std::uint32_t end) { return take<std::uint8_t>() % end; }

 private:
  std::span<const std::uint8_t> bytes_;
};

class QueueExerciser {
 public:
  // What the two differ in, or nothing.
  std::optional<std::string> run(std::span<const std::uint8_t> input) {
    Decisions decisions(input);
    if (!start(decisions)) {
      return difference_;
    }
    for (int step = 0; step < kMaxSteps && !decisions.empty() && !difference_; ++step) {
      one_step(decisions);
    }
    if (!difference_) {
      compare_memory();
    }
    return difference_;
  }

 private:
  // RAM is [0, kFirst) and [kSecond, kEnd): a hole and an end to run past.
  static constexpr std::uint64_t kFirst = 0x8000;
  static constexpr std::uint64_t kSecond = 0xa000;
  static constexpr std::uint64_t kEnd = 0xc000;
  static constexpr std::uint64_t kTable = 0x1000;
  static constexpr std::uint64_t kAvailable = 0x2000;
  static constexpr std::uint64_t kUsed = 0x3000;
  static constexpr std::uint64_t kBuffers = 0x4000;
  static constexpr int kMaxSteps = 256;

  struct Piece {
    std::uint64_t address = 0;
    std::uint32_t length = 0;
    bool writable = false;
    friend bool operator==(const Piece&, const Piece&) = default;
  };
  struct Out {
    DescriptorChain chain;
    std::vector<Piece> pieces;
    std::uint16_t entry = 0;
  };

  static GuestMemory make_memory() {
    const std::array ranges = {*GuestRange::make(GuestAddress(0), kFirst),
                               *GuestRange::make(GuestAddress(kSecond), kEnd - kSecond)};
    return std::move(*GuestMemory::create(ranges, Backing::kAnonymous));
  }
  static bool in_ram(std::uint64_t address, std::uint64_t length) {
    const auto within = [&](std::uint64_t from, std::uint64_t to) {
      return address >= from && address < to && length <= to - address;
    };
    return within(0, kFirst) || within(kSecond, kEnd);
  }

  void differ(std::string what) {
    if (!difference_) {
      difference_ = std::move(what);
    }
  }

  // --- Memory, and the model's copy of it ---

  void put(std::uint64_t address, std::span<const std::byte> bytes) {
    if (in_ram(address, bytes.size())) {
      static_cast<void>(memory_.write(GuestAddress(address), bytes));
      std::ranges::copy(bytes, std::span(shadow_).subspan(address).begin());
    }
  }
  template <typename T>
  void put_value(std::uint64_t address, T value) {
    put(address, std::as_bytes(std::span(&value, 1)));
  }
  template <typename T>
  T seen(std::uint64_t address) const {
    T value{};
    std::memcpy(&value, shadow_.data() + address, sizeof(value));
    return value;
  }
  template <typename T>
  void expect_written(std::uint64_t address, T value) {
    std::memcpy(shadow_.data() + address, &value, sizeof(value));
  }
  void compare_memory() {
    std::vector<std::byte> now(kEnd);
    static_cast<void>(memory_.read(GuestAddress(0), std::span(now).first(kFirst)));
    static_cast<void>(memory_.read(GuestAddress(kSecond), std::span(now).subspan(kSecond)));
    const auto [there, expected] = std::ranges::mismatch(now, shadow_);
    if (there != now.end()) {
      differ("memory at " + std::to_string(there - now.begin()) + " is not what the model has");
    }
  }

  // --- Start ---

  bool start(Decisions& decisions) {
    const auto shape = decisions.take<std::uint8_t>();
    size_ = 1U << (shape % 6);
    event_index_ = (shape & 0x40) != 0;
    indirect_ = (shape & 0x80) != 0;
    const auto from = decisions.take<std::uint16_t>();
    next_available_ = available_end_ = from;
    next_used_ = published_ = decisions.take<std::uint16_t>();
    driver_index_ = from;
    put_value<std::uint16_t>(kAvailable + 2, from);
    put_value<std::uint16_t>(kUsed + 2, next_used_);
    return make_queue();
  }

  bool make_queue() {
    auto made = VirtQueue::create(memory_,
                                  {.size = size_,
                                   .descriptor_table = GuestAddress(kTable),
                                   .available_ring = GuestAddress(kAvailable),
                                   .used_ring = GuestAddress(kUsed),
                                   .event_index = event_index_,
                                   .indirect = indirect_},
                                  {.next_available = next_available_, .next_used = next_used_});
    if (!made) {
      differ("a sound queue is refused: " + made.error().message());
      return false;
    }
    queue_.emplace(std::move(*made));
    return true;
  }

  // --- Steps ---

  void one_step(Decisions& decisions) {
    switch (decisions.below(16)) {
      case 0:
      case 1:
        return place_chain(decisions, false);
      case 2:
        return place_chain(decisions, true);
      case 3:
        return lie(decisions);
      case 4:
      case 5:
        return offer(static_cast<std::uint16_t>(decisions.below(size_)));
      case 6:
      case 7:
      case 8:
        return take(decisions);
      case 9:
      case 10:
        return complete(decisions);
      case 11:
        return put_back();
      case 12:
        return publish();
      case 13:
        return want_doorbell();
      case 14:
        spare_doorbell();
        return;
      default:
        return save_and_restore();
    }
  }

  static std::uint64_t buffer_address(Decisions& decisions) {
    return kBuffers + std::uint64_t{16} * decisions.take<std::uint8_t>();
  }
  void put_descriptor(std::uint64_t address, const Piece& piece, std::uint16_t flags, std::uint16_t next) {
    put_value(address, piece.address);
    put_value(address + 8, piece.length);
    put_value(address + 12, flags);
    put_value(address + 14, next);
  }

  // Descriptors behind one another: readable ones, then writable ones, in the table or in a table of their
  // own.
  void place_chain(Decisions& decisions, bool indirect) {
    const auto head = static_cast<std::uint16_t>(decisions.below(size_));
    const std::uint32_t count = 1 + decisions.below(size_ + (indirect ? 1 : 0));
    const std::uint32_t readable = decisions.below(count + 1);
    const std::uint64_t table = indirect ? buffer_address(decisions) : kTable;
    std::uint16_t at = indirect ? 0 : head;
    for (std::uint32_t i = 0; i < count; ++i) {
      const auto next = static_cast<std::uint16_t>(indirect ? at + 1 : (at + 1U) % size_);
      auto flags = static_cast<std::uint16_t>(i < readable ? 0 : 2);
      flags |= static_cast<std::uint16_t>(i + 1 < count ? 1 : 0);
      put_descriptor(table + 16ULL * at,
                     {.address = buffer_address(decisions), .length = decisions.take<std::uint8_t>()}, flags,
                     next);
      at = next;
    }
    if (indirect) {
      put_descriptor(kTable + 16ULL * head, {.address = table, .length = 16 * count},
                     static_cast<std::uint16_t>(4 | (decisions.below(2) << 1)), 0);
    }
    offer(head);
  }

  void offer(std::uint16_t head) {
    put_value(kAvailable + 4 + 2ULL * (driver_index_ % size_), head);
    ++driver_index_;
    put_value(kAvailable + 2, driver_index_);
  }

  void lie(Decisions& decisions) {
    const std::uint64_t descriptor = kTable + 16ULL * decisions.below(size_);
    switch (decisions.below(8)) {
      case 0:
        return put_value(descriptor, decisions.take<std::uint64_t>());
      case 1:  // near an end of RAM
        return put_value(descriptor,
                         (decisions.below(2) != 0 ? kFirst : kEnd) - decisions.take<std::uint8_t>());
      case 2:
        return put_value(descriptor + 8, decisions.take<std::uint32_t>());
      case 3:
        return put_value(descriptor + 12, decisions.take<std::uint16_t>());
      case 4:
        return put_value(descriptor + 14, decisions.take<std::uint16_t>());
      case 5:
        driver_index_ = static_cast<std::uint16_t>(driver_index_ + decisions.take<std::int8_t>());
        return put_value(kAvailable + 2, driver_index_);
      case 6:
        return put_value(kAvailable + 2ULL * decisions.below(size_ + 3), decisions.take<std::uint16_t>());
      default:
        return put_value(decisions.take<std::uint16_t>(), decisions.take<std::uint32_t>());
    }
  }

  // How many entries are there, as the model sees it; nothing where the index ran ahead.
  std::optional<std::uint16_t> count() {
    if (available_end_ == next_available_) {
      available_end_ = seen<std::uint16_t>(kAvailable + 2);
    }
    const auto there = static_cast<std::uint16_t>(available_end_ - next_available_);
    return there > size_ ? std::nullopt : std::optional(there);
  }

  // The chain of `head`, or nothing where it is none.
  std::optional<std::vector<Piece>> walk(std::uint16_t head) const {
    std::vector<Piece> pieces;
    std::uint64_t table = kTable;
    std::uint64_t entries = size_;
    bool in_table = false;
    std::uint64_t total = 0;
    std::uint32_t descriptors = 0;
    for (std::uint16_t index = head;;) {
      if (index >= entries) {
        return std::nullopt;
      }
      const std::uint64_t at = table + 16ULL * index;
      const Piece piece{.address = seen<std::uint64_t>(at),
                        .length = seen<std::uint32_t>(at + 8),
                        .writable = (seen<std::uint16_t>(at + 12) & 2) != 0};
      const auto flags = seen<std::uint16_t>(at + 12);
      if (flags > 7) {
        return std::nullopt;
      }
      if ((flags & 4) != 0) {
        if (!indirect_ || in_table || (flags & 1) != 0 || piece.length == 0 || piece.length % 16 != 0 ||
            !in_ram(piece.address, piece.length)) {
          return std::nullopt;
        }
        in_table = true;
        table = piece.address;
        entries = piece.length / 16;
        index = 0;
        continue;
      }
      if (++descriptors > size_) {
        return std::nullopt;
      }
      total += piece.length;
      const bool after_writable = !pieces.empty() && pieces.back().writable;
      if ((!piece.writable && after_writable) || total > UINT32_MAX) {
        return std::nullopt;
      }
      if (piece.length != 0) {
        if (!in_ram(piece.address, piece.length)) {
          return std::nullopt;
        }
        pieces.push_back(piece);
      }
      if ((flags & 1) == 0) {
        return pieces;
      }
      if (descriptors == size_) {
        return std::nullopt;
      }
      index = seen<std::uint16_t>(at + 14);
    }
  }

  void take(Decisions& decisions) {
    auto got = queue_->take();
    const auto there = count();
    if (there && *there == 0) {
      if (!got || *got) {
        differ("a chain where there is none");
      }
      return;
    }
    std::optional<std::vector<Piece>> pieces;
    std::uint16_t head = 0;
    if (there && out_.size() < size_) {
      head = seen<std::uint16_t>(kAvailable + 4 + 2ULL * (next_available_ % size_));
      pieces = walk(head);
    }
    if (got.has_value() != pieces.has_value()) {
      differ(got ? "a chain that is none was taken"
                 : "a sound chain was refused: " + std::string(to_string(got.error())));
      return;
    }
    if (!got) {
      // The device needs a reset: a new start.
      out_.clear();
      next_available_ = available_end_ = driver_index_ = seen<std::uint16_t>(kAvailable + 2);
      next_used_ = published_ = seen<std::uint16_t>(kUsed + 2);
      make_queue();
      return;
    }
    if (!*got) {
      return differ("no chain where there is one");
    }
    if ((*got)->head() != head || listed(**got) != *pieces) {
      return differ("the chain is another than the driver's");
    }
    out_.push_back({.chain = std::move(**got), .pieces = std::move(*pieces), .entry = next_available_});
    ++next_available_;
    use(out_.back(), decisions);
  }

  static std::vector<Piece> listed(const DescriptorChain& chain) {
    std::vector<Piece> pieces;
    for (const bool writable : {false, true}) {
      for (const GuestSlice& slice : writable ? chain.writable() : chain.readable()) {
        pieces.push_back({.address = slice.address().value(),
                          .length = static_cast<std::uint32_t>(slice.size()),
                          .writable = writable});
      }
    }
    return pieces;
  }

  // Reads and writes some bytes through the cursors, byte by byte in the model.
  void use(const Out& out, Decisions& decisions) {
    std::vector<std::uint64_t> readable;
    std::vector<std::uint64_t> writable;
    for (const Piece& piece : out.pieces) {
      auto& to = piece.writable ? writable : readable;
      for (std::uint64_t i = 0; i < piece.length && to.size() < 1024; ++i) {
        to.push_back(piece.address + i);
      }
    }
    const std::uint32_t skipped = decisions.below(8);
    std::vector<std::byte> bytes(decisions.take<std::uint8_t>());
    auto reader = out.chain.reader();
    if (reader.skip(skipped) != (skipped <= readable.size())) {
      differ("skip");
    }
    const std::size_t from = skipped <= readable.size() ? skipped : 0;
    if (reader.read(bytes) != (from + bytes.size() <= readable.size())) {
      return differ("read");
    }
    for (std::size_t i = 0; i < bytes.size() && from + bytes.size() <= readable.size(); ++i) {
      if (bytes[i] != shadow_[readable[from + i]]) {
        return differ("what was read is not what is there");
      }
    }
    auto writer = out.chain.writer();
    const bool zeroes = decisions.below(2) != 0;
    const bool fits = bytes.size() <= writable.size();
    if ((zeroes ? writer.write_zeroes(bytes.size()) : writer.write(bytes)) != fits) {
      return differ("write");
    }
    for (std::size_t i = 0; fits && i < bytes.size(); ++i) {
      shadow_[writable[i]] = zeroes ? std::byte{0} : bytes[i];
    }
  }

  void complete(Decisions& decisions) {
    if (out_.empty()) {
      return;
    }
    const auto which = out_.begin() + decisions.below(static_cast<std::uint32_t>(out_.size()));
    const auto written = decisions.take<std::uint32_t>();
    const std::uint64_t entry = kUsed + 4 + 8ULL * (next_used_ % size_);
    expect_written<std::uint32_t>(entry, which->chain.head());
    expect_written<std::uint32_t>(entry + 4, written);
    ++next_used_;
    queue_->complete(std::move(which->chain), written);
    out_.erase(which);
  }

  void put_back() {
    if (!out_.empty() && out_.back().entry == static_cast<std::uint16_t>(next_available_ - 1)) {
      queue_->put_back(std::move(out_.back().chain));
      out_.pop_back();
      --next_available_;
    }
  }

  void publish() {
    const std::uint16_t before = std::exchange(published_, next_used_);
    bool wanted = false;
    if (before != next_used_) {
      expect_written(kUsed + 2, next_used_);
      const auto event = seen<std::uint16_t>(kAvailable + 4 + 2ULL * size_);
      wanted = (seen<std::uint16_t>(kAvailable) & 1) == 0;
      if (event_index_) {
        wanted = false;
        for (std::uint16_t entry = before; entry != next_used_; ++entry) {
          wanted = wanted || entry == event;
        }
      }
    }
    if (queue_->publish() != wanted) {
      differ(wanted ? "an interrupt is missing" : "an interrupt too many");
    }
  }

  void want_doorbell() {
    if (event_index_) {
      expect_written(kUsed + 4 + 8ULL * size_, next_available_);
    } else {
      expect_written<std::uint16_t>(kUsed, 0);
    }
    const auto more = queue_->want_doorbell();
    const auto there = count();
    if (more.has_value() != there.has_value() || (more && *more != (*there != 0))) {
      differ("want_doorbell() answers wrongly");
    }
  }

  void spare_doorbell() {
    if (!event_index_) {
      expect_written<std::uint16_t>(kUsed, 1);
    }
    queue_->spare_doorbell();
  }

  void save_and_restore() {
    if (!out_.empty() || published_ != next_used_) {
      return;
    }
    const VirtQueueState state = queue_->state();
    if (state.next_available != next_available_ || state.next_used != next_used_ ||
        queue_->in_flight() != 0) {
      return differ("the state is another");
    }
    available_end_ = next_available_;
    make_queue();
  }

  GuestMemory memory_ = make_memory();
  std::vector<std::byte> shadow_ = std::vector<std::byte>(kEnd);
  std::uint32_t size_ = 0;
  bool event_index_ = false;
  bool indirect_ = false;
  std::uint16_t driver_index_ = 0;
  std::uint16_t next_available_ = 0;
  std::uint16_t available_end_ = 0;
  std::uint16_t next_used_ = 0;
  std::uint16_t published_ = 0;
  std::vector<Out> out_;
  std::optional<VirtQueue> queue_;
  std::optional<std::string> difference_;
};

}  // namespace mayfly::testing
