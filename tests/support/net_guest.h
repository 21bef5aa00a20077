// A guest with one network device: RAM, the transport, and the driver fake in front of it.
#pragma once

#include <poll.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "devices/virtio/net/net_device.h"
#include "devices/virtio/transport/mmio_transport.h"
#include "memory/guest_memory.h"
#include "support/fake_event.h"
#include "support/mmio_window.h"
#include "support/virtio_driver/mmio_driver.h"

namespace mayfly::testing {

// All on one thread. Throws (std::bad_optional_access and its kin) where something does not come about that
// every test needs.
class NetGuest {
 public:
  static constexpr std::uint64_t kRam = 16 << 20;
  static constexpr std::uint64_t kPlainDriver = kFeatureVersion1 | VIRTIO_NET_F_MAC | VIRTIO_NET_F_STATUS;

  NetGuest(const NetDeviceSettings& settings, std::unique_ptr<NetBackend> backend, EventRegistrar& registrar)
      : memory_(GuestMemory::create(std::vector{GuestRange::make(GuestAddress(0), kRam).value()},
                                    Backing::kAnonymous)
                    .value()),
        driver_memory_(memory_),
        seat_(std::make_unique<Seat>(settings, std::move(backend), memory_, line_, registrar)) {}

  GuestMemory& memory() { return memory_; }
  NetDevice& device() { return *seat_->device; }
  MmioTransport& transport() { return *seat_->transport; }
  MmioDriver& driver() { return seat_->driver; }
  CountedLine& line() { return line_; }

  // Resets, negotiates and sets up all queues that there are then, with `queue_size` entries each. What was
  // agreed on.
  std::uint64_t start(std::uint64_t wanted, std::uint16_t queue_size = 256) {
    rings_.clear();
    const std::uint64_t agreed = driver().negotiate(wanted).value();
    const std::size_t pairs = (agreed & VIRTIO_NET_F_MQ) != 0 ? driver().config_u16(8) : 1;
    const std::size_t count = 2 * pairs + ((agreed & VIRTIO_NET_F_CTRL_VQ) != 0 ? 1 : 0);
    std::uint64_t base = 0x10000;
    for (std::size_t index = 0; index < count; ++index) {
      const bool is_control = index == 2 * pairs;
      const auto layout = RingLayout::at(base, is_control ? 16 : queue_size);
      base += 0x10000;
      rings_.push_back(std::make_unique<SplitRing>(
          driver_memory_, layout, BufferArena(0x200000 + 0xc0000 * index, 0xc0000),
          RingFeatures{.event_idx = (agreed & kFeatureEventIndex) != 0,
                       .in_order = (agreed & kFeatureInOrder) != 0}));
      if (!driver().set_up_queue(static_cast<std::uint16_t>(index), layout)) {
        throw std::runtime_error("a queue cannot be set up");
      }
    }
    driver().driver_ok();
    if (process_at_start) {
      process();
    }
    return agreed;
  }

  // False where an event loop on another thread answers the doorbell.
  bool process_at_start = true;

  SplitRing& rx(std::size_t pair = 0) { return *rings_.at(2 * pair); }
  SplitRing& tx(std::size_t pair = 0) { return *rings_.at(2 * pair + 1); }
  SplitRing& control() { return *rings_.back(); }
  std::vector<std::unique_ptr<SplitRing>>& rings() { return rings_; }

  // As the doorbell does on the monitor thread.
  void process() {
    const MutexLock lock(device().mutex());
    device().process();
  }

  // Lets the monitor's thread run until nothing rings any more.
  void run_until_quiet(ManualRegistrar& registrar) {
    for (int round = 0; round < 1000; ++round) {
      pollfd bell{.fd = transport().doorbell().get(), .events = POLLIN, .revents = 0};
      if (::poll(&bell, 1, 0) != 1) {
        return;
      }
      registrar.notify_readable(bell.fd);
    }
    throw std::runtime_error("the device never comes to rest");
  }

  // Saves the device, and goes on with one that is restored from that, over the same memory; the driver
  // notices nothing.
  void move_to(const NetDeviceSettings& settings, std::unique_ptr<NetBackend> backend,
               EventRegistrar& registrar) {
    NetDeviceState state;
    {
      const MutexLock lock(device().mutex());
      state = device().save();
    }
    const MmioTransportState registers = transport().state();
    seat_.reset();
    seat_ = std::make_unique<Seat>(settings, std::move(backend), memory_, line_, registrar);
    {
      const MutexLock lock(device().mutex());
      demand(device().restore(state));
    }
    demand(transport().restore(registers, state.queues));
  }

  void add_rx(std::size_t buffers, std::uint32_t bytes, std::size_t pair = 0) {
    for (std::size_t index = 0; index < buffers; ++index) {
      rx(pair).chain().writable(bytes).submit();
    }
  }

  static std::vector<std::byte> with_header(const NetHeader& header, std::span<const std::byte> frame) {
    std::vector<std::byte> bytes(sizeof(header) + frame.size());
    std::memcpy(bytes.data(), &header, sizeof(header));
    std::ranges::copy(frame, bytes.begin() + sizeof(header));
    return bytes;
  }

  // One chain, the header in a descriptor of its own.
  void send(const NetHeader& header, std::span<const std::byte> frame, std::size_t pair = 0) {
    tx(pair).chain().readable(std::as_bytes(std::span(&header, 1))).readable(frame).submit();
  }

  // The next frame that came, put together from its buffers as 5.1.6.4 has it, or nothing.
  struct Frame {
    NetHeader header;
    std::vector<std::byte> bytes;
  };
  std::optional<Frame> next_frame(std::size_t pair = 0) {
    auto first = rx(pair).collect();
    if (!first) {
      return std::nullopt;
    }
    Frame frame;
    std::span<const std::byte> start = first->written();
    if (start.size() < sizeof(frame.header)) {
      throw std::runtime_error("a frame without a header");
    }
    std::memcpy(&frame.header, start.data(), sizeof(frame.header));
    frame.bytes.assign(start.begin() + sizeof(frame.header), start.end());
    for (unsigned more = 1; more < frame.header.num_buffers; ++more) {
      const auto next = rx(pair).collect().value();
      const auto part = next.written();
      frame.bytes.insert(frame.bytes.end(), part.begin(), part.end());
    }
    return frame;
  }

 private:
  static void demand(const Result<void>& done) {
    if (!done) {
      throw std::runtime_error(done.error().message());
    }
  }

  // The device and what stands before it; made anew by move_to().
  struct Seat {
    Seat(const NetDeviceSettings& settings, std::unique_ptr<NetBackend> backend, GuestMemory& memory,
         InterruptLine& line, EventRegistrar& registrar)
        : device(NetDevice::create(settings, std::move(backend), registrar).value()),
          transport(MmioTransport::create(*device, memory, line, registrar).value()),
          window(*transport),
          driver(window) {}

    std::unique_ptr<NetDevice> device;
    std::unique_ptr<MmioTransport> transport;
    BusWindow window;
    MmioDriver driver;
  };

  GuestMemory memory_;
  GuestDriverMemory driver_memory_;
  CountedLine line_;
  std::unique_ptr<Seat> seat_;
  std::vector<std::unique_ptr<SplitRing>> rings_;
};

}  // namespace mayfly::testing
