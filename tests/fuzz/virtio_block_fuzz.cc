// A block device under a driver that mostly keeps to the specification and now and then lies. As long as it
// does not lie, every answer and every byte is held to a model of the disk.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "devices/virtio/block/block_device.h"
#include "devices/virtio/transport/mmio_transport.h"
#include "quiet_log.h"
#include "support/block_requests.h"
#include "support/fake_event.h"
#include "support/fuzz_input.h"
#include "support/mmio_window.h"
#include "support/virtio_driver/mmio_driver.h"

namespace mayfly::testing {
namespace {

using namespace blk;  // NOLINT(google-build-using-namespace): the specification's names

constexpr std::uint64_t kSectors = 64;
constexpr std::uint64_t kMemory = 1U << 20;
constexpr std::uint64_t kRing = 0x4000;
constexpr std::uint64_t kArena = 0x10000;
constexpr std::size_t kLongestChain = 8;  // descriptors; the smallest ring has as many

[[noreturn]] void found(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::abort();
}

// The image: a file in memory, opened by its name under /proc.
class Image {
 public:
  Image() : fd_(::memfd_create("image", MFD_CLOEXEC)) { path_ = "/proc/self/fd/" + std::to_string(fd_); }
  const std::string& path() const { return path_; }
  void fill(const std::vector<std::byte>& content) const {
    if (::ftruncate(fd_, 0) != 0 ||
        ::pwrite(fd_, content.data(), content.size(), 0) != static_cast<ssize_t>(content.size())) {
      found("the image cannot be made");
    }
  }
  std::vector<std::byte> content() const {
    std::vector<std::byte> bytes(kSectors * 512);
    if (::pread(fd_, bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
      found("the image has lost bytes");
    }
    return bytes;
  }

 private:
  int fd_;
  std::string path_;
};

// What an honest request is to be answered with.
struct Expected {
  std::uint8_t status = VIRTIO_BLK_S_OK;
  std::optional<std::vector<std::byte>> data;  // of a read
};

class Session {
 public:
  explicit Session(FuzzInput& input)
      : input_(input),
        memory_(std::move(*GuestMemory::create(std::array{*GuestRange::make(GuestAddress(0), kMemory)},
                                               Backing::kAnonymous))),
        driver_memory_(memory_) {
    const std::uint8_t choices = input_.byte();
    config_.id = "fuzz";
    config_.path = image().path();
    config_.read_only = (choices & 3) == 3;
    config_.discard = (choices & 4) != 0;
    config_.cache_type = (choices & 8) != 0 ? BlockCacheType::kWriteback : BlockCacheType::kUnsafe;
    if ((choices & 16) != 0 && !config_.read_only) {
      config_.overlay.emplace();
    }
    wanted_ = ~(std::uint64_t{input_.byte()} << 9) & ~(std::uint64_t{choices} >> 5 << 28) & ~kFeatureInOrder;
    wanted_ |= kFeatureVersion1;
    disk_.resize(kSectors * 512);
    for (std::size_t index = 0; index < disk_.size(); ++index) {
      disk_[index] = static_cast<std::byte>(index / 512 + index);
    }
    image().fill(disk_);
    original_ = disk_;
    device_ = std::move(*BlockDevice::create(config_, registrar_));
    transport_ = std::move(*MmioTransport::create(*device_, memory_, line_, registrar_));
    window_ = std::make_unique<BusWindow>(*transport_);
    driver_ = std::make_unique<MmioDriver>(*window_);
  }

  void play() {
    restart();
    for (int step = 0; step < 200 && !input_.empty(); ++step) {
      try {
        this->step();
      } catch (const std::bad_alloc&) {
        out_of_room();
      } catch (const std::length_error&) {
        out_of_room();
      }
    }
    settle();
    if (config_.read_only || config_.overlay) {
      if (image().content() != original_) {
        found("an image that is only read has changed");
      }
    } else if (honest_ && image().content() != disk_) {
      found("the image is not what was written");
    }
  }

 private:
  static const Image& image() {
    static const Image image;
    return image;
  }

  void restart() {
    if (!driver_->reset()) {
      found("a reset did not end");
    }
    ring_.reset();
    expected_.clear();
    const auto features = driver_->negotiate(wanted_);
    if (!features) {
      found("the features are refused");
    }
    features_ = *features;
    const auto size = static_cast<std::uint16_t>(1U << (input_.byte() % 6 + 3));
    const auto layout = RingLayout::at(kRing, size);
    ring_.emplace(driver_memory_, layout, BufferArena(kArena, kMemory - kArena),
                  RingFeatures{.event_idx = (features_ & kFeatureEventIndex) != 0, .in_order = false});
    if (!driver_->set_up_queue(0, layout)) {
      found("the queue is refused");
    }
    driver_->driver_ok();
    lied_to_ring_ = false;
    run();
  }

  // Of descriptors or buffers: those of a chain that was lied about may never come back.
  void out_of_room() {
    if (honest_) {
      found("descriptors or buffers are lost");
    }
    restart();
  }

  void step() {
    if (ring_->free_descriptors() < kLongestChain) {
      settle();
    }
    switch (input_.byte() % 16) {
      case 0:
        settle();
        return;
      case 1:
        window_->write(0x100 + input_.byte() % 80, 1U << (input_.byte() % 4), input_.byte());
        // Whatever the cache is now, it is of no concern to the contents.
        return;
      case 2:
        window_->read(0x100 + input_.number(2) % 0x200, 1U << (input_.byte() % 4));
        return;
      case 3:
        if (input_.rarely(4)) {
          lie_to_ring();
        }
        return;
      case 4:
        if (input_.rarely(8)) {
          // What is not taken up by now never is.
          settle();
          restart();
        }
        return;
      case 5:
        if (input_.rarely(16)) {
          settle();
          driver_->stop_queue(0);
          driver_->notify(0);
          run();
          restart();
        }
        return;
      default:
        request();
        if (input_.rarely(3)) {
          settle();
        }
    }
  }

  void lie_to_ring() {
    lie();
    const auto at = input_.byte();
    const auto slot = static_cast<std::uint16_t>(at % ring_->layout().size);
    switch (input_.byte() % 3) {
      case 0:
        ring_->write_available_index(static_cast<std::uint16_t>(ring_->available_index() + at));
        return;
      case 1:
        ring_->write_available_entry(slot, static_cast<std::uint16_t>(input_.number(2)));
        return;
      default:
        ring_->write_descriptor(slot, {.address = input_.number(3),
                                       .length = static_cast<std::uint32_t>(input_.number(3)),
                                       .flags = static_cast<std::uint16_t>(input_.byte() % 16),
                                       .next = static_cast<std::uint16_t>(input_.byte())});
    }
  }

  void lie() {
    honest_ = false;
    lied_to_ring_ = true;
  }

  void request() {
    static constexpr std::array kTypes = {VIRTIO_BLK_T_IN,     VIRTIO_BLK_T_OUT,    VIRTIO_BLK_T_IN,
                                          VIRTIO_BLK_T_OUT,    VIRTIO_BLK_T_FLUSH,  VIRTIO_BLK_T_WRITE_ZEROES,
                                          VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_DISCARD};
    const std::uint8_t chosen = input_.byte();
    const std::uint32_t type = chosen < 248 ? kTypes.at(chosen % kTypes.size()) : chosen - 236U;
    std::uint64_t sector = input_.byte() % (kSectors + 4);
    if (input_.rarely(64)) {
      sector = ~sector << (input_.byte() % 64U);
    }
    std::vector<std::byte> readable = header(type, sector);
    std::uint32_t writable = 1;
    Expected expected;
    switch (type) {
      case VIRTIO_BLK_T_IN:
      case VIRTIO_BLK_T_OUT:
        transfer(type, sector, readable, writable, expected);
        break;
      case VIRTIO_BLK_T_FLUSH:
        break;
      case VIRTIO_BLK_T_GET_ID: {
        writable = 1U + input_.byte() % 32U;
        expected.status = writable < 21U ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK;
        break;
      }
      case VIRTIO_BLK_T_DISCARD:
      case VIRTIO_BLK_T_WRITE_ZEROES:
        segments(type, readable, expected);
        break;
      default:
        expected.status = VIRTIO_BLK_S_UNSUPP;
    }
    submit(readable, writable);
    expected_.push_back(std::move(expected));
  }

  void transfer(std::uint32_t type, std::uint64_t sector, std::vector<std::byte>& readable,
                std::uint32_t& writable, Expected& expected) {
    std::uint32_t bytes = input_.byte() % 16U * 512U;
    if (input_.rarely(64)) {
      bytes += 1U + input_.byte() % 511U;
    }
    const bool is_read = type == VIRTIO_BLK_T_IN;
    const bool fits = bytes % 512 == 0 && bytes / 512 <= kSectors && sector <= kSectors - bytes / 512;
    expected.status = fits && (is_read || !config_.read_only) ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR;
    const auto start = disk_.begin() + static_cast<std::ptrdiff_t>(fits ? sector * 512 : 0);
    if (is_read) {
      writable += bytes;
      expected.data = fits ? std::vector(start, start + bytes) : filled(bytes, 0);
      return;
    }
    const auto data = filled(bytes, input_.byte());
    readable.insert(readable.end(), data.begin(), data.end());
    if (expected.status == VIRTIO_BLK_S_OK) {
      std::ranges::copy(data, start);
    }
  }

  void segments(std::uint32_t type, std::vector<std::byte>& readable, Expected& expected) {
    const bool is_discard = type == VIRTIO_BLK_T_DISCARD;
    const std::uint64_t feature =
        is_discard ? BlockDevice::kFeatureDiscard : BlockDevice::kFeatureWriteZeroes;
    const unsigned count = input_.byte() % 18U;
    const unsigned most =
        is_discard ? BlockDevice::kMaxDiscardSegments : BlockDevice::kMaxWriteZeroesSegments;
    bool in_range = count >= 1 && count <= most;
    bool flags_known = true;
    std::vector<std::pair<std::uint64_t, std::uint32_t>> ranges;
    for (unsigned index = 0; index < count; ++index) {
      const std::uint64_t sector = input_.byte() % (kSectors + 2);
      const std::uint32_t sectors = input_.byte() % 32U;
      const std::uint32_t flags = input_.rarely(4) ? input_.byte() % 4U : 0;
      const auto bytes = segment(sector, sectors, flags);
      readable.insert(readable.end(), bytes.begin(), bytes.end());
      flags_known = flags_known && flags <= (is_discard ? 0U : 1U);
      in_range = in_range && sectors <= kSectors && sector <= kSectors - sectors;
      ranges.emplace_back(sector, sectors);
    }
    // NOLINTBEGIN(bugprone-branch-clone): the first of the rules that fits decides
    if (config_.read_only) {
      expected.status = VIRTIO_BLK_S_IOERR;
    } else if ((features_ & feature) == 0) {
      expected.status = VIRTIO_BLK_S_UNSUPP;
    } else if (count == 0 || count > most) {
      expected.status = VIRTIO_BLK_S_IOERR;
    } else if (!flags_known) {
      expected.status = VIRTIO_BLK_S_UNSUPP;
    } else if (!in_range) {
      expected.status = VIRTIO_BLK_S_IOERR;
    } else {
      for (const auto& [sector, sectors] : ranges) {
        zero(sector * 512, std::uint64_t{sectors} * 512, is_discard);
      }
    }
    // NOLINTEND(bugprone-branch-clone)
  }

  // A discard is told apart by what this device makes of it: zeroes; in an overlay of whole clusters only.
  void zero(std::uint64_t from, std::uint64_t bytes, bool is_discard) {
    std::uint64_t end = from + bytes;
    if (is_discard && config_.overlay) {
      from = (from + 4095) / 4096 * 4096;
      end = end / 4096 * 4096;
    }
    if (from < end) {
      std::fill(disk_.begin() + static_cast<std::ptrdiff_t>(from),
                disk_.begin() + static_cast<std::ptrdiff_t>(end), std::byte{0});
    }
  }

  void submit(const std::vector<std::byte>& readable, std::uint32_t writable) {
    auto chain = ring_->chain();
    std::span<const std::byte> left = readable;
    for (unsigned cuts = input_.byte() % 4U; cuts != 0 && left.size() > 1; --cuts) {
      const std::size_t here = 1 + input_.byte() % (left.size() - 1);
      chain.readable(left.first(here));
      left = left.subspan(here);
    }
    chain.readable(left);
    for (unsigned cuts = input_.byte() % 4U; cuts != 0 && writable > 1; --cuts) {
      const std::uint32_t here = 1 + static_cast<std::uint32_t>(input_.number(2)) % (writable - 1);
      chain.writable(here);
      writable -= here;
    }
    chain.writable(writable);
    if (input_.rarely(32)) {
      lie();
      switch (input_.byte() % 4) {
        case 0:
          chain.with_flags(input_.byte() % 16);
          break;
        case 1:
          chain.with_next(input_.byte());
          break;
        case 2:
          chain.with_length(static_cast<std::uint32_t>(input_.number(4)));
          break;
        default:
          chain.with_address(input_.number(input_.byte() % 9));
      }
    }
    if ((features_ & kFeatureIndirectDesc) != 0 && input_.byte() % 2 == 0) {
      chain.indirect(input_.byte() % 2);
      if (input_.rarely(64)) {
        lie();
        chain.with_table_length(input_.byte());
      }
    }
    chain.submit();
  }

  void run() {
    for (int round = 0; registrar_.report_readable(0) != 0; ++round) {
      if (round == 10'000) {
        found("the device does not come to rest");
      }
    }
  }

  void settle() {
    if (ring_->should_notify()) {
      driver_->notify(0);
    }
    run();
    if (driver_->needs_reset()) {
      if (!lied_to_ring_) {
        found("the device needs a reset for nothing");
      }
      restart();
      return;
    }
    for (const Completion& completion : ring_->collect_all()) {
      if (honest_) {
        compare(completion);
      }
    }
    if (honest_ && ring_->outstanding() != 0) {
      found("a request is not answered");
    }
    ring_->check_driver_areas();
    if (!lied_to_ring_ && !ring_->violations().empty()) {
      found(ring_->violations().front());
    }
  }

  void compare(const Completion& completion) {
    // A synchronous drive answers in order.
    const Expected expected = std::move(expected_.front());
    expected_.pop_front();
    if (completion.length != completion.writable.size()) {
      found("an answer's length is not that of its buffers");
    }
    const auto status = static_cast<std::uint8_t>(completion.writable.back());
    if (status != expected.status) {
      found("status " + std::to_string(status) + " instead of " + std::to_string(expected.status));
    }
    if (expected.data && !std::equal(expected.data->begin(), expected.data->end(),
                                     completion.writable.begin(), completion.writable.end() - 1)) {
      found("a read gave other bytes than were written");
    }
  }

  FuzzInput& input_;
  GuestMemory memory_;
  GuestDriverMemory driver_memory_;
  ManualRegistrar registrar_;
  CountedLine line_;
  BlockDeviceConfig config_;
  std::uint64_t wanted_ = 0;
  std::uint64_t features_ = 0;
  std::unique_ptr<BlockDevice> device_;
  std::unique_ptr<MmioTransport> transport_;
  std::unique_ptr<BusWindow> window_;
  std::unique_ptr<MmioDriver> driver_;
  std::optional<SplitRing> ring_;
  std::vector<std::byte> disk_;
  std::vector<std::byte> original_;
  std::deque<Expected> expected_;
  bool honest_ = true;         // no lie was ever told: the model holds
  bool lied_to_ring_ = false;  // since the last reset
};

}  // namespace
}  // namespace mayfly::testing

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  mayfly::testing::quiet_log();
  mayfly::testing::FuzzInput input({data, size});
  mayfly::testing::Session(input).play();
  return 0;
}
