#include "devices/virtio/net/net_device.h"

#include <limits.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "base/text.h"

namespace mayfly {
namespace {

// struct virtio_net_config (5.1.4), as far as this device has it.
struct Configuration {
  std::array<std::uint8_t, 6> mac;
  std::uint16_t status;
  std::uint16_t max_virtqueue_pairs;
  std::uint16_t mtu;
};
static_assert(sizeof(Configuration) == 12);

constexpr std::uint16_t VIRTIO_NET_S_LINK_UP = 1;

// 5.1.6.5
constexpr std::uint8_t VIRTIO_NET_OK = 0;
constexpr std::uint8_t VIRTIO_NET_ERR = 1;
constexpr std::uint8_t VIRTIO_NET_CTRL_MQ = 4;
constexpr std::uint8_t VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET = 0;

struct ControlHeader {
  std::uint8_t command_class;
  std::uint8_t command;
};

// The largest frame that needs no segmentation where no MTU was negotiated (5.1.6.3).
constexpr std::size_t kPlainFrame = 1514;

// A system call takes so many pieces: these, a header and Pair::rest.
constexpr std::size_t kMaxSlices = IOV_MAX - 2;

std::uint64_t offer(const NetDeviceSettings& settings, const NetBackend& backend) {
  std::uint64_t features = kFeatureIndirectDesc | kFeatureEventIndex | kFeatureVersion1 | VIRTIO_NET_F_MAC |
                           VIRTIO_NET_F_STATUS | VIRTIO_NET_F_MRG_RXBUF;
  // Every queue is served front to back: a frame that cannot go on yet stops its queue.
  features |= kFeatureInOrder;
  if (settings.mtu) {
    features |= VIRTIO_NET_F_MTU;
  }
  const NetOffloads offloads = backend.offloads();
  if (offloads.checksum) {
    features |= VIRTIO_NET_F_CSUM | VIRTIO_NET_F_GUEST_CSUM;
    features |= offloads.tso4 ? VIRTIO_NET_F_HOST_TSO4 | VIRTIO_NET_F_GUEST_TSO4 : 0;
    features |= offloads.tso6 ? VIRTIO_NET_F_HOST_TSO6 | VIRTIO_NET_F_GUEST_TSO6 : 0;
    features |= offloads.ufo ? VIRTIO_NET_F_HOST_UFO | VIRTIO_NET_F_GUEST_UFO : 0;
  }
  if (backend.pairs() > 1) {
    features |= VIRTIO_NET_F_CTRL_VQ | VIRTIO_NET_F_MQ;
  }
  return features;
}

}  // namespace

void NetDevice::Ahead::add(DescriptorChain chain) {
  if (empty()) {
    clear();
  } else if (first_chain >= kQueueSize) {
    // Now and then, so that it costs little and the vectors do not grow for ever.
    chains.erase(chains.begin(), chains.begin() + static_cast<std::ptrdiff_t>(first_chain));
    slices.erase(slices.begin(), slices.begin() + static_cast<std::ptrdiff_t>(first_slice));
    first_chain = 0;
    first_slice = 0;
  }
  const std::span<const GuestSlice> writable = chain.writable();
  const std::uint64_t room = total_size(writable);
  slices.insert(slices.end(), writable.begin(), writable.end());
  bytes += room;
  chains.push_back({.chain = std::move(chain), .bytes = room, .slices = writable.size()});
}

NetDevice::Prepared NetDevice::Ahead::take_first() {
  Prepared prepared = std::move(chains[first_chain]);
  ++first_chain;
  first_slice += prepared.slices;
  bytes -= prepared.bytes;
  return prepared;
}

void NetDevice::Ahead::clear() {
  chains.clear();
  slices.clear();
  first_chain = 0;
  first_slice = 0;
  bytes = 0;
}

Result<std::unique_ptr<NetDevice>> NetDevice::create(const NetDeviceSettings& settings,
                                                     std::unique_ptr<NetBackend> backend,
                                                     EventRegistrar& registrar) {
  std::unique_ptr<NetDevice> device(new NetDevice(settings, std::move(backend)));
  if (auto done = device->prepare(registrar); !done) {
    return tl::make_unexpected(done.error().within(device->name_));
  }
  return device;
}

NetDevice::NetDevice(const NetDeviceSettings& settings, std::unique_ptr<NetBackend> backend)
    : settings_(settings),
      name_("interface " + settings.id),
      metrics_(metrics().net_device(settings.id)),
      backend_(std::move(backend)),
      queue_limits_(2 * backend_->pairs(), kQueueSize),
      offered_(offer(settings, *backend_)),
      pairs_(backend_->pairs()) {
  if ((offered_ & VIRTIO_NET_F_CTRL_VQ) != 0) {
    queue_limits_.push_back(kControlQueueSize);
  }
  left_out_.resize(queue_limits_.size());
  for (std::size_t index = 0; index < pairs_.size(); ++index) {
    pairs_[index].port = &backend_->port(index);
    pairs_[index].rest = make_untouched_bytes(NetPort::kRest);
  }
}

Result<void> NetDevice::prepare(EventRegistrar& registrar) {
  const std::uint64_t now = settings_.clock->monotonic_ns();
  MAYFLY_TRY_ASSIGN(rx_limiter_, RateLimiter::create(settings_.rx_rate_limiter, now));
  MAYFLY_TRY_ASSIGN(tx_limiter_, RateLimiter::create(settings_.tx_rate_limiter, now));
  for (Pair& pair : pairs_) {
    MAYFLY_TRY_ASSIGN(
        pair.watch, registrar.watch(pair.port->fd(), Interest::kReadable, [this, &pair](Readiness readiness) {
          const MutexLock lock(mutex());
          port_ready(pair, readiness);
        }));
    MAYFLY_TRY(pair.watch->update(Interest::kReadable, false));
  }
  MAYFLY_TRY_ASSIGN(rx_timer_, registrar.make_timer([this] {
    const MutexLock lock(mutex());
    rx_due();
  }));
  MAYFLY_TRY_ASSIGN(tx_timer_, registrar.make_timer([this] {
    const MutexLock lock(mutex());
    tx_due();
  }));
  return {};
}

void NetDevice::read_configuration(std::uint64_t offset, std::span<std::uint8_t> data) {
  const Configuration configuration{
      .mac = settings_.mac.octets,
      .status = link_up_ ? VIRTIO_NET_S_LINK_UP : std::uint16_t{0},
      .max_virtqueue_pairs = static_cast<std::uint16_t>(pairs_.size()),
      .mtu = settings_.mtu.value_or(0),
  };
  std::array<std::uint8_t, sizeof(configuration)> bytes;
  std::memcpy(bytes.data(), &configuration, sizeof(configuration));
  for (std::size_t index = 0; index < data.size(); ++index) {
    const std::uint64_t from = offset + index;
    data[index] = from < bytes.size() ? bytes[from] : 0;
  }
}

void NetDevice::write_configuration(std::uint64_t /*offset*/, std::span<const std::uint8_t> /*data*/) {
  metrics_.cfg_fails.add();  // all of it is read-only for a driver (5.1.4)
}

void NetDevice::activate(VirtioActivation activation) {
  const std::size_t pairs = pairs_restored_;
  clear();
  pairs_in_use_ = pairs;
  features_ = activation.features;
  // Segmentation without the checksum was not negotiated, whatever the bits say (5.1.3.1).
  to_device_ = {.checksum = has(VIRTIO_NET_F_CSUM),
                .tso4 = has(VIRTIO_NET_F_CSUM) && has(VIRTIO_NET_F_HOST_TSO4),
                .tso6 = has(VIRTIO_NET_F_CSUM) && has(VIRTIO_NET_F_HOST_TSO6),
                .ufo = has(VIRTIO_NET_F_CSUM) && has(VIRTIO_NET_F_HOST_UFO)};
  to_driver_ = {.checksum = has(VIRTIO_NET_F_GUEST_CSUM),
                .tso4 = has(VIRTIO_NET_F_GUEST_CSUM) && has(VIRTIO_NET_F_GUEST_TSO4),
                .tso6 = has(VIRTIO_NET_F_GUEST_CSUM) && has(VIRTIO_NET_F_GUEST_TSO6),
                .ufo = has(VIRTIO_NET_F_GUEST_CSUM) && has(VIRTIO_NET_F_GUEST_UFO)};
  const std::size_t plain = has(VIRTIO_NET_F_MTU) ? *settings_.mtu + kEthernetHeader : kPlainFrame;
  max_frame_ = to_driver_.any_segmentation() ? kMaxFrame : plain + kVlanTag;
  for (std::size_t index = 0; index < activation.queues.size(); ++index) {
    if (std::optional<VirtQueue>* const place = queue(index); place != nullptr) {
      *place = std::move(activation.queues[index]);
    } else {
      left_out_[index] = activation.queues[index].has_value();
    }
  }
  live_ = true;
  settled_ = false;
  if (std::exchange(mac_is_new_, false)) {
    transport().configuration_changed();
  }
}

void NetDevice::activation_failed() {
  metrics_.activate_fails.add();
}

void NetDevice::reset() {
  clear();
}

// On any thread: the watches and the timer are told later, by the first callback that finds nothing to do.
void NetDevice::clear() {
  live_ = false;
  broken_ = false;
  settled_ = false;
  features_ = 0;
  pairs_in_use_ = 1;
  pairs_restored_ = 1;
  for (Pair& pair : pairs_) {
    pair.ahead.clear();
    pair.held.reset();
    pair.rx.reset();
    pair.tx.reset();
    pair.rx_wait = RxWait::kBuffers;
    pair.tx_wait = TxWait::kFrames;
    pair.last_bytes = 0;
    pair.rx_due = 0;
    pair.tx_due = 0;
    pair.own_due = 0;
  }
  control_.reset();
  left_out_.assign(queue_limits_.size(), false);
}

void NetDevice::stop_queue(std::size_t index) {
  std::optional<VirtQueue>* const place = queue(index);
  if (place == nullptr) {
    left_out_[index] = false;
    return;
  }
  if (place != &control_ && index % 2 == 0) {
    Pair& pair = pairs_[index / 2];
    pair.ahead.clear();
    pair.held.reset();
    pair.rx_wait = RxWait::kBuffers;
    pair.rx_due = 0;
    pair.own_due = 0;
  } else if (place != &control_) {
    Pair& pair = pairs_[index / 2];
    pair.tx_wait = TxWait::kFrames;
    pair.tx_due = 0;
  }
  place->reset();
}

// 5.1.2: without VIRTIO_NET_F_MQ there is one pair, and the control queue comes after it.
std::size_t NetDevice::control_index() const {
  return has(VIRTIO_NET_F_MQ) ? 2 * pairs_.size() : 2;
}

std::optional<VirtQueue>* NetDevice::queue(std::size_t index) {
  if (has(VIRTIO_NET_F_CTRL_VQ) && index == control_index()) {
    return &control_;
  }
  const std::size_t pairs = has(VIRTIO_NET_F_MQ) ? pairs_.size() : 1;
  if (index >= 2 * pairs) {
    return nullptr;
  }
  Pair& pair = pairs_[index / 2];
  return index % 2 == 0 ? &pair.rx : &pair.tx;
}

void NetDevice::process() {
  if (!live_ || broken_) {
    return;
  }
  settle();
  if (control_) {
    control();
  }
  for (std::size_t index = 0; index < pairs_in_use_ && !broken_; ++index) {
    Pair& pair = pairs_[index];
    if (pair.tx && pair.tx_wait == TxWait::kFrames) {
      metrics_.tx_queue_event_count.add();
      transmit(pair);
    }
    const bool waits = pair.rx_wait == RxWait::kBuffers || pair.rx_wait == RxWait::kTurn;
    if (!broken_ && pair.rx && waits) {
      metrics_.rx_queue_event_count.add(pair.rx_wait == RxWait::kBuffers ? 1 : 0);
      receive(pair);
    }
    end_turn(pair);
  }
}

// What a vCPU's thread has negotiated reaches the back end here, on the monitor thread.
void NetDevice::settle() {
  if (std::exchange(settled_, true)) {
    return;
  }
  auto done = backend_->set_offloads(to_driver_);
  if (done) {
    done = backend_->use_pairs(pairs_in_use_);
  }
  backend_pairs_ = done ? pairs_in_use_ : 0;
  if (!done && link_up_) {
    // Frames that ask more of the driver than it can do are lost in accept().
    metrics_.event_fails.add();
    LOG_ERROR_LIMITED("%s: %s", name_.c_str(), done.error().message().c_str());
  }
}

bool NetDevice::in_use(const Pair& pair) const {
  return live_ && !broken_ && &pair < pairs_.data() + pairs_in_use_;
}

// A port that makes frames itself has them after a send(), or in time, and no descriptor tells.
void NetDevice::end_turn(Pair& pair) {
  if (in_use(pair) && link_up_ && pair.rx && pair.rx_wait == RxWait::kFrames) {
    const auto in = pair.port->own_frame_in();
    const std::uint64_t before = std::exchange(pair.own_due, 0);
    if (in && in->count() <= 0) {
      pair.rx_wait = RxWait::kTurn;
      transport().process_later();
    } else if (in) {
      pair.own_due = settings_.clock->monotonic_ns() + static_cast<std::uint64_t>(in->count());
      if (pair.own_due != before) {
        start_rx_timer();
      }
    }
  }
  update_watch(pair);
}

void NetDevice::update_watch(Pair& pair) {
  const bool plugged = in_use(pair) && link_up_;
  const bool readable =
      plugged && pair.rx && (pair.rx_wait == RxWait::kFrames || pair.rx_wait == RxWait::kTurn);
  const bool writable = plugged && (pair.tx_wait == TxWait::kRoom || pair.port->unsent());
  if (readable == pair.wants_readable && writable == pair.wants_writable) {
    return;
  }
  const Interest interest = readable && writable ? Interest::kReadableAndWritable
                            : writable           ? Interest::kWritable
                                                 : Interest::kReadable;
  if (auto done = pair.watch->update(interest, readable || writable); !done) {
    metrics_.event_fails.add();
    LOG_ERROR_LIMITED("%s: %s", name_.c_str(), done.error().message().c_str());
    return;
  }
  pair.wants_readable = readable;
  pair.wants_writable = writable;
}

void NetDevice::port_ready(Pair& pair, Readiness readiness) {
  if (in_use(pair) && link_up_) {
    settle();
    RxEnd end = RxEnd::kNoBuffers;
    if ((readiness.readable || readiness.hung_up) && pair.wants_readable && pair.rx) {
      metrics_.rx_tap_event_count.add();
      end = receive(pair);
    }
    if (!broken_ && (readiness.writable || readiness.hung_up)) {
      if (pair.port->flush() == NetPort::Status::kClosed) {
        close_link("its other end has gone");
      }
      if (pair.tx && pair.tx_wait == TxWait::kRoom) {
        pair.tx_wait = TxWait::kFrames;
        transmit(pair);
      }
    }
    if (readiness.hung_up && end == RxEnd::kNoFrame) {
      close_link("its other end has hung up");
    }
  }
  end_turn(pair);
}

void NetDevice::close_link(const char* why) {
  if (!std::exchange(link_up_, false)) {
    return;
  }
  metrics_.event_fails.add();
  LOG_WARN("%s: %s: the link is down", name_.c_str(), why);
  report_error(why);
  if (!live_) {
    return;
  }
  if (has(VIRTIO_NET_F_STATUS)) {
    transport().configuration_changed();
  }
  // Frames that wait for room are lost as all others are.
  for (Pair& pair : pairs_) {
    pair.tx_wait = TxWait::kFrames;
    pair.tx_due = 0;
  }
  transport().process_later();
}

void NetDevice::fault(QueueFault fault) {
  broken_ = true;
  transport().needs_reset(to_string(fault));
}

void NetDevice::publish(VirtQueue& queue) {
  if (queue.publish()) {
    transport().used_buffers();
  }
}

// --- To the driver: 5.1.6.3 and 5.1.6.4 ---

NetDevice::RxEnd NetDevice::receive(Pair& pair) {
  VirtQueue& queue = *pair.rx;
  std::size_t budget = queue.config().size;
  queue.spare_doorbell();
  for (;;) {
    const RxEnd end = receive_batch(pair, budget);
    if (end != RxEnd::kFault) {
      publish(queue);
    }
    switch (end) {
      case RxEnd::kBatch:
        if (budget != 0) {
          continue;
        }
        pair.rx_wait = RxWait::kTurn;
        transport().process_later();
        return end;
      case RxEnd::kNoFrame:
        pair.rx_wait = RxWait::kFrames;
        return end;
      case RxEnd::kNoBuffers: {
        pair.rx_wait = RxWait::kBuffers;
        const auto more = queue.want_doorbell();
        if (!more) {
          fault(more.error());
          return RxEnd::kFault;
        }
        if (*more) {
          continue;  // takes at least one more of a bounded number
        }
        metrics_.no_rx_avail_buffer.add();
        return end;
      }
      case RxEnd::kNoTokens:
        metrics_.rx_rate_limiter_throttled.add();
        pair.rx_wait = RxWait::kTokens;
        pair.rx_due = rx_limiter_.ready_at(pair.held->bytes, settings_.clock->monotonic_ns());
        start_rx_timer();
        return end;
      case RxEnd::kClosed:
        close_link("its other end has gone");
        return end;
      case RxEnd::kFault:
        return end;
    }
  }
}

NetDevice::RxEnd NetDevice::receive_batch(Pair& pair, std::size_t& budget) {
  const std::size_t frames = std::min(budget, kBatchFrames);
  std::size_t taken = 0;
  std::size_t packets = 0;
  std::size_t bytes = 0;
  RxEnd end = RxEnd::kBatch;
  while (end == RxEnd::kBatch && taken < frames && bytes < kBatchBytes) {
    if (const auto done = take_ahead(pair); !done) {
      fault(done.error());
      end = RxEnd::kFault;
    } else if (broken_) {
      end = RxEnd::kFault;
    } else if (pair.held) {
      const std::size_t size = pair.held->bytes;
      pair.held->paid = pair.held->paid || pay(rx_limiter_, size);
      if (!pair.held->paid) {
        end = RxEnd::kNoTokens;
      } else if (deliver_held(pair)) {
        ++taken;
        ++packets;
        bytes += size;
      } else if (can_take_ahead(pair)) {
        if (pair.rx_due == 0) {
          const std::chrono::nanoseconds hold = kMaxHold;
          pair.rx_due = settings_.clock->monotonic_ns() + static_cast<std::uint64_t>(hold.count());
          start_rx_timer();
        }
        end = RxEnd::kNoBuffers;
      } else {
        drop_held(pair);  // more buffers than these there cannot be
        ++taken;
      }
    } else if (pair.ahead.empty()) {
      end = RxEnd::kNoBuffers;
    } else {
      NetHeader header;
      ChainWriter room(likely_room(pair));
      room.skip(sizeof(NetHeader));
      const std::uint64_t in_buffers = room.remaining();
      const NetPort::Received received =
          pair.port->receive(header, room, std::span(pair.rest.get(), NetPort::kRest));
      if (received.status == NetPort::Status::kDone) {
        pair.last_bytes = received.bytes;
      }
      const bool fits = received.bytes <= in_buffers;
      if (received.status == NetPort::Status::kWouldBlock) {
        end = RxEnd::kNoFrame;
      } else if (received.status == NetPort::Status::kClosed) {
        end = RxEnd::kClosed;
      } else if (received.status == NetPort::Status::kFailed) {
        ++taken;
        metrics_.tap_read_fails.add();
        metrics_.rx_fails.add();
      } else if (!accept(header, pair, received.bytes) || (!fits && !has(VIRTIO_NET_F_MRG_RXBUF))) {
        ++taken;  // one that is too large for the one buffer that it may use included (5.1.6.3.2)
        metrics_.rx_fails.add();
      } else if (const bool paid = pay(rx_limiter_, received.bytes); fits && paid) {
        ++taken;
        ++packets;
        bytes += received.bytes;
        deliver(pair, header, received.bytes);
      } else {
        pair.held = Held{.header = header,
                         .bytes = received.bytes,
                         .stored = std::min<std::size_t>(received.bytes, in_buffers),
                         .paid = paid};
      }
    }
  }
  budget -= taken;
  if (packets != 0) {
    metrics_.rx_count.add(packets);
    metrics_.rx_packets_count.add(packets);
    metrics_.rx_bytes_count.add(bytes);
  }
  return end;
}

// Where the next frame goes: all buffers ahead, or after a small one only the first of them. For the largest
// frame a driver's usual buffers are 44, and each costs the system call time, whatever comes. A frame that is
// larger than expected is completed by deliver_held().
std::span<const GuestSlice> NetDevice::likely_room(const Pair& pair) const {
  const std::span<const GuestSlice> room = pair.ahead.room();
  if (!has(VIRTIO_NET_F_MRG_RXBUF) || pair.last_bytes > kSmallFrame) {
    return room;
  }
  std::uint64_t bytes = 0;
  std::size_t count = 0;
  while (count < room.size() && bytes < sizeof(NetHeader) + kSmallFrame) {
    bytes += room[count++].size();
  }
  return room.first(count);
}

bool NetDevice::can_take_ahead(const Pair& pair) const {
  // A chain has at most as many slices as the queue entries, and one (2.7.5.3.1).
  const std::size_t size = pair.rx->config().size;
  return pair.rx->in_flight() < size && pair.ahead.room().size() + size + 1 <= kMaxSlices;
}

// Takes buffers for the largest frame that may come next, as far as there are any. Without
// VIRTIO_NET_F_MRG_RXBUF that is one.
QueueResult<void> NetDevice::take_ahead(Pair& pair) {
  const std::size_t frame = pair.held ? pair.held->bytes : max_frame_;
  const bool merge = has(VIRTIO_NET_F_MRG_RXBUF);
  while (pair.ahead.empty() ||
         (merge && pair.ahead.bytes < sizeof(NetHeader) + frame && can_take_ahead(pair))) {
    auto chain = pair.rx->take();
    if (!chain) {
      return tl::make_unexpected(chain.error());
    }
    if (!*chain) {
      return {};
    }
    pair.ahead.add(std::move(**chain));
    if (pair.ahead.chains.back().bytes < sizeof(NetHeader)) {
      // 5.1.6.3.1: a driver must not; and there is no order in which it could be given back.
      broken_ = true;
      transport().needs_reset("a receive buffer has no room for a frame's header");
      return {};
    }
  }
  return {};
}

// 5.1.6.4.1: what a driver did not negotiate, it is not given.
bool NetDevice::accept(NetHeader& header, Pair& pair, std::size_t bytes) const {
  header.flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID;
  if (!to_driver_.checksum) {
    header.flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM;
  }
  if (bytes < kEthernetHeader || bytes > kMaxFrame || !is_valid(header, to_driver_, bytes)) {
    return false;
  }
  if (!has(VIRTIO_NET_F_MTU) || header.gso_type != VIRTIO_NET_HDR_GSO_NONE ||
      bytes <= *settings_.mtu + kEthernetHeader) {
    return true;
  }
  // 5.1.4.1: larger than the MTU, unless it is only by the VLAN tag in its header.
  std::array<std::byte, sizeof(NetHeader) + kEthernetHeader> start;
  if (bytes > *settings_.mtu + kEthernetHeader + kVlanTag || !ChainReader(pair.ahead.room()).read(start)) {
    return false;
  }
  const auto type = static_cast<unsigned>(start[start.size() - 2]) << 8 | static_cast<unsigned>(start.back());
  return type == 0x8100 || type == 0x88a8;
}

// The frame lies in the buffers ahead: gives those to the driver that it needs, and no other.
void NetDevice::deliver(Pair& pair, NetHeader header, std::size_t bytes) {
  std::uint64_t left = sizeof(NetHeader) + bytes;
  std::uint64_t covered = 0;
  std::uint16_t buffers = 0;
  for (std::size_t index = pair.ahead.first_chain; covered < left; ++index) {
    covered += pair.ahead.chains[index].bytes;
    ++buffers;
  }
  header.num_buffers = buffers;
  pair.ahead.chains[pair.ahead.first_chain].chain.writer().write_object(header);
  for (; buffers != 0; --buffers) {
    Prepared first = pair.ahead.take_first();
    const std::uint64_t here = std::min(left, first.bytes);
    left -= here;
    pair.rx->complete(std::move(first.chain), static_cast<std::uint32_t>(here));
  }
}

bool NetDevice::deliver_held(Pair& pair) {
  const Held held = *pair.held;
  if (pair.ahead.bytes < sizeof(NetHeader) + held.bytes) {
    return false;
  }
  ChainWriter writer(pair.ahead.room());
  writer.skip(sizeof(NetHeader) + held.stored);
  writer.write(std::span<const std::byte>(pair.rest.get(), held.bytes - held.stored));
  pair.held.reset();
  pair.rx_due = 0;
  deliver(pair, held.header, held.bytes);
  return true;
}

void NetDevice::drop_held(Pair& pair) {
  pair.held.reset();
  pair.rx_due = 0;
  metrics_.rx_fails.add();
}

std::uint64_t NetDevice::first(std::uint64_t Pair::*due) const {
  std::uint64_t first = UINT64_MAX;
  for (const Pair& pair : pairs_) {
    first = pair.*due != 0 ? std::min(first, pair.*due) : first;
  }
  return first;
}

void NetDevice::start_rx_timer() {
  start_timer(*rx_timer_, std::min(first(&Pair::rx_due), first(&Pair::own_due)));
}

void NetDevice::start_tx_timer() {
  start_timer(*tx_timer_, first(&Pair::tx_due));
}

void NetDevice::start_timer(EventRegistrar::Timer& timer, std::uint64_t due) {
  if (due == UINT64_MAX) {
    return;
  }
  // A limiter may never let anything pass again: somebody may still change it.
  constexpr std::chrono::nanoseconds kLongest = std::chrono::hours(1);
  const std::uint64_t now = settings_.clock->monotonic_ns();
  const std::uint64_t delay = due > now ? due - now : 0;
  const auto started = timer.start(
      std::chrono::nanoseconds(std::min<std::uint64_t>(delay, static_cast<std::uint64_t>(kLongest.count()))));
  if (!started) {
    metrics_.event_fails.add();
    LOG_ERROR_LIMITED("%s: %s", name_.c_str(), started.error().message().c_str());
  }
}

// A time that has come is forgotten whatever the pair's state: else the timer would never rest.
bool NetDevice::take_due(std::uint64_t& due) const {
  if (due == 0 || due > settings_.clock->monotonic_ns()) {
    return false;
  }
  due = 0;
  return true;
}

void NetDevice::rx_due() {
  for (Pair& pair : pairs_) {
    const bool own = take_due(pair.own_due);
    if (!take_due(pair.rx_due)) {
      if (own) {
        end_turn(pair);
      }
      continue;
    }
    if (pair.rx_wait == RxWait::kTokens) {
      metrics_.rx_event_rate_limiter_count.add();
      pair.rx_wait = RxWait::kTurn;
    } else if (pair.held) {
      drop_held(pair);
    }
    if (in_use(pair) && pair.rx) {
      receive(pair);
    }
    end_turn(pair);
  }
  start_rx_timer();
}

void NetDevice::tx_due() {
  for (Pair& pair : pairs_) {
    if (!take_due(pair.tx_due)) {
      continue;
    }
    metrics_.tx_rate_limiter_event_count.add();
    pair.tx_wait = TxWait::kFrames;
    if (in_use(pair) && pair.tx) {
      transmit(pair);
    }
    end_turn(pair);
  }
  start_tx_timer();
}

Result<void> NetDevice::set_rate_limits(const RateLimiterConfig& rx, const RateLimiterConfig& tx) {
  const std::uint64_t now = settings_.clock->monotonic_ns();
  RateLimiter new_rx = rx_limiter_;
  RateLimiter new_tx = tx_limiter_;
  for (auto done : {new_rx.update(rx, now), new_tx.update(tx, now)}) {
    if (!done) {
      return tl::make_unexpected(done.error().within(name_));
    }
  }
  rx_limiter_ = new_rx;
  tx_limiter_ = new_tx;
  for (Pair& pair : pairs_) {
    pair.rx_due = pair.rx_wait == RxWait::kTokens ? now : pair.rx_due;
    pair.tx_due = pair.tx_wait == TxWait::kTokens ? now : pair.tx_due;
  }
  start_rx_timer();
  start_tx_timer();
  return {};
}

void NetDevice::put_back_ahead(Pair& pair) {
  if (pair.held) {
    drop_held(pair);
  }
  while (!pair.ahead.empty()) {
    pair.rx->put_back(std::move(pair.ahead.chains.back().chain));
    pair.ahead.chains.pop_back();
  }
  pair.ahead.clear();
  pair.rx_wait = RxWait::kBuffers;
}

// --- From the driver: 5.1.6.2 ---

void NetDevice::transmit(Pair& pair) {
  VirtQueue& queue = *pair.tx;
  TxBudget budget{.frames = queue.config().size, .segments = kSegmentsPerRound / pairs_in_use_};
  bool any = false;
  queue.spare_doorbell();
  for (;;) {
    const std::size_t before = budget.frames;
    const TxEnd end = transmit_batch(pair, budget);
    any = any || budget.frames != before;
    if (end != TxEnd::kFault) {
      publish(queue);
    }
    switch (end) {
      case TxEnd::kBatch:
        if (!budget.is_spent()) {
          continue;
        }
        metrics_.tx_remaining_reqs_count.add();
        transport().process_later();
        return;
      case TxEnd::kNoFrame: {
        const auto more = queue.want_doorbell();
        if (!more) {
          fault(more.error());
          return;
        }
        if (*more) {
          continue;
        }
        if (!any) {
          metrics_.no_tx_avail_buffer.add();
        }
        return;
      }
      case TxEnd::kNoRoom:
        pair.tx_wait = TxWait::kRoom;
        return;
      case TxEnd::kNoTokens:
        metrics_.tx_rate_limiter_throttled.add();
        pair.tx_wait = TxWait::kTokens;
        start_tx_timer();
        return;
      case TxEnd::kFault:
        return;
    }
  }
}

NetDevice::TxEnd NetDevice::transmit_batch(Pair& pair, TxBudget& budget) {
  VirtQueue& queue = *pair.tx;
  const std::size_t frames = std::min(budget.frames, kBatchFrames);
  std::size_t taken = 0;
  std::size_t packets = 0;
  std::size_t bytes = 0;
  const std::uint64_t start = monotonic_ns();
  TxEnd end = TxEnd::kBatch;
  while (end == TxEnd::kBatch && taken < frames && bytes < kBatchBytes && budget.segments != 0) {
    auto chain = queue.take();
    if (!chain) {
      fault(chain.error());
      end = TxEnd::kFault;
    } else if (!*chain) {
      end = TxEnd::kNoFrame;
    } else {
      std::size_t size = 0;
      std::size_t segments = 1;
      const Sent sent = transmit_one(pair, **chain, size, segments);
      if (sent == Sent::kNoRoom || sent == Sent::kNoTokens) {
        queue.put_back(std::move(**chain));
        end = sent == Sent::kNoRoom ? TxEnd::kNoRoom : TxEnd::kNoTokens;
      } else {
        if (sent == Sent::kSent) {
          ++packets;
          bytes += size;
        }
        ++taken;
        budget.segments -= std::min(budget.segments, segments);
        queue.complete(std::move(**chain), 0);
      }
    }
  }
  budget.frames -= taken;
  if (packets != 0) {
    metrics_.tx_count.add(packets);
    metrics_.tx_packets_count.add(packets);
    metrics_.tx_bytes_count.add(bytes);
    metrics_.tap_write_agg.record_us((monotonic_ns() - start) / 1000);  // one clock reading a batch
  }
  return end;
}

// Counts what goes wrong.
NetDevice::Sent NetDevice::transmit_one(Pair& pair, const DescriptorChain& chain, std::size_t& bytes,
                                        std::size_t& segments) {
  ChainReader reader = chain.reader();
  auto header = reader.read_object<NetHeader>();
  const std::uint64_t frame = reader.remaining();
  if (!header || frame < kEthernetHeader || frame > kMaxFrame ||
      !admit_from_driver(*header, to_device_, frame)) {
    metrics_.tx_malformed_frames.add();
    return Sent::kLost;
  }
  if (!link_up_) {
    metrics_.tx_fails.add();
    return Sent::kLost;
  }
  const WireCost cost = wire_cost(*header, frame);
  if (!pay(tx_limiter_, cost.bytes, cost.segments)) {
    pair.tx_due = tx_limiter_.ready_at(cost.bytes, settings_.clock->monotonic_ns(), cost.segments);
    return Sent::kNoTokens;
  }
  // The guest may change the address once more before the frame goes out: this is a count, not a filter.
  ChainReader ethernet = reader;
  struct Addresses {
    std::array<std::uint8_t, 6> destination;
    MacAddress source;
  };
  static_assert(sizeof(Addresses) == 12);
  const bool spoofed = ethernet.read_object<Addresses>()->source != settings_.mac;
  const NetPort::Status status = pair.port->send(*header, reader);
  if (status == NetPort::Status::kWouldBlock) {
    if (tx_limiter_.limits()) {
      tx_limiter_.give_back(cost.bytes, settings_.clock->monotonic_ns(), cost.segments);
    }
    return Sent::kNoRoom;
  }
  segments = cost.segments;
  if (spoofed) {
    metrics_.tx_spoofed_mac_count.add();
  }
  if (status == NetPort::Status::kDone) {
    bytes = frame;
    return Sent::kSent;
  }
  if (status == NetPort::Status::kClosed) {
    close_link("its other end has gone");
  }
  metrics_.tap_write_fails.add();
  metrics_.tx_fails.add();
  return Sent::kLost;
}

bool NetDevice::pay(RateLimiter& limiter, std::size_t bytes, std::size_t operations) const {
  return !limiter.limits() || limiter.consume(bytes, settings_.clock->monotonic_ns(), operations);
}

// --- The control queue: 5.1.6.5 ---

void NetDevice::control() {
  control_->spare_doorbell();
  std::size_t changes = kPairChangesPerRound;
  for (std::size_t budget = control_->config().size; budget != 0 && changes != 0; --budget) {
    auto chain = control_->take();
    if (!chain) {
      fault(chain.error());
      return;
    }
    if (!*chain) {
      const auto more = control_->want_doorbell();
      if (!more) {
        fault(more.error());
        return;
      }
      if (!*more) {
        publish(*control_);
        return;
      }
      continue;
    }
    const std::uint8_t answer = run_command(**chain, changes);
    if (broken_) {
      return;
    }
    const bool answered = (*chain)->writer().write_object(answer);
    if (!answered || answer != VIRTIO_NET_OK) {
      metrics_.event_fails.add();
    }
    control_->complete(std::move(**chain), answered ? sizeof(answer) : 0);
  }
  publish(*control_);
  transport().process_later();
}

std::uint8_t NetDevice::run_command(const DescriptorChain& chain, std::size_t& changes) {
  ChainReader reader = chain.reader();
  const auto header = reader.read_object<ControlHeader>();
  if (!header || header->command_class != VIRTIO_NET_CTRL_MQ ||
      header->command != VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET || !has(VIRTIO_NET_F_MQ)) {
    return VIRTIO_NET_ERR;
  }
  const auto pairs = reader.read_object<std::uint16_t>();
  return pairs && use_pairs(*pairs, changes) ? VIRTIO_NET_OK : VIRTIO_NET_ERR;
}

bool NetDevice::use_pairs(std::size_t pairs, std::size_t& changes) {
  if (pairs == 0 || pairs > pairs_.size()) {
    return false;
  }
  for (std::size_t index = 0; index < pairs; ++index) {
    if (!pairs_[index].rx || !pairs_[index].tx) {
      return false;  // 5.1.6.5.6.1: a driver must configure them first
    }
  }
  if (pairs == pairs_in_use_ && pairs == backend_pairs_) {
    return true;
  }
  --changes;
  if (auto done = backend_->use_pairs(pairs); !done) {
    backend_pairs_ = 0;
    LOG_ERROR_LIMITED("%s: %s", name_.c_str(), done.error().message().c_str());
    return false;
  }
  // 5.1.6.5.6.2: no frame comes in a queue past these once the command is used.
  pairs_in_use_ = pairs;
  backend_pairs_ = pairs;
  for (std::size_t index = pairs; index < pairs_.size(); ++index) {
    if (pairs_[index].rx) {
      put_back_ahead(pairs_[index]);
    }
    update_watch(pairs_[index]);
  }
  return true;
}

NetDeviceState NetDevice::save() {
  NetDeviceState state{.mac = settings_.mac,
                       .features = features_,
                       .live = live_,
                       .link_up = link_up_,
                       .pairs_in_use = pairs_in_use_,
                       .rx_rate_limiter = rx_limiter_.save(settings_.clock->monotonic_ns()),
                       .tx_rate_limiter = tx_limiter_.save(settings_.clock->monotonic_ns())};
  for (Pair& pair : pairs_) {
    if (broken_) {
      pair.ahead.clear();  // never used any more; a frame may have been tried in them
      pair.held.reset();
    } else if (pair.rx) {
      put_back_ahead(pair);
    }
  }
  for (std::size_t index = 0; index < queue_limits_.size(); ++index) {
    const std::optional<VirtQueue>* const place = broken_ ? nullptr : queue(index);
    auto& progress = state.queues.emplace_back();
    if (place != nullptr && *place) {
      progress = (*place)->state();
    } else if (!broken_ && left_out_[index]) {
      progress.emplace();  // it never began
    }
  }
  return state;
}

Result<void> NetDevice::restore(const NetDeviceState& state) {
  const auto wrong = [this](const std::string& what) {
    return fail(ErrorCode::kInvalidArgument, name_ + ": restore: " + what);
  };
  if (const std::uint64_t missing = state.features & ~offered_; missing != 0) {
    return wrong("its driver uses features that it does not offer here: " + hex(missing));
  }
  if (state.queues.size() != queue_limits_.size()) {
    return wrong("there are " + std::to_string(state.queues.size()) + " queues, and it has " +
                 std::to_string(queue_limits_.size()));
  }
  const std::size_t most = (state.features & VIRTIO_NET_F_MQ) != 0 ? pairs_.size() : 1;
  if (state.pairs_in_use < 1 || state.pairs_in_use > most) {
    return wrong(std::to_string(state.pairs_in_use) + " pairs of queues are in use; there can be 1 to " +
                 std::to_string(most));
  }
  const std::uint64_t now = settings_.clock->monotonic_ns();
  auto rx = RateLimiter::restore(state.rx_rate_limiter, now);
  auto tx = RateLimiter::restore(state.tx_rate_limiter, now);
  if (!rx || !tx) {
    return tl::make_unexpected((rx ? tx : rx).error().within(name_ + ": restore"));
  }
  rx_limiter_ = *rx;
  tx_limiter_ = *tx;
  link_up_ = state.link_up;
  pairs_restored_ = state.pairs_in_use;
  mac_is_new_ = state.mac != settings_.mac;
  return {};
}

}  // namespace mayfly
