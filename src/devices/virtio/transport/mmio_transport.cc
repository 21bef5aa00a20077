#include "devices/virtio/transport/mmio_transport.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/text.h"

namespace mayfly {
namespace {

// Table 4.1: offsets.
constexpr std::uint64_t kMagicValue = 0x000;
constexpr std::uint64_t kVersion = 0x004;
constexpr std::uint64_t kDeviceId = 0x008;
constexpr std::uint64_t kVendor = 0x00c;
constexpr std::uint64_t kDeviceFeatures = 0x010;
constexpr std::uint64_t kDeviceFeaturesSelect = 0x014;
constexpr std::uint64_t kDriverFeatures = 0x020;
constexpr std::uint64_t kDriverFeaturesSelect = 0x024;
constexpr std::uint64_t kQueueSelect = 0x030;
constexpr std::uint64_t kQueueSizeMax = 0x034;
constexpr std::uint64_t kQueueSize = 0x038;
constexpr std::uint64_t kQueueReady = 0x044;
constexpr std::uint64_t kInterruptStatus = 0x060;
constexpr std::uint64_t kInterruptAck = 0x064;
constexpr std::uint64_t kStatus = 0x070;
constexpr std::uint64_t kQueueDescLow = 0x080;
constexpr std::uint64_t kQueueDescHigh = 0x084;
constexpr std::uint64_t kQueueDriverLow = 0x090;
constexpr std::uint64_t kQueueDriverHigh = 0x094;
constexpr std::uint64_t kQueueDeviceLow = 0x0a0;
constexpr std::uint64_t kQueueDeviceHigh = 0x0a4;
constexpr std::uint64_t kConfigGeneration = 0x0fc;

constexpr std::uint32_t kMagic = 0x74726976;  // "virt"
constexpr std::uint32_t kVersionTwo = 2;
// No such register, or none that can be read; also what 4.2.2 has for a shared memory region that is not
// there.
constexpr std::uint32_t kAllOnes = 0xffffffff;

void set_low(std::uint64_t& address, std::uint32_t value) {
  address = (address & 0xffffffff00000000) | value;
}

void set_high(std::uint64_t& address, std::uint32_t value) {
  address = (address & 0xffffffff) | std::uint64_t{value} << 32;
}

bool is_control_access(std::uint64_t offset, std::size_t size) {
  return size == sizeof(std::uint32_t) && offset % sizeof(std::uint32_t) == 0;
}

// Sets a word that a guest may be reading, and touches it only where that changes anything.
void show(std::uint32_t& word, std::uint32_t value) {
  const std::atomic_ref<std::uint32_t> shown(word);
  if (shown.load(std::memory_order_relaxed) != value) {
    shown.store(value, std::memory_order_release);
  }
}

}  // namespace

Result<std::unique_ptr<MmioTransport>> MmioTransport::create(VirtioDevice& device, GuestMemory& memory,
                                                             InterruptLine& line, EventRegistrar& registrar,
                                                             std::span<std::uint32_t> shown) {
  MAYFLY_CHECK(shown.empty() || shown.size_bytes() == kWindow, "a window is shown whole or not at all");
  MAYFLY_TRY_ASSIGN(UniqueFd doorbell, make_eventfd());
  std::unique_ptr<MmioTransport> transport(
      new MmioTransport(device, memory, line, std::move(doorbell), shown));
  MAYFLY_TRY_ASSIGN(transport->watch_,
                    registrar.watch(transport->doorbell_.get(), Interest::kReadable,
                                    [self = transport.get()](Readiness) { self->doorbell_rang(); }));
  return transport;
}

MmioTransport::MmioTransport(VirtioDevice& device, GuestMemory& memory, InterruptLine& line,
                             UniqueFd doorbell, std::span<std::uint32_t> shown)
    : device_(device), memory_(memory), line_(line), doorbell_(std::move(doorbell)), shown_(shown) {
  for (const std::uint16_t limit : device.queue_limits()) {
    state_.queues.push_back({.size = limit});
  }
  device.attach(*this);
  const MutexLock lock(device.mutex());
  show_registers();
  show_configuration();
}

std::atomic_ref<std::uint32_t> MmioTransport::interrupt_status() {
  return std::atomic_ref<std::uint32_t>(shown_.empty() ? hidden_interrupt_status_
                                                       : shown_[kInterruptStatus / sizeof(std::uint32_t)]);
}

void MmioTransport::show_registers() {
  if (shown_.empty()) {
    return;
  }
  for (std::uint64_t offset = 0; offset < kConfiguration; offset += sizeof(std::uint32_t)) {
    if (offset != kInterruptStatus) {
      show(shown_[offset / sizeof(std::uint32_t)], read_register(offset));
    }
  }
}

void MmioTransport::show_configuration() {
  if (shown_.empty()) {
    return;
  }
  const auto words = shown_.subspan(kConfiguration / sizeof(std::uint32_t));
  std::array<std::uint8_t, kWindow - kConfiguration> bytes{};
  device_.read_configuration(0, bytes);
  for (std::size_t index = 0; index < words.size(); ++index) {
    std::uint32_t value = 0;
    std::memcpy(&value, &bytes.at(index * sizeof(value)), sizeof(value));
    show(words[index], value);
  }
}

void MmioTransport::bus_read(std::uint64_t offset, std::span<std::uint8_t> data) {
  if (offset >= kConfiguration) {
    const MutexLock lock(device_.mutex());
    device_.read_configuration(offset - kConfiguration, data);
    return;
  }
  std::ranges::fill(data, std::uint8_t{0xff});
  if (!is_control_access(offset, data.size())) {
    LOG_WARN_LIMITED("%.*s: the driver reads %zu bytes at register %s",
                     static_cast<int>(device_.name().size()), device_.name().data(), data.size(),
                     hex(offset).c_str());
    return;
  }
  std::uint32_t value = 0;
  if (offset == kInterruptStatus) {
    value = interrupt_status().load();
  } else {
    const MutexLock lock(device_.mutex());
    value = read_register(offset);
  }
  std::memcpy(data.data(), &value, sizeof(value));
}

void MmioTransport::bus_write(std::uint64_t offset, std::span<const std::uint8_t> data) {
  if (offset >= kConfiguration) {
    const MutexLock lock(device_.mutex());
    if ((state_.status & kDriver) != 0 && !has_failed()) {
      device_.write_configuration(offset - kConfiguration, data);
      show_configuration();
    }
    return;
  }
  if (!is_control_access(offset, data.size())) {
    LOG_WARN_LIMITED("%.*s: the driver writes %zu bytes at register %s",
                     static_cast<int>(device_.name().size()), device_.name().data(), data.size(),
                     hex(offset).c_str());
    return;
  }
  std::uint32_t value = 0;
  std::memcpy(&value, data.data(), sizeof(value));
  if (offset == kInterruptAck) {
    interrupt_status().fetch_and(~value);
  } else if (offset == kQueueNotify) {
    process_later();
  } else {
    const MutexLock lock(device_.mutex());
    write_register(offset, value);
    show_registers();
    if (offset == kStatus) {
      show_configuration();  // what was accepted may have changed it
    }
  }
}

std::uint32_t MmioTransport::read_register(std::uint64_t offset) const {
  const bool has_queue = state_.queue_select < state_.queues.size();
  switch (offset) {
    case kMagicValue:
      return kMagic;
    case kVersion:
      return kVersionTwo;
    case kDeviceId:
      return device_.type();
    case kVendor:
      return kVendorId;
    case kDeviceFeatures:
      return state_.device_features_select < 2
                 ? static_cast<std::uint32_t>(offered_features() >> (32 * state_.device_features_select))
                 : 0;
    case kQueueSizeMax:
      return has_queue ? device_.queue_limits()[state_.queue_select] : 0;
    case kQueueReady:
      return has_queue && state_.queues[state_.queue_select].ready ? 1 : 0;
    case kStatus:
      return state_.status;
    case kConfigGeneration:
      return state_.generation;
    default:
      return kAllOnes;
  }
}

void MmioTransport::write_register(std::uint64_t offset, std::uint32_t value) {
  switch (offset) {
    case kDeviceFeaturesSelect:
      state_.device_features_select = value;
      return;
    case kDriverFeaturesSelect:
      state_.driver_features_select = value;
      return;
    case kDriverFeatures:
      if ((state_.status & (kDriver | kFeaturesOk)) == kDriver && !has_failed()) {
        if (state_.driver_features_select == 0) {
          set_low(state_.driver_features, value);
        } else if (state_.driver_features_select == 1) {
          set_high(state_.driver_features, value);
        } else if (value != 0) {
          state_.unknown_features = true;
        }
      }
      return;
    case kQueueSelect:
      state_.queue_select = value;
      return;
    case kStatus:
      write_status(value);
      return;
    default:
      write_queue_register(offset, value);
      return;
  }
}

void MmioTransport::write_queue_register(std::uint64_t offset, std::uint32_t value) {
  if (state_.queue_select >= state_.queues.size()) {
    return;
  }
  if (offset == kQueueReady && value == 0) {
    stop_queue();
    return;
  }
  if ((state_.status & (kFeaturesOk | kDriverOk)) != kFeaturesOk || has_failed()) {
    return;
  }
  MmioQueueRegisters& queue = state_.queues[state_.queue_select];
  if (queue.ready) {
    return;
  }
  switch (offset) {
    case kQueueReady:
      queue.ready = value == 1;
      return;
    case kQueueSize:
      queue.size = value;
      return;
    case kQueueDescLow:
      set_low(queue.descriptor_table, value);
      return;
    case kQueueDescHigh:
      set_high(queue.descriptor_table, value);
      return;
    case kQueueDriverLow:
      set_low(queue.available_ring, value);
      return;
    case kQueueDriverHigh:
      set_high(queue.available_ring, value);
      return;
    case kQueueDeviceLow:
      set_low(queue.used_ring, value);
      return;
    case kQueueDeviceHigh:
      set_high(queue.used_ring, value);
      return;
    default:
      return;
  }
}

void MmioTransport::stop_queue() {
  MmioQueueRegisters& queue = state_.queues[state_.queue_select];
  if (queue.ready && (state_.status & kDriverOk) != 0) {
    device_.stop_queue(state_.queue_select);
  }
  queue.ready = false;
}

void MmioTransport::write_status(std::uint32_t value) {
  if (value == 0) {
    reset();
    return;
  }
  constexpr std::uint32_t kOfDriver = kAcknowledge | kDriver | kFeaturesOk | kDriverOk | kFailed;
  if ((state_.status & kOfDriver & ~value) != 0) {
    LOG_WARN_LIMITED("%.*s: the driver clears status bits: %s to %s", static_cast<int>(device_.name().size()),
                     device_.name().data(), hex(state_.status).c_str(), hex(value).c_str());
    return;
  }
  state_.status |= value & (kAcknowledge | kFailed);
  if ((value & kDriver) != 0 && (state_.status & kAcknowledge) != 0) {
    state_.status |= kDriver;
  }
  if (has_failed()) {
    return;
  }
  const bool newly_features_ok = (value & ~state_.status & kFeaturesOk) != 0;
  if (newly_features_ok && (state_.status & kDriver) != 0 && accepts_features()) {
    state_.status |= kFeaturesOk;
    device_.features_accepted(state_.driver_features);
  }
  const bool newly_driver_ok = (value & ~state_.status & kDriverOk) != 0;
  if (newly_driver_ok && (state_.status & kFeaturesOk) != 0) {
    state_.status |= kDriverOk;
    activate();
  }
}

bool MmioTransport::accepts_features() const {
  const std::uint64_t unknown = state_.driver_features & ~offered_features();
  if (unknown != 0 || state_.unknown_features) {
    LOG_WARN_LIMITED("%.*s: the driver accepts features that were not offered: %s",
                     static_cast<int>(device_.name().size()), device_.name().data(),
                     state_.unknown_features ? "some past bit 63" : hex(unknown).c_str());
    return false;
  }
  return (state_.driver_features & kFeatureVersion1) != 0;
}

Result<VirtioActivation> MmioTransport::make_queues(
    const MmioTransportState& state, std::span<const std::optional<VirtQueueState>> progress) const {
  VirtioActivation activation{.features = state.driver_features, .queues = {}};
  for (std::size_t index = 0; index < state.queues.size(); ++index) {
    const MmioQueueRegisters& registers = state.queues[index];
    auto& queue = activation.queues.emplace_back();
    if (!registers.ready) {
      continue;
    }
    auto created =
        registers.size > device_.queue_limits()[index]
            ? fail(ErrorCode::kInvalidArgument,
                   "it has " + std::to_string(registers.size) + " entries, more than the device can do")
            : VirtQueue::create(
                  memory_,
                  {.size = registers.size,
                   .descriptor_table = GuestAddress(registers.descriptor_table),
                   .available_ring = GuestAddress(registers.available_ring),
                   .used_ring = GuestAddress(registers.used_ring),
                   .event_index = (state.driver_features & kFeatureEventIndex) != 0,
                   .indirect = (state.driver_features & kFeatureIndirectDesc) != 0},
                  index < progress.size() ? progress[index].value_or(VirtQueueState{}) : VirtQueueState{});
    if (!created) {
      return tl::make_unexpected(created.error().within("queue " + std::to_string(index)));
    }
    queue.emplace(std::move(*created));
  }
  return activation;
}

void MmioTransport::activate() {
  auto activation = make_queues(state_, {});
  if (!activation) {
    device_.activation_failed();
    needs_reset(activation.error().message());
    return;
  }
  device_.activate(std::move(*activation));
  process_later();
}

void MmioTransport::reset() {
  device_.reset();
  MmioTransportState fresh;
  for (const std::uint16_t limit : device_.queue_limits()) {
    fresh.queues.push_back({.size = limit});
  }
  fresh.generation = state_.generation;
  state_ = std::move(fresh);
  interrupt_status().store(0);
}

MmioTransportState MmioTransport::state() {
  const MutexLock lock(device_.mutex());
  MmioTransportState state = state_;
  state.interrupt_status = interrupt_status().load();
  return state;
}

// A saved state comes from a file, which may be damaged or made up: what write_register() would not have let
// come about is refused.
Result<void> MmioTransport::check(const MmioTransportState& state) const {
  const auto wrong = [](const std::string& what) { return fail(ErrorCode::kInvalidArgument, what); };
  constexpr std::uint32_t kKnown =
      kAcknowledge | kDriver | kFeaturesOk | kDriverOk | kDeviceNeedsReset | kFailed;
  const auto has = [&state](std::uint32_t bit) { return (state.status & bit) != 0; };
  if ((state.status & ~kKnown) != 0 || (has(kDriver) && !has(kAcknowledge)) ||
      (has(kFeaturesOk) && !has(kDriver)) || (has(kDriverOk) && !has(kFeaturesOk))) {
    return wrong("there is no status " + hex(state.status));
  }
  if ((state.interrupt_status & ~(kUsedBuffers | kConfigurationChanged)) != 0) {
    return wrong("there are no interrupts " + hex(state.interrupt_status));
  }
  if (has(kFeaturesOk)) {
    const std::uint64_t missing = state.driver_features & ~offered_features();
    if (missing != 0 || state.unknown_features) {
      return wrong("its driver uses features that the device does not offer here: " +
                   (state.unknown_features ? std::string("some past bit 63") : hex(missing)));
    }
    if ((state.driver_features & kFeatureVersion1) == 0) {
      return wrong("its driver is none of virtio 1");
    }
  }
  if (state.queues.size() != device_.queue_limits().size()) {
    return wrong("there are " + std::to_string(state.queues.size()) + " queues, and the device has " +
                 std::to_string(device_.queue_limits().size()));
  }
  if (!has(kFeaturesOk) && std::ranges::any_of(state.queues, &MmioQueueRegisters::ready)) {
    return wrong("a queue is ready before FEATURES_OK");
  }
  return {};
}

Result<void> MmioTransport::restore(const MmioTransportState& state,
                                    std::span<const std::optional<VirtQueueState>> queues) {
  const MutexLock lock(device_.mutex());
  MAYFLY_CHECK(state_.status == 0, "a transport is restored before any driver uses it");
  const auto within = [this](const Error& error) {
    return error.within(std::string(device_.name()) + ": restore its transport");
  };
  MAYFLY_TRY(check(state).map_error(within));
  // One that needs a reset touches no queue until then.
  const bool live = (state.status & (kDriverOk | kDeviceNeedsReset)) == kDriverOk;
  VirtioActivation activation;
  if (live) {
    for (std::size_t index = 0; index < state.queues.size(); ++index) {
      if (state.queues[index].ready != (index < queues.size() && queues[index].has_value())) {
        return tl::make_unexpected(
            within(Error(ErrorCode::kInvalidArgument,
                         "queue " + std::to_string(index) +
                             (state.queues[index].ready ? " is in use, but how far it had come is not said"
                                                        : " is not in use, but had come somewhere"))));
      }
    }
    MAYFLY_TRY_ASSIGN(activation, make_queues(state, queues).map_error(within));
  }
  state_ = state;
  interrupt_status().store(state.interrupt_status);
  if (live) {
    device_.activate(std::move(activation));
    process_later();
  }
  show_registers();
  show_configuration();
  if (state.interrupt_status != 0) {
    line_.trigger();
  }
  return {};
}

void MmioTransport::doorbell_rang() {
  // Emptied before the queues are looked at: a doorbell from then on is one more.
  std::uint64_t count = 0;
  if (::read(doorbell_.get(), &count, sizeof(count)) != sizeof(count)) {
    return;  // somebody was here in between: nothing to do
  }
  const MutexLock lock(device_.mutex());
  device_.process();
}

void MmioTransport::process_later() noexcept {
  // Fails only where the counter is full (2^64 - 2), and then it is readable.
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(doorbell_.get(), &one, sizeof(one));
}

void MmioTransport::used_buffers() noexcept {
  interrupt(kUsedBuffers);
}

void MmioTransport::configuration_changed() noexcept {
  // Once before the fields change and once after: a driver that reads a part of them meanwhile finds another
  // generation at its end than at its beginning (4.2.2.2), unless both fall between the two; then the
  // interrupt makes it read again.
  ++state_.generation;
  show_registers();
  show_configuration();
  ++state_.generation;
  show_registers();
  if ((state_.status & kDriverOk) != 0) {
    interrupt(kConfigurationChanged);
  }
}

void MmioTransport::needs_reset(std::string_view why) noexcept {
  LOG_WARN_LIMITED("%.*s: needs a reset by its driver: %.*s", static_cast<int>(device_.name().size()),
                   device_.name().data(), static_cast<int>(why.size()), why.data());
  device_.report_error(why);
  state_.status |= kDeviceNeedsReset;
  show_registers();
  if ((state_.status & kDriverOk) != 0) {
    interrupt(kConfigurationChanged);
  }
}

void MmioTransport::interrupt(std::uint32_t reason) noexcept {
  (reason == kUsedBuffers ? metrics().interrupts.triggers : metrics().interrupts.config_updates).add();
  interrupt_status().fetch_or(reason);
  line_.trigger();
}

}  // namespace mayfly
