// The network device of virtio 1.2, section 5.1, in front of any NetBackend.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/metrics.h"
#include "base/result.h"
#include "devices/virtio/net/mac_address.h"
#include "devices/virtio/net/net_backend.h"
#include "devices/virtio/net/net_header.h"
#include "devices/virtio/transport/virtio_device.h"
#include "event/event_loop.h"
#include "rate_limiter/rate_limiter.h"

namespace mayfly {

// What a driver is told of its interface.
struct NetDeviceSettings {
  std::string id{};  // is_resource_id()
  MacAddress mac{};
  std::optional<std::uint16_t> mtu{};  // 68 to 65535 (5.1.4.1); absent: not offered
  // Over all queue pairs together. A frame's bytes are those without the header. A frame of the guest's that
  // the host segments counts as what it becomes: see WireCost.
  RateLimiterConfig rx_rate_limiter{};  // towards the guest
  RateLimiterConfig tx_rate_limiter{};
  const Clock* clock = &kSystemClock;  // borrowed: the limiters' time
};

// All that is to be saved of a device, beside what its transport and its configuration say.
struct NetDeviceState {
  MacAddress mac;
  std::uint64_t features = 0;  // negotiated
  bool live = false;           // between DRIVER_OK and a reset
  bool link_up = true;
  std::size_t pairs_in_use = 1;
  std::vector<std::optional<VirtQueueState>> queues{};  // as many as the device has
  RateLimiterState rx_rate_limiter{};
  RateLimiterState tx_rate_limiter{};
};

// Frames go straight between the guest's buffers and the back end. Headers do not: each is copied once, and
// the copy is checked and used.
//
// Made and destroyed on the registrar's thread, which is also where the back end is used. Everything else as
// for a VirtioDevice.
class NetDevice final : public VirtioDevice {
 public:
  static constexpr std::uint16_t kQueueSize = 256;
  static constexpr std::uint16_t kControlQueueSize = 64;
  // Frames, and bytes of them, after which the driver is shown what was done, and interrupted where it wants.
  static constexpr std::size_t kBatchFrames = 64;
  static constexpr std::size_t kBatchBytes = std::size_t{256} << 10;
  // What frames of the driver may become on the wire before others have their turn: a wake-up sends no
  // further frame then. All pairs in use share it.
  static constexpr std::size_t kSegmentsPerRound = 4096;
  // Changes of the number of pairs in a wake-up: each takes a lock of the host's, which all of its network
  // configuration waits for.
  static constexpr std::size_t kPairChangesPerRound = 1;
  // After one of no more than that, another such is expected.
  static constexpr std::size_t kSmallFrame = 2048;
  // How long a frame may wait for buffers that it still needs before it is lost.
  static constexpr std::chrono::milliseconds kMaxHold{100};

  // `registrar` is borrowed and outlives the device. Errors, naming the interface: those of the registrar and
  // of RateLimiter::create().
  static Result<std::unique_ptr<NetDevice>> create(const NetDeviceSettings& settings,
                                                   std::unique_ptr<NetBackend> backend,
                                                   EventRegistrar& registrar);
  ~NetDevice() override = default;

  std::string_view name() const override { return name_; }
  std::uint32_t type() const override { return 1; }
  std::uint64_t features() const override { return offered_; }
  std::span<const std::uint16_t> queue_limits() const override { return queue_limits_; }
  void read_configuration(std::uint64_t offset, std::span<std::uint8_t> data) override;
  void write_configuration(std::uint64_t offset, std::span<const std::uint8_t> data) override;
  void activate(VirtioActivation activation) override;
  void activation_failed() override;
  void reset() override;
  void stop_queue(std::size_t index) override;
  void process() override;

  // Under the lock, on the monitor thread. Buffers that were taken ahead go back to their queues first, and a
  // frame that waits in them is lost; then all that the device wrote to guest memory is noted there. Of a
  // device that needs a reset no queue is in use.
  NetDeviceState save();
  // For a device that was not activated yet; its queues come with activate(), by MmioTransport::restore().
  // Where its MAC address is another now, the driver is told that the configuration space has changed.
  // Errors, after which nothing has changed: kInvalidArgument for features that it does not offer (of another
  // host's tap, for example), another number of queues or pairs, or a state of a rate limiter's that cannot
  // be.
  Result<void> restore(const NetDeviceState& state);

  // The same. As RateLimiter::update(), for both: on an error neither has changed.
  Result<void> set_rate_limits(const RateLimiterConfig& rx, const RateLimiterConfig& tx);

  const MacAddress& mac() const { return settings_.mac; }
  // VIRTIO_NET_S_LINK_UP. A link whose other end has gone stays down.
  bool link_up() const { return link_up_; }

 private:
  // What a direction of a pair goes on with.
  enum class RxWait : std::uint8_t { kBuffers, kFrames, kTurn, kTokens };
  enum class TxWait : std::uint8_t { kFrames, kRoom, kTokens };
  // Why a run over a queue ended.
  enum class RxEnd : std::uint8_t { kNoFrame, kNoBuffers, kNoTokens, kBatch, kClosed, kFault };
  enum class TxEnd : std::uint8_t { kNoFrame, kNoRoom, kNoTokens, kBatch, kFault };
  // What became of one frame.
  enum class Sent : std::uint8_t { kSent, kLost, kNoRoom, kNoTokens };

  // What a run over a transmit queue may still send.
  struct TxBudget {
    std::size_t frames;
    std::size_t segments;

    bool is_spent() const { return frames == 0 || segments == 0; }
  };

  // A buffer of the driver's that was taken for a frame to come.
  struct Prepared {
    DescriptorChain chain;
    std::uint64_t bytes;
    std::size_t slices;
  };
  // Those of a receive queue, in the order in which they were taken. What is before the two `first` was used.
  struct Ahead {
    std::vector<Prepared> chains;
    std::vector<GuestSlice> slices;  // of all chains
    std::size_t first_chain = 0;
    std::size_t first_slice = 0;
    std::uint64_t bytes = 0;

    bool empty() const { return first_chain == chains.size(); }
    std::span<const GuestSlice> room() const { return std::span(slices).subspan(first_slice); }
    void add(DescriptorChain chain);
    Prepared take_first();
    void clear();
  };
  // A frame that was received and cannot be delivered yet: for want of buffers, of which it fills all there
  // are, with the others of its bytes in Pair::rest; or because the rate limiter has not let it pass.
  struct Held {
    NetHeader header;
    std::size_t bytes;
    std::size_t stored;  // of these in the buffers ahead
    bool paid;           // for the rate limiter
  };
  struct Pair {
    NetPort* port = nullptr;
    std::unique_ptr<Watch> watch;
    bool wants_readable = false;  // as the watch was told last
    bool wants_writable = false;
    std::optional<VirtQueue> rx;
    std::optional<VirtQueue> tx;
    RxWait rx_wait = RxWait::kBuffers;
    TxWait tx_wait = TxWait::kFrames;
    Ahead ahead;
    UntouchedBytes rest;  // NetPort::kRest; untouched, and so free, until there is a need
    std::optional<Held> held;
    std::size_t last_bytes = 0;  // of the frame that was received last
    // When the timers are to look at it, by the device's clock; 0: they are not.
    std::uint64_t rx_due = 0;
    std::uint64_t tx_due = 0;
    std::uint64_t own_due = 0;  // NetPort::own_frame_in()
  };

  NetDevice(const NetDeviceSettings& settings, std::unique_ptr<NetBackend> backend);
  Result<void> prepare(EventRegistrar& registrar);

  // Lock held. All below run on the monitor thread, but for clear().
  std::optional<VirtQueue>* queue(std::size_t index);
  std::size_t control_index() const;
  bool has(std::uint64_t feature) const { return (features_ & feature) != 0; }
  void clear();
  void settle();
  bool in_use(const Pair& pair) const;
  void end_turn(Pair& pair);
  void update_watch(Pair& pair);
  void port_ready(Pair& pair, Readiness readiness);
  std::uint64_t first(std::uint64_t Pair::*due) const;
  void start_timer(EventRegistrar::Timer& timer, std::uint64_t due);
  void start_rx_timer();
  void start_tx_timer();
  bool take_due(std::uint64_t& due) const;
  void rx_due();
  void tx_due();
  void close_link(const char* why);
  void fault(QueueFault fault);
  void publish(VirtQueue& queue);

  RxEnd receive(Pair& pair);
  RxEnd receive_batch(Pair& pair, std::size_t& budget);
  QueueResult<void> take_ahead(Pair& pair);
  std::span<const GuestSlice> likely_room(const Pair& pair) const;
  bool can_take_ahead(const Pair& pair) const;
  bool accept(NetHeader& header, Pair& pair, std::size_t bytes) const;
  void deliver(Pair& pair, NetHeader header, std::size_t bytes);
  bool deliver_held(Pair& pair);
  void drop_held(Pair& pair);
  void put_back_ahead(Pair& pair);

  bool pay(RateLimiter& limiter, std::size_t bytes, std::size_t operations = 1) const;
  void transmit(Pair& pair);
  TxEnd transmit_batch(Pair& pair, TxBudget& budget);
  Sent transmit_one(Pair& pair, const DescriptorChain& chain, std::size_t& bytes, std::size_t& segments);

  void control();
  // Both count down `changes` where the back end is asked for something.
  std::uint8_t run_command(const DescriptorChain& chain, std::size_t& changes);
  bool use_pairs(std::size_t pairs, std::size_t& changes);

  const NetDeviceSettings settings_;
  const std::string name_;
  NetMetrics& metrics_;
  std::unique_ptr<NetBackend> backend_;
  std::vector<std::uint16_t> queue_limits_;
  std::uint64_t offered_;

  // Guarded by the device's lock.
  bool live_ = false;
  bool broken_ = false;   // DEVICE_NEEDS_RESET
  bool settled_ = false;  // the back end knows what was negotiated
  bool link_up_ = true;
  std::uint64_t features_ = 0;
  NetOffloads to_device_;      // what the driver may ask for
  NetOffloads to_driver_;      // what may be asked of it
  std::size_t max_frame_ = 0;  // that it can be given
  std::size_t pairs_in_use_ = 1;
  std::size_t backend_pairs_ = 0;   // as the back end was told last; 0: it may have any
  std::size_t pairs_restored_ = 1;  // in use as soon as the device is activated
  bool mac_is_new_ = false;         // its driver was not told yet
  std::vector<Pair> pairs_;
  std::optional<VirtQueue> control_;
  std::vector<bool> left_out_;  // queues that the driver has set up and its features have no use for
  RateLimiter rx_limiter_;
  RateLimiter tx_limiter_;
  std::unique_ptr<EventRegistrar::Timer> rx_timer_;
  std::unique_ptr<EventRegistrar::Timer> tx_timer_;
};

}  // namespace mayfly
