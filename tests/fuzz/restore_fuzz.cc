// What a device, its transport and its queues are restored from, when it is not what was saved: a snapshot's
// file may come from anywhere. A block or a network device is set up, worked with and saved; then fields of
// the state, and words of guest memory, become something else. Each byte of the input is a decision.
//
// Held: nothing aborts; a state that is refused has changed nothing; one that is accepted makes a device that
// goes on, and whose own state is accepted in turn; and whatever was, a reset makes a device that works.
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "devices/virtio/block/block_device.h"
#include "devices/virtio/net/net_device.h"
#include "devices/virtio/transport/mmio_transport.h"
#include "memory/guest_memory.h"
#include "quiet_log.h"
#include "support/fake_event.h"
#include "support/fuzz_input.h"
#include "support/memory_net_backend.h"
#include "support/mmio_window.h"
#include "support/virtio_driver/mmio_driver.h"
#include "support/virtio_driver/split_ring.h"

namespace mayfly::testing {
namespace {

constexpr std::uint64_t kMemory = 1U << 20;
constexpr std::uint64_t kRings = 0x10000;
constexpr std::uint64_t kRingRoom = 0x2000;
constexpr std::uint64_t kArena = 0x40000;
constexpr std::uint64_t kArenaRoom = 0x10000;
constexpr std::uint16_t kQueueSize = 16;
constexpr std::uint64_t kSectors = 16;
static_assert(kArena + 8 * kArenaRoom <= kMemory, "there is room for eight queues' buffers");

std::uint64_t g_now = 0;
constexpr Clock kFuzzClock{[] { return g_now; }, [] { return g_now; }};

const std::string& image_path() {
  static const std::string path = [] {
    const int fd = ::memfd_create("image", MFD_CLOEXEC);
    hold(fd >= 0 && ::ftruncate(fd, kSectors * 512) == 0, "there is an image");
    return "/proc/self/fd/" + std::to_string(fd);
  }();
  return path;
}

// The two kinds of device: what a session needs to know of one.
struct Block {
  using Device = BlockDevice;
  using State = BlockDeviceState;
  explicit Block(FuzzInput& input) {
    const unsigned shape = input.byte();
    config.id = "fuzz";
    config.path = image_path();
    config.lock = false;
    config.read_only = (shape & 1) != 0;
    config.discard = (shape & 2) != 0;
    config.cache_type = (shape & 4) != 0 ? BlockCacheType::kWriteback : BlockCacheType::kUnsafe;
    config.queue_count = (shape & 8) != 0 ? 3 : 1;
    if ((shape & 16) != 0) {
      config.rate_limiter.ops = TokenBucketConfig{.size = 5, .refill_time_ms = 10};
    }
  }
  std::unique_ptr<Device> make(EventRegistrar& registrar) const {
    auto parts = BlockDevice::open(config);
    hold(parts.has_value(), "the image can be opened");
    BlockDevice::Parts timed{
        .image = std::move(parts->image), .engines = std::move(parts->engines), .clock = kFuzzClock};
    return std::move(*BlockDevice::create(config, registrar, std::move(timed)));
  }
  static State save(Device& device) { return device.state(); }
  static void spoil(State& state, FuzzInput& input, const std::function<void(RateLimiterState&)>& limiter) {
    if (input.byte() % 2 == 0) {
      state.writeback = !state.writeback;
    } else {
      limiter(state.rate_limiter);
    }
  }

  BlockDeviceConfig config;
};

struct Net {
  using Device = NetDevice;
  using State = NetDeviceState;
  explicit Net(FuzzInput& input) {
    const unsigned shape = input.byte();
    pairs = (shape & 1) != 0 ? 3 : 1;
    if ((shape & 2) != 0) {
      offloads = {.checksum = true, .tso4 = true, .tso6 = true, .ufo = true};
    }
    settings.id = "fuzz";
    settings.clock = &kFuzzClock;
    if ((shape & 4) != 0) {
      settings.mtu = 1000;
    }
    if ((shape & 8) != 0) {
      settings.tx_rate_limiter.bandwidth = TokenBucketConfig{.size = 3000, .refill_time_ms = 10};
    }
  }
  std::unique_ptr<Device> make(EventRegistrar& registrar) const {
    auto backend = std::make_unique<MemoryNetBackend>(pairs, offloads);
    for (std::size_t pair = 0; pair < pairs; ++pair) {
      backend->port(pair).to_driver.resize(3, {.header = {}, .bytes = std::vector<std::byte>(100)});
    }
    return std::move(*NetDevice::create(settings, std::move(backend), registrar));
  }
  static State save(Device& device) { return device.save(); }
  static void spoil(State& state, FuzzInput& input, const std::function<void(RateLimiterState&)>& limiter) {
    switch (input.byte() % 6) {
      case 0:
        state.mac = input.rarely(2) ? *MacAddress::parse("02:00:00:00:00:01") : MacAddress{};
        break;
      case 1:
        state.live = !state.live;
        break;
      case 2:
        state.link_up = !state.link_up;
        break;
      case 3:
        state.pairs_in_use = input.number(input.byte() % 9);
        break;
      case 4:
        limiter(state.rx_rate_limiter);
        break;
      default:
        limiter(state.tx_rate_limiter);
        break;
    }
  }

  std::size_t pairs = 1;
  NetOffloads offloads{};
  NetDeviceSettings settings;
};

template <typename Kind>
class Session {
 public:
  using State = typename Kind::State;

  explicit Session(FuzzInput& input)
      : input_(input),
        kind_(input),
        memory_(std::move(*GuestMemory::create(std::array{*GuestRange::make(GuestAddress(0), kMemory)},
                                               Backing::kAnonymous))),
        driver_memory_(memory_) {}

  void play() {
    g_now = 1'000'000'000;
    seat_.emplace(kind_, memory_, line_, registrar_);
    set_up(~input_.number(5), input_.byte());
    work();
    auto [state, registers] = save();
    for (unsigned changes = input_.byte() % 8U; changes != 0; --changes) {
      spoil(state, registers);
    }
    if (restore(state, registers)) {
      work();
      for (int again = 0; again < 2; ++again) {
        const auto [own, own_registers] = save();
        hold(restore(own, own_registers), "what a device says itself is accepted");
      }
      work();
    }
    seat_->driver.reset();
    set_up(~std::uint64_t{0}, 0xff);
    hold(!seat_->driver.needs_reset(), "a reset makes a device that works");
  }

 private:
  // A fresh device, which nobody has spoken to, and its driver.
  struct Seat {
    Seat(const Kind& kind, GuestMemory& memory, InterruptLine& line, EventRegistrar& registrar)
        : device(kind.make(registrar)),
          transport(std::move(*MmioTransport::create(*device, memory, line, registrar))),
          window(*transport),
          driver(window) {}
    std::unique_ptr<typename Kind::Device> device;
    std::unique_ptr<MmioTransport> transport;
    BusWindow window;
    MmioDriver driver;
  };

  // As a driver does, as far as `steps` says.
  void set_up(std::uint64_t wanted, unsigned steps) {
    rings_.clear();
    const auto agreed = seat_->driver.negotiate(wanted | kFeatureVersion1);
    hold(agreed.has_value(), "what is offered can be agreed on");
    if ((steps & 1) == 0) {
      return;
    }
    for (std::uint16_t queue = 0; seat_->driver.max_queue_size(queue) != 0; ++queue) {
      const auto layout = RingLayout::at(kRings + queue * kRingRoom, kQueueSize);
      rings_.push_back(std::make_unique<SplitRing>(
          driver_memory_, layout, BufferArena(kArena + queue * kArenaRoom, kArenaRoom),
          RingFeatures{.event_idx = (*agreed & kFeatureEventIndex) != 0,
                       .in_order = (*agreed & kFeatureInOrder) != 0}));
      hold(seat_->driver.set_up_queue(queue, layout), "a queue can be set up");
    }
    if ((steps & 2) != 0) {
      seat_->driver.driver_ok();
    }
  }

  void process() {
    const MutexLock lock(seat_->device->mutex());
    seat_->device->process();
  }

  // What a guest does, and what a host does to it.
  void work() {
    for (unsigned steps = input_.byte() % 16U; steps != 0; --steps) {
      switch (input_.byte() % 8) {
        case 0:
        case 1:
          offer();
          break;
        case 2:
          scribble();
          break;
        case 3:
          seat_->window.write(input_.byte() * 4U, 4, input_.number(4));
          break;
        case 4:
          seat_->window.read(input_.number(2) % MmioTransport::kWindow, 1U << (input_.byte() % 4U));
          break;
        case 5:
          g_now += input_.number(4);
          registrar_.advance(std::chrono::milliseconds(input_.byte()));
          break;
        default:
          if (seat_->driver.status() == kLive) {
            process();
          }
          break;
      }
    }
    while (registrar_.report_readable(0) != 0) {
    }
  }

  // A chain of any kind, as long as there is room for one.
  void offer() {
    if (rings_.empty()) {
      return;
    }
    SplitRing& ring = *rings_[input_.byte() % rings_.size()];
    if (ring.free_descriptors() < 2) {
      return;
    }
    try {
      std::vector<std::byte> content(input_.byte() % 64U);
      for (std::byte& each : content) {
        each = std::byte{input_.byte()};
      }
      auto chain = ring.chain();
      if (!content.empty()) {
        chain.readable(content);
      }
      chain.writable(1 + input_.word() % 2048U).submit();
    } catch (const std::bad_alloc&) {
      ring.collect_all();  // its arena is full; what is back makes room
    } catch (const std::length_error&) {
      ring.collect_all();
    }
  }

  // Anything at a place of a ring's.
  void scribble() {
    const std::uint64_t address = kRings + input_.number(2) % (8 * kRingRoom);
    std::array<std::byte, 2> word{std::byte{input_.byte()}, std::byte{input_.byte()}};
    hold(memory_.write(GuestAddress(address), word).has_value(), "rings lie in memory");
  }

  std::pair<State, MmioTransportState> save() {
    State state = [this] {
      const MutexLock lock(seat_->device->mutex());
      return Kind::save(*seat_->device);
    }();
    return {std::move(state), seat_->transport->state()};
  }

  // False where it was refused; then all is as it was before.
  bool restore(const State& state, const MmioTransportState& registers) {
    seat_.reset();
    seat_.emplace(kind_, memory_, line_, registrar_);
    const MmioTransportState fresh = seat_->transport->state();
    {
      const MutexLock lock(seat_->device->mutex());
      if (!seat_->device->restore(state)) {
        return false;
      }
    }
    if (!seat_->transport->restore(registers, state.queues)) {
      hold(seat_->transport->state() == fresh, "a transport that was refused a state is fresh");
      return false;
    }
    return true;
  }

  void spoil(State& state, MmioTransportState& registers) {
    switch (input_.byte() % 8) {
      case 0:
        Kind::spoil(state, input_, [this](RateLimiterState& limiter) { spoil(limiter); });
        break;
      case 1:
        state.features ^= bits();
        break;
      case 2:
        registers.driver_features ^= bits();
        break;
      case 3:
        spoil(registers);
        break;
      case 4:
        if (!registers.queues.empty()) {
          spoil(registers.queues[input_.byte() % registers.queues.size()]);
        }
        break;
      case 5:
        if (!state.queues.empty()) {
          auto& queue = state.queues[input_.byte() % state.queues.size()];
          queue = input_.byte() % 4 == 0 ? std::nullopt
                                         : std::optional(VirtQueueState{.next_available = input_.word(),
                                                                        .next_used = input_.word()});
        }
        break;
      case 6:
        if (input_.byte() % 2 == 0) {
          state.queues.resize(input_.byte() % 20U);
        } else {
          registers.queues.resize(input_.byte() % 20U);
        }
        break;
      default:
        scribble();
        break;
    }
  }

  void spoil(MmioTransportState& registers) {
    switch (input_.byte() % 8) {
      case 0:
        registers.device_features_select = static_cast<std::uint32_t>(input_.number(4));
        break;
      case 1:
        registers.driver_features_select = static_cast<std::uint32_t>(input_.number(4));
        break;
      case 2:
        registers.unknown_features = !registers.unknown_features;
        break;
      case 3:
        registers.queue_select = static_cast<std::uint32_t>(input_.number(4));
        break;
      case 4:
        registers.interrupt_status = static_cast<std::uint32_t>(input_.number(input_.byte() % 5U));
        break;
      case 5:
        registers.generation = static_cast<std::uint32_t>(input_.number(4));
        break;
      case 6:
        registers.status = input_.byte();
        break;
      default:
        registers.status = static_cast<std::uint32_t>(input_.number(4));
        break;
    }
  }

  void spoil(MmioQueueRegisters& queue) {
    switch (input_.byte() % 5) {
      case 0:
        queue.size = input_.byte() % 2 == 0 ? 1U << (input_.byte() % 20U)
                                            : static_cast<std::uint32_t>(input_.number(4));
        break;
      case 1:
        queue.ready = !queue.ready;
        break;
      case 2:
        queue.descriptor_table = address();
        break;
      case 3:
        queue.available_ring = address();
        break;
      default:
        queue.used_ring = address();
        break;
    }
  }

  void spoil(RateLimiterState& limiter) {
    auto& bucket = input_.byte() % 2 == 0 ? limiter.bandwidth : limiter.ops;
    if (!bucket || input_.byte() % 8 == 0) {
      bucket = input_.byte() % 4 == 0 ? std::nullopt : std::optional(TokenBucketState{});
    }
    if (bucket) {
      const std::array fields = {&bucket->config.size,
                                 &bucket->config.refill_time_ms,
                                 &bucket->config.one_time_burst,
                                 &bucket->tokens,
                                 &bucket->fraction,
                                 &bucket->debt,
                                 &bucket->burst};
      *fields.at(input_.byte() % fields.size()) = input_.number(input_.byte() % 9U);
    }
  }

  // One, or many.
  std::uint64_t bits() {
    return input_.byte() % 4 == 0 ? input_.number(8) : std::uint64_t{1} << (input_.byte() % 64U);
  }
  // In the rings, near the memory's end, or anywhere.
  std::uint64_t address() {
    switch (input_.byte() % 3) {
      case 0:
        return kRings + input_.number(2);
      case 1:
        return kMemory - input_.byte();
      default:
        return input_.number(8);
    }
  }

  static constexpr std::uint32_t kLive = MmioTransport::kAcknowledge | MmioTransport::kDriver |
                                         MmioTransport::kFeaturesOk | MmioTransport::kDriverOk;

  FuzzInput& input_;
  const Kind kind_;
  GuestMemory memory_;
  GuestDriverMemory driver_memory_;
  CountedLine line_;
  ManualRegistrar registrar_;
  std::optional<Seat> seat_;
  std::vector<std::unique_ptr<SplitRing>> rings_;
};

}  // namespace
}  // namespace mayfly::testing

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace mayfly;           // NOLINT(google-build-using-namespace): the fuzzer's function is no one's
  using namespace mayfly::testing;  // NOLINT(google-build-using-namespace): as above
  quiet_log();
  FuzzInput input({data, size});
  if (input.byte() % 2 == 0) {
    Session<Block>(input).play();
  } else {
    Session<Net>(input).play();
  }
  return 0;
}
