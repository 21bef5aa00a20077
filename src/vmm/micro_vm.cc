#include "vmm/micro_vm.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/clock.h"
#include "base/line_sink.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/mutex.h"

namespace mayfly {
namespace {

// Where `id` is among the configured, or the end.
template <typename Config>
std::size_t find(const std::vector<Config>& list, std::string_view id) {
  const auto found =
      std::find_if(list.begin(), list.end(), [&](const Config& each) { return each.id == id; });
  return static_cast<std::size_t>(std::distance(list.begin(), found));
}

void merge(RateLimiterConfig& config, const RateLimiterConfig& changes) {
  const auto take = [](std::optional<TokenBucketConfig>& bucket,
                       const std::optional<TokenBucketConfig>& change) {
    if (change) {
      bucket = change->limits() ? change : std::nullopt;
    }
  };
  take(config.bandwidth, changes.bandwidth);
  take(config.ops, changes.ops);
}

}  // namespace

MicroVm::MicroVm(MicroVmSurroundings surroundings)
    : around_(std::move(surroundings)), events_(around_.on_event) {}

void MicroVm::Events::tell(MicroVmEvent::Kind kind, std::string detail) {
  if (!sink_) {
    return;
  }
  const MutexLock lock(mutex_);
  sink_({.kind = kind, .time_us = realtime_ns() / 1000, .detail = std::move(detail)});
  holding_ = kind == MicroVmEvent::Kind::kStarting || kind == MicroVmEvent::Kind::kStartFailed;
  if (kind == MicroVmEvent::Kind::kRunning) {
    std::for_each(held_.begin(), held_.end(), sink_);
  }
  held_.clear();
}

void MicroVm::Events::tell_of_guest(MicroVmEvent::Kind kind, std::string device, std::string_view detail) {
  if (!sink_) {
    return;
  }
  MicroVmEvent event{.kind = kind,
                     .time_us = realtime_ns() / 1000,
                     .detail = std::string(detail),
                     .device = std::move(device)};
  const MutexLock lock(mutex_);
  if (holding_) {
    held_.push_back(std::move(event));
  } else {
    sink_(event);
  }
}

MicroVm::State MicroVm::state() const {
  if (!machine_ || machine_->state() == Machine::State::kNotStarted) {
    return State::kNotStarted;
  }
  return machine_->state() == Machine::State::kPaused ? State::kPaused : State::kRunning;
}

Result<void> MicroVm::expect_not_started() const {
  if (state() != State::kNotStarted) {
    return fail(ErrorCode::kBusy, "the microVM has been started already");
  }
  return {};
}

Result<void> MicroVm::expect_started() const {
  if (state() == State::kNotStarted) {
    return fail(ErrorCode::kBusy, "the microVM has not been started");
  }
  return {};
}

Result<void> MicroVm::put_machine_config(const MachineConfig& machine) {
  MAYFLY_TRY(expect_not_started());
  MAYFLY_TRY(machine.validate());
  config_.machine = machine;
  return {};
}

Result<void> MicroVm::put_boot_source(BootSourceConfig boot_source) {
  MAYFLY_TRY(expect_not_started());
  const TracePhase phase(around_.trace, "open images");
  MAYFLY_TRY_ASSIGN(files_, GuestFiles::open(boot_source));
  config_.boot_source = std::move(boot_source);
  return {};
}

Result<std::unique_ptr<BlockDevice>> MicroVm::open(const BlockDeviceConfig& drive) {
  return BlockDevice::create(drive, around_.registrar);
}

Result<std::unique_ptr<NetDevice>> MicroVm::open(const NetDeviceConfig& network) {
  MAYFLY_TRY_ASSIGN(auto backend, network.open_backend());
  return NetDevice::create(network.settings(), std::move(backend), around_.registrar);
}

template <typename Config, typename Device>
Result<void> MicroVm::put_device(std::vector<Config> VmConfig::*list,
                                 std::vector<std::unique_ptr<Device>>& devices, Config config) {
  MAYFLY_TRY(expect_not_started());
  const TracePhase phase(around_.trace, "open a drive or network");
  VmConfig wanted = config_;
  const std::size_t index = find(wanted.*list, config.id);
  const bool replaces = index < (wanted.*list).size();
  if (replaces) {
    (wanted.*list)[index] = config;
  } else {
    (wanted.*list).push_back(config);
  }
  MAYFLY_TRY(wanted.validate_devices());
  auto device = open(config);
  if (!device && replaces && device.error().code() == ErrorCode::kBusy) {
    // It may be the former device of this id that holds the image or the tap.
    devices[index].reset();
    device = open(config);
    if (!device) {
      auto former = open((config_.*list)[index]);
      if (!former) {
        const auto place = static_cast<std::ptrdiff_t>(index);
        devices.erase(devices.begin() + place);
        (config_.*list).erase((config_.*list).begin() + place);
        return fail(device.error().code(),
                    device.error().message() +
                        "; what was configured before is gone, too: " + former.error().message());
      }
      devices[index] = std::move(*former);
    }
  }
  if (!device) {
    return tl::make_unexpected(std::move(device.error()));
  }
  if (replaces) {
    devices[index] = std::move(*device);
  } else {
    devices.push_back(std::move(*device));
  }
  config_ = std::move(wanted);
  return {};
}

Result<void> MicroVm::put_drive(BlockDeviceConfig drive) {
  return put_device(&VmConfig::drives, drives_, std::move(drive));
}

Result<void> MicroVm::put_network(NetDeviceConfig network) {
  return put_device(&VmConfig::networks, networks_, std::move(network));
}

Result<void> MicroVm::put_serial(const SerialConfig& serial) {
  MAYFLY_TRY(expect_not_started());
  if (serial.rate_limiter && serial.rate_limiter->limits()) {
    if (auto valid = TokenBucket::create(*serial.rate_limiter, 0); !valid) {
      return tl::make_unexpected(valid.error().within("serial"));
    }
  }
  UniqueFd output;
  if (serial.output_path) {
    MAYFLY_TRY_ASSIGN(output, open_line_file(*serial.output_path, "serial output"));
  }
  serial_output_ = std::move(output);
  serial_rate_limiter_ = serial.rate_limiter;
  return {};
}

Result<void> MicroVm::put_cpu_template(std::optional<arch::CpuTemplate> cpu_template) {
  MAYFLY_TRY(expect_not_started());
  if (cpu_template) {
    if (auto valid = cpu_template->validate(); !valid) {
      return tl::make_unexpected(valid.error().within("cpu-config"));
    }
  }
  config_.cpu_template = std::move(cpu_template);
  return {};
}

// The root drive comes first: it is the guest's /dev/vda.
std::vector<VirtioDevice*> MicroVm::devices_in_order() const {
  std::vector<VirtioDevice*> devices;
  for (const bool root : {true, false}) {
    for (std::size_t index = 0; index < drives_.size(); ++index) {
      if (config_.drives[index].is_root == root) {
        devices.push_back(drives_[index].get());
      }
    }
  }
  for (const auto& network : networks_) {
    devices.push_back(network.get());
  }
  return devices;
}

Result<void> MicroVm::open_console() {
  ConsoleConfig config = around_.console;
  if (serial_output_) {
    config.output = serial_output_.get();
  }
  config.rate_limiter = serial_rate_limiter_;
  MAYFLY_TRY_ASSIGN(console_, Console::create(around_.registrar, std::move(config), around_.serial_metrics));
  return {};
}

// What the guest's boot mark leads to; time runs from now. Nothing where nobody asks.
std::function<void()> MicroVm::on_boot_mark() {
  std::function<void()> tell;
  if (events_) {
    tell = [this] { events_.tell_of_guest(MicroVmEvent::Kind::kBootMark); };
  }
  if (!around_.boot_timer) {
    return tell;
  }
  return [then = std::move(tell), begin_ns = monotonic_ns(), begin_cpu_ns = process_cpu_ns()] {
    const auto us = static_cast<unsigned long long>((monotonic_ns() - begin_ns) / 1000);
    const auto cpu_us = static_cast<unsigned long long>((process_cpu_ns() - begin_cpu_ns) / 1000);
    // Read by tools.
    LOG_INFO("Guest-boot-time = %6llu us %llu ms, %6llu CPU us %llu CPU ms", us, us / 1000, cpu_us,
             cpu_us / 1000);
    if (then) {
      then();
    }
  };
}

tl::expected<void, BuildError> MicroVm::start() {
  MAYFLY_TRY(expect_not_started());
  if (!files_) {
    return tl::make_unexpected(BuildError::of_configuration(
        Error(ErrorCode::kInvalidArgument, "there is no boot source: no kernel to start")));
  }
  events_.tell(MicroVmEvent::Kind::kStarting);
  auto started = start_machine();
  if (started) {
    events_.tell(MicroVmEvent::Kind::kRunning);
  } else {
    events_.tell(MicroVmEvent::Kind::kStartFailed, started.error().error.message());
  }
  return started;
}

tl::expected<void, BuildError> MicroVm::start_machine() {
  auto on_boot_mark = this->on_boot_mark();
  MAYFLY_TRY(open_console());
  const std::vector<VirtioDevice*> devices = devices_in_order();
  for (VirtioDevice* device : devices) {
    device->watch_errors([this, name = std::string(device->name())](std::string_view why) {
      events_.tell_of_guest(MicroVmEvent::Kind::kDeviceError, name, why);
    });
  }
  auto built = Machine::build(config_, {*files_, devices},
                              {.registrar = around_.registrar,
                               .console = *console_,
                               .serial_metrics = around_.serial_metrics,
                               .trace = around_.trace,
                               .on_outcome = around_.on_outcome,
                               .on_boot_mark = std::move(on_boot_mark)});
  const auto undo = [this](BuildError error) {
    machine_.reset();
    console_.reset();
    return tl::make_unexpected(std::move(error));
  };
  if (!built) {
    return undo(std::move(built.error()));
  }
  machine_ = std::move(*built);
  if (auto ready = around_.before_start ? around_.before_start() : Result<void>{}; !ready) {
    return undo(std::move(ready.error()));
  }
  if (auto wired = console_->start_input(machine_->serial()); !wired) {
    return undo(std::move(wired.error()));
  }
  if (auto started = machine_->start(); !started) {
    console_->stop_input();
    return undo(std::move(started.error()));
  }
  files_.reset();
  return {};
}

Result<void> MicroVm::pause() {
  MAYFLY_TRY(expect_started());
  const bool changes = state() != State::kPaused;
  MAYFLY_TRY(machine_->pause());
  if (changes) {
    events_.tell(MicroVmEvent::Kind::kPaused);
  }
  return {};
}

Result<void> MicroVm::resume() {
  MAYFLY_TRY(expect_started());
  const bool changes = state() == State::kPaused;
  if (changes) {
    // First: what the guest does next is told after it. A machine that is paused can be resumed.
    events_.tell(MicroVmEvent::Kind::kResumed);
  }
  return machine_->resume();
}

Result<void> MicroVm::patch_drive(const DriveChanges& changes) {
  MAYFLY_TRY(expect_started());
  const std::size_t index = find(config_.drives, changes.id);
  if (index == config_.drives.size()) {
    return fail(ErrorCode::kNotFound, "there is no drive \"" + changes.id + "\"");
  }
  BlockDeviceConfig& config = config_.drives[index];
  BlockDevice& device = *drives_[index];
  const MutexLock lock(device.mutex());
  // The limits are checked first and are the last to be set: the image is what can fail for reasons of the
  // host.
  if (changes.rate_limiter) {
    MAYFLY_TRY(RateLimiter().update(*changes.rate_limiter, 0));
  }
  if (changes.path) {
    MAYFLY_TRY(device.update_backing(*changes.path));
    config.path = *changes.path;
  }
  if (changes.rate_limiter) {
    MAYFLY_TRY(device.update_rate_limiter(*changes.rate_limiter));
    merge(config.rate_limiter, *changes.rate_limiter);
  }
  return {};
}

Result<void> MicroVm::patch_network(const NetworkChanges& changes) {
  MAYFLY_TRY(expect_started());
  const std::size_t index = find(config_.networks, changes.id);
  if (index == config_.networks.size()) {
    return fail(ErrorCode::kNotFound, "there is no network interface \"" + changes.id + "\"");
  }
  NetDeviceConfig& config = config_.networks[index];
  NetDevice& device = *networks_[index];
  const RateLimiterConfig rx = changes.rx_rate_limiter.value_or(RateLimiterConfig{});
  const RateLimiterConfig tx = changes.tx_rate_limiter.value_or(RateLimiterConfig{});
  const MutexLock lock(device.mutex());
  MAYFLY_TRY(device.set_rate_limits(rx, tx));
  merge(config.rx_rate_limiter, rx);
  merge(config.tx_rate_limiter, tx);
  return {};
}

Result<void> MicroVm::stop() {
  return machine_ ? machine_->stop() : Result<void>{};
}

void MicroVm::flush_console() {
  if (console_) {
    console_->stop_input();
    console_->flush();
  }
}

void MicroVm::collect_counts() {
  // Nobody else adds to these counters of the store.
  const auto bring = [](std::uint64_t now, Counter& counter) { counter.add(now - counter.value()); };
  Metrics& store = metrics();
  if (machine_) {
    const I8042Counters keyboard = machine_->i8042().counters();
    bring(keyboard.read_count, store.i8042.read_count);
    bring(keyboard.write_count, store.i8042.write_count);
    bring(keyboard.missed_read_count, store.i8042.missed_read_count);
    bring(keyboard.missed_write_count, store.i8042.missed_write_count);
    bring(keyboard.error_count, store.i8042.error_count);
    bring(keyboard.reset_count, store.i8042.reset_count);
  }
  const SerialMetrics& serial = around_.serial_metrics;
  bring(serial.error_count, store.uart.error_count);
  bring(serial.flush_count, store.uart.flush_count);
  bring(serial.missed_read_count, store.uart.missed_read_count);
  bring(serial.missed_write_count, store.uart.missed_write_count);
  bring(serial.read_count, store.uart.read_count);
  bring(serial.write_count, store.uart.write_count);
  bring(serial.lost_bytes, store.uart.rate_limiter_dropped_bytes);
  bring(serial.lost_input_bytes, store.uart.lost_input_bytes);
}

}  // namespace mayfly
