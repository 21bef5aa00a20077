// A network device under a driver that mostly keeps to the specification and sometimes lies, a host that
// sends what it likes, and resets, stops, saves and time in between. Each byte of the input is a decision.
//
// Held: nothing aborts; what reaches the host is a frame with a header that was negotiated; and a driver that
// told no lie since it last started sees none of a device's misdeeds.
#include <poll.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <span>
#include <vector>

#include "quiet_log.h"
#include "support/fake_event.h"
#include "support/fuzz_input.h"
#include "support/memory_net_backend.h"
#include "support/net_guest.h"

namespace mayfly::testing {
namespace {

std::uint64_t g_now = 0;
constexpr Clock kFuzzClock{[] { return g_now; }, [] { return g_now; }};
constexpr NetOffloads kAll{.checksum = true, .tso4 = true, .tso6 = true, .ufo = true};

class Exerciser : private FuzzInput {
 public:
  explicit Exerciser(std::span<const std::uint8_t> input) : FuzzInput(input) {}

  void run() {
    g_now = 1'000'000'000;
    const unsigned shape = byte();
    auto backend =
        std::make_unique<MemoryNetBackend>((shape & 1) != 0 ? 3 : 1, (shape & 2) != 0 ? NetOffloads{} : kAll);
    backend_ = backend.get();
    NetDeviceSettings settings{.id = "fuzz", .clock = &kFuzzClock};
    if ((shape & 4) != 0) {
      settings.mtu = 1000;
    }
    if ((shape & 8) != 0) {
      settings.rx_rate_limiter.bandwidth = TokenBucketConfig{.size = 3000, .refill_time_ms = 10};
      settings.tx_rate_limiter.ops = TokenBucketConfig{.size = 5, .refill_time_ms = 10};
    }
    guest_ = std::make_unique<NetGuest>(settings, std::move(backend), registrar_);
    start(~std::uint64_t{0}, 64);
    while (!empty()) {
      try {
        step();
      } catch (const std::exception&) {
        // The driver has no more descriptors or memory for buffers, or could not be set up after a lie.
        collect();
      }
      check_host();
    }
    settle();
    collect();
  }

 private:
  std::size_t pair() { return byte() % pairs_; }

  void start(std::uint64_t features, std::uint16_t size) {
    lied_ = false;
    agreed_ = guest_->start(features, size);
    pairs_ = guest_->rings().size() / 2;
    settle();
  }

  void step() {
    switch (byte() % 16) {
      case 0:
      case 1:
        send({}, 14 + word() % 3000);
        break;
      case 2: {
        NetHeader header;
        for (std::byte& part : std::as_writable_bytes(std::span(&header, 1))) {
          part = std::byte{byte()};
        }
        send(header, word() * (byte() % 4 == 0 ? 2U : 1U));
        break;
      }
      case 3:
      case 4:
        add_buffers();
        break;
      case 5:
      case 6:
        arrive();
        break;
      case 7:
      case 8:
        guest_->driver().notify(byte());
        settle();
        collect();
        break;
      case 9:
        registrar_.notify(backend_->port(byte() % backend_->pairs()).fd(),
                          {.readable = true, .writable = true, .hung_up = byte() == 0xff});
        break;
      case 10:
        pass(std::chrono::milliseconds(byte()));
        break;
      case 11:
        command();
        break;
      case 12:
        restart();
        break;
      case 13:
        host();
        break;
      default:
        lie();
        break;
    }
  }

  void send(const NetHeader& header, std::size_t size) {
    std::vector<std::byte> frame(std::min<std::size_t>(size, 70000), std::byte{0x5a});
    const auto all = NetGuest::with_header(header, frame);
    auto chain = guest_->tx(pair()).chain();
    const std::size_t cut = std::min<std::size_t>(byte(), all.size());
    chain.readable(std::span(all).first(cut)).readable(std::span(all).subspan(cut));
    finish(chain);
  }

  void add_buffers() {
    const std::size_t to = pair();
    for (unsigned count = byte() % 16; count != 0; --count) {
      auto chain = guest_->rx(to).chain();
      for (unsigned parts = 1 + byte() % 3; parts != 0; --parts) {
        chain.writable(12 + word() % 2000U);
      }
      finish(chain);
    }
  }

  void finish(SplitRing::Chain& chain) {
    const std::uint8_t how = byte();
    if ((how & 1) != 0) {
      chain.indirect((how >> 1) & 1);
    }
    // Rarely: see lie().
    if (how >= 0xf0) {
      lied_ = true;
      switch (how & 7) {
        case 0:
          chain.with_flags(word());
          break;
        case 1:
          chain.with_next(word());
          break;
        case 2:
          chain.with_length(word() * 0x10001U);
          break;
        case 3:
          chain.with_address(word() * 0x100'0001ULL);
          break;
        case 4:
          chain.writable_at(word() * 0x1000ULL, word());
          break;
        default:
          chain.indirect().with_table_length(word());
          break;
      }
    }
    chain.submit();
  }

  void arrive() {
    NetFrame frame;
    if (byte() % 4 == 0) {
      for (std::byte& part : std::as_writable_bytes(std::span(&frame.header, 1))) {
        part = std::byte{byte()};
      }
    }
    frame.bytes.resize(std::min<std::size_t>(word() * (byte() % 8 == 0 ? 2U : 1U), 70000));
    auto& port = backend_->port(byte() % backend_->pairs());
    if (port.to_driver.size() < 20) {
      port.to_driver.push_back(std::move(frame));
    }
    registrar_.notify_readable(port.fd());
  }

  void command() {
    if ((agreed_ & VIRTIO_NET_F_CTRL_VQ) == 0) {
      return;
    }
    const bool sane = byte() % 4 != 0;
    const std::array<std::byte, 4> bytes = {std::byte{sane ? std::uint8_t{4} : byte()},
                                            std::byte{sane ? std::uint8_t{0} : byte()}, std::byte{byte()},
                                            std::byte{sane ? std::uint8_t{0} : byte()}};
    auto chain = guest_->control().chain();
    chain.readable(std::span(bytes).first(sane ? 4U : byte() % 5U)).writable(1);
    finish(chain);
    guest_->driver().notify(static_cast<std::uint16_t>(guest_->rings().size() - 1));
    settle();
  }

  void restart() {
    switch (byte() % 4) {
      case 0:
        guest_->driver().reset();
        lied_ = true;  // and drives rings that are no queues any more, until it starts again
        break;
      case 1:
        guest_->driver().stop_queue(static_cast<std::uint16_t>(byte() % guest_->rings().size()));
        lied_ = true;
        break;
      case 2: {
        const MutexLock lock(guest_->device().mutex());
        guest_->device().save();
        break;
      }
      default: {
        std::uint64_t features = kFeatureVersion1;
        for (unsigned shift = 0; shift < 40; shift += 8) {
          features |= std::uint64_t{byte()} << shift;
        }
        start(features, static_cast<std::uint16_t>(1U << (byte() % 9)));
        break;
      }
    }
  }

  void host() {
    auto& port = backend_->port(byte() % backend_->pairs());
    switch (byte() % 8) {
      case 0:
        port.next_send = NetPort::Status::kFailed;
        break;
      case 1:
        port.next_send = byte() == 0xff ? NetPort::Status::kClosed : NetPort::Status::kWouldBlock;
        break;
      case 2:
        port.room = byte() % 8;
        break;
      case 3:
        port.closed = byte() == 0xff;
        break;
      case 4: {
        const MutexLock lock(guest_->device().mutex());
        (void)guest_->device().set_rate_limits(
            {.bandwidth = TokenBucketConfig{.size = word(), .refill_time_ms = byte()}, .ops = std::nullopt},
            {.bandwidth = std::nullopt, .ops = TokenBucketConfig{.size = byte(), .refill_time_ms = byte()}});
        break;
      }
      default:
        port.next_send = NetPort::Status::kDone;
        port.room = SIZE_MAX;
        registrar_.notify_writable(port.fd());
        break;
    }
  }

  void lie() {
    auto& ring = *guest_->rings().at(byte() % guest_->rings().size());
    switch (byte()) {
      case 0:
        lied_ = true;
        ring.write_available_index(word());
        break;
      case 1:
        lied_ = true;
        ring.write_available_entry(word(), word());
        break;
      case 2:
        lied_ = true;
        ring.write_descriptor(
            static_cast<std::uint16_t>(byte() % ring.layout().size),
            {.address = word() * 0x1001ULL, .length = word(), .flags = byte(), .next = byte()});
        break;
      case 3:
        lied_ = true;
        guest_->driver().write_register(byte() * 4U, word());
        break;
      case 4: {
        std::array<std::uint8_t, 8> data{};
        guest_->transport().bus_read(0x100U + byte(), std::span(data).first(1 + byte() % 8));
        break;
      }
      case 5:
        ring.set_used_event(word());
        break;
      case 6:
        ring.disable_interrupts();
        break;
      default:
        ring.enable_interrupts();
        break;
    }
  }

  void pass(std::chrono::nanoseconds time) {
    g_now += static_cast<std::uint64_t>(time.count());
    registrar_.advance(time);
    settle();
  }

  // Until the device rings its own bell no more.
  void settle() {
    for (int round = 0; round < 10'000; ++round) {
      pollfd bell{.fd = guest_->transport().doorbell().get(), .events = POLLIN, .revents = 0};
      if (::poll(&bell, 1, 0) != 1) {
        return;
      }
      registrar_.notify_readable(bell.fd);
    }
    broken("the device comes to rest");
  }

  void collect() {
    for (auto& ring : guest_->rings()) {
      try {
        ring->collect_all();
        ring->should_notify();
      } catch (const std::exception&) {
        continue;  // a lie that hit the driver itself
      }
      if (!lied_ && !ring->violations().empty()) {
        broken(ring->violations().front().c_str());
      }
    }
  }

  void check_host() {
    for (std::size_t index = 0; index < backend_->pairs(); ++index) {
      auto& sent = backend_->port(index).from_driver;
      for (const NetFrame& frame : sent) {
        if (frame.bytes.size() < kEthernetHeader || frame.bytes.size() > kMaxFrame ||
            !is_valid(frame.header, kAll, frame.bytes.size()) || frame.header.hdr_len > frame.bytes.size() ||
            (frame.header.flags & ~VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0) {
          broken("what reaches the host is a frame");
        }
      }
      sent.clear();
    }
  }

  ManualRegistrar registrar_;
  MemoryNetBackend* backend_ = nullptr;
  std::unique_ptr<NetGuest> guest_;
  std::uint64_t agreed_ = 0;
  std::size_t pairs_ = 1;
  bool lied_ = false;
};

}  // namespace
}  // namespace mayfly::testing

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  mayfly::testing::quiet_log();
  mayfly::testing::Exerciser({data, size}).run();
  return 0;
}
