#include "vmm/micro_vm.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/clock.h"
#include "base/line_sink.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/mutex.h"
#include "base/same_file.h"
#include "mmds/mmds_backend.h"
#include "vmm/saved_config.h"

namespace mayfly {
namespace {

// Where `id` is among the configured, or the end.
template <typename Config>
std::size_t find(const std::vector<Config>& list, std::string_view id) {
  const auto found =
      std::find_if(list.begin(), list.end(), [&](const Config& each) { return each.id == id; });
  return static_cast<std::size_t>(std::distance(list.begin(), found));
}

// For who named one that is not there.
template <typename Config>
std::string ids_of(const std::vector<Config>& list) {
  std::string ids;
  for (const Config& each : list) {
    ids.append(ids.empty() ? "; there are: " : ", ").append(each.id);
  }
  return ids.empty() ? ", nor any other" : ids;
}

// Where the one of that id is, which has to be there; `what` is what the error calls it.
template <typename Config>
Result<std::size_t> find_configured(const std::vector<Config>& list, const std::string& id,
                                    const char* what) {
  const std::size_t index = find(list, id);
  if (index == list.size()) {
    return fail(ErrorCode::kNotFound, std::string("there is no ") + what + " \"" + id + "\"" + ids_of(list));
  }
  return index;
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

// Whether the one cannot be opened while the other, which failed with `error`, is there.
bool may_exclude(const BlockDeviceConfig& /*one*/, const BlockDeviceConfig& /*other*/, ErrorCode error) {
  return error == ErrorCode::kBusy;
}
bool may_exclude(const NetDeviceConfig& one, const NetDeviceConfig& other, ErrorCode error) {
  const auto* user = std::get_if<UserNetConfig>(&one.backend);
  const auto* former = std::get_if<UserNetConfig>(&other.backend);
  if (user == nullptr || former == nullptr) {
    return error == ErrorCode::kBusy;
  }
  return std::ranges::any_of(user->forwards, [former](const PortForward& forward) {
    return std::ranges::any_of(former->forwards, [&forward](const PortForward& held) {
      return held.host_port == forward.host_port && held.protocol == forward.protocol;
    });
  });
}

// Whether the metadata service is in front of the interface, and at which address.
std::optional<Ipv4Address> service_on(const std::optional<MmdsConfig>& mmds, const std::string& id) {
  const bool named = mmds && std::ranges::count(mmds->network_interfaces, id) != 0;
  return named ? std::optional(mmds->ipv4_address) : std::nullopt;
}

}  // namespace

MicroVm::MicroVm(MicroVmSurroundings surroundings)
    : around_(std::move(surroundings)),
      events_(around_.on_event),
      mmds_(std::make_shared<Mmds>(around_.mmds_size_limit)) {}

void MicroVm::Events::tell(MicroVmEvent::Kind kind, std::string detail) {
  if (!sink_) {
    return;
  }
  const MutexLock lock(mutex_);
  std::uint64_t time_us = realtime_ns() / 1000;
  if (kind == MicroVmEvent::Kind::kRunning && !held_.empty()) {
    time_us =
        std::min(time_us, held_.front().time_us);  // the guest was faster than we are in saying that it runs
  }
  sink_({.kind = kind, .time_us = time_us, .detail = std::move(detail)});
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
  machine_is_put_ = true;
  return {};
}

Result<void> MicroVm::put_boot_source(BootSourceConfig boot_source) {
  MAYFLY_TRY(expect_not_started());
  const TracePhase phase(around_.trace, "open images");
  VmConfig wanted = config_;
  wanted.boot_source = boot_source;
  MAYFLY_TRY(check_inputs(wanted));
  MAYFLY_TRY_ASSIGN(files_, GuestFiles::open(boot_source));
  config_.boot_source = std::move(boot_source);
  return {};
}

Result<std::unique_ptr<BlockDevice>> MicroVm::open(const BlockDeviceConfig& drive) {
  return BlockDevice::create(drive, around_.registrar);
}

Result<std::unique_ptr<NetDevice>> MicroVm::open(const NetDeviceConfig& network) {
  MAYFLY_TRY_ASSIGN(auto backend, network.open_backend());
  const NetDeviceSettings settings = network.settings();
  if (const auto address = service_on(config_.mmds, network.id)) {
    ResponderSettings responder{.address = *address};
    responder.mtu = settings.mtu.value_or(responder.mtu);
    backend = with_mmds(std::move(backend), mmds_, responder);
  }
  return NetDevice::create(settings, std::move(backend), around_.registrar);
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
  MAYFLY_TRY(check_inputs(wanted));
  auto device = open(config);
  if (!device && replaces && may_exclude(config, (config_.*list)[index], device.error().code())) {
    // It may be the former device of this id that holds the image, the tap or the port.
    devices[index].reset();
    device = open(config);
    if (!device) {
      auto former = open((config_.*list)[index]);
      if (!former) {
        const auto place = static_cast<std::ptrdiff_t>(index);
        devices.erase(devices.begin() + place);
        (config_.*list).erase((config_.*list).begin() + place);
        if (config_.mmds) {
          std::erase(config_.mmds->network_interfaces, config.id);
        }
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
    MAYFLY_TRY(check_output("the serial port's output", *serial.output_path));
    MAYFLY_TRY_ASSIGN(output, open_line_file(*serial.output_path, "serial output"));
    note_output("the serial port's output", *serial.output_path);
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

Result<void> MicroVm::reopen_networks(const std::optional<MmdsConfig>& one,
                                      const std::optional<MmdsConfig>& other) {
  for (std::size_t index = 0; index < networks_.size(); ++index) {
    const NetDeviceConfig& network = config_.networks[index];
    if (service_on(one, network.id) != service_on(other, network.id)) {
      networks_[index].reset();
      MAYFLY_TRY_ASSIGN(networks_[index], open(network));
    }
  }
  return {};
}

Result<void> MicroVm::check_output(const std::string& role, const std::string& path) const {
  for (const std::string& file : snapshot_files_) {
    if (same_file(path, file)) {
      return fail(ErrorCode::kInvalidArgument, std::string(path)
                                                   .append(": is a file of the snapshot, which ")
                                                   .append(role)
                                                   .append(" would overwrite"));
    }
  }
  return check_no_input(role, path);
}

Result<void> MicroVm::check_no_input(const std::string& role, const std::string& path) const {
  const auto refuse_if = [&](const std::string& input, const std::string& what) -> Result<void> {
    if (same_file(path, input)) {
      return fail(ErrorCode::kInvalidArgument,
                  path + ": is " + what + ", which " + role + " would overwrite");
    }
    return {};
  };
  MAYFLY_TRY(refuse_if(config_.boot_source.kernel_image_path, "the kernel image"));
  MAYFLY_TRY(refuse_if(config_.boot_source.initrd_path.value_or(""), "the initrd"));
  for (const BlockDeviceConfig& drive : config_.drives) {
    MAYFLY_TRY(refuse_if(drive.path, "the image of drive " + drive.id));
    if (drive.overlay && drive.overlay->path) {
      MAYFLY_TRY(refuse_if(*drive.overlay->path, "the overlay of drive " + drive.id));
    }
  }
  return {};
}

void MicroVm::note_output(const std::string& role, const std::string& path) {
  outputs_[role] = path;
}

// What is wanted, seen from the outputs.
Result<void> MicroVm::check_inputs(const VmConfig& wanted) const {
  std::vector<std::string> inputs = {wanted.boot_source.kernel_image_path,
                                     wanted.boot_source.initrd_path.value_or("")};
  for (const BlockDeviceConfig& drive : wanted.drives) {
    inputs.push_back(drive.path);
    inputs.push_back(drive.overlay ? drive.overlay->path.value_or("") : "");
  }
  for (const std::string& file : snapshot_files_) {
    for (const std::string& input : inputs) {
      if (same_file(file, input)) {
        return fail(ErrorCode::kInvalidArgument, std::string(input).append(": is a file of the snapshot"));
      }
    }
  }
  for (const auto& [role, path] : outputs_) {
    for (const std::string& input : inputs) {
      if (same_file(path, input)) {
        return fail(ErrorCode::kInvalidArgument,
                    std::string(input).append(": is written to by ").append(role));
      }
    }
  }
  return {};
}

Result<void> MicroVm::put_mmds_config(const MmdsConfig& mmds) {
  MAYFLY_TRY(expect_not_started());
  std::vector<std::string> ids;
  for (const NetDeviceConfig& network : config_.networks) {
    ids.push_back(network.id);
  }
  MAYFLY_TRY(mmds.validate(ids));
  const auto former = std::exchange(config_.mmds, mmds);
  if (auto opened = reopen_networks(former, mmds); !opened) {
    config_.mmds = former;
    if (auto again = reopen_networks(former, mmds); !again) {
      config_.networks.clear();
      config_.mmds.reset();
      networks_.clear();
      return fail(
          opened.error().code(),
          opened.error().message() + "; all network interfaces are gone, too: " + again.error().message());
    }
    return opened;
  }
  mmds_->configure(mmds);
  return {};
}

std::vector<VirtioDevice*> MicroVm::devices_in_order() const {
  const DeviceSlots slots = device_slots(config_);
  std::vector<VirtioDevice*> devices(drives_.size() + networks_.size());
  for (std::size_t index = 0; index < drives_.size(); ++index) {
    devices.at(slots.drives[index]) = drives_[index].get();
  }
  for (std::size_t index = 0; index < networks_.size(); ++index) {
    devices.at(slots.networks[index]) = networks_[index].get();
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
        Error(ErrorCode::kInvalidArgument,
              "there is no boot source, and so no kernel to start: PUT /boot-source first")));
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

// The vCPUs first: once the owner is confined there is no way back to a start that can be tried again.
Result<void> MicroVm::confine() {
  MAYFLY_TRY(machine_->wait_ready());
  if (around_.host_kvm != nullptr) {
    around_.host_kvm->end();  // whose threads have no filter
  }
  if (userfault_ && around_.expect_pages_brought) {
    MAYFLY_TRY(around_.expect_pages_brought());
  }
  return around_.confine_owner ? around_.confine_owner() : Result<void>();
}

void MicroVm::take_down() {
  if (console_) {
    console_->stop_input();
  }
  ledger_.reset();
  prefetcher_.reset();
  recorded_ = {};
  machine_.reset();
  userfault_.reset();
  console_.reset();
  if (around_.start_failed) {
    around_.start_failed();
  }
}

tl::expected<void, BuildError> MicroVm::bring_up(const Make& make) {
  auto on_boot_mark = this->on_boot_mark();
  MAYFLY_TRY(open_console());
  const std::vector<VirtioDevice*> devices = devices_in_order();
  for (VirtioDevice* device : devices) {
    device->watch_errors([this, name = std::string(device->name())](std::string_view why) {
      events_.tell_of_guest(MicroVmEvent::Kind::kDeviceError, name, why);
    });
  }
  open_page_map();
  MAYFLY_TRY_ASSIGN(machine_, make(devices, {.registrar = around_.registrar,
                                             .console = *console_,
                                             .serial_metrics = around_.serial_metrics,
                                             .trace = around_.trace,
                                             .on_outcome = around_.on_outcome,
                                             .on_boot_mark = std::move(on_boot_mark),
                                             .confine_vcpu = around_.confine_vcpu,
                                             .host_kvm = around_.host_kvm}));
  if (config_.machine.track_dirty_pages) {
    // Nothing runs yet, and the filters to come do not allow it.
    MAYFLY_TRY(machine_->dirty_log().start());
    ledger_.emplace(machine_->memory(), machine_->dirty_log());
  }
  MAYFLY_TRY(around_.before_start ? around_.before_start() : Result<void>{});
  MAYFLY_TRY(console_->start_input(machine_->serial()));
  MAYFLY_TRY(confine());
  return {};
}

void MicroVm::open_page_map() {
  if (!around_.snapshots || page_map_) {
    return;
  }
  // Without it all of memory is read for a snapshot, which takes longer and is as good.
  if (auto pages = PageMap::open()) {
    page_map_.emplace(std::move(*pages));
  } else {
    LOG_DEBUG("%s", pages.error().message().c_str());
  }
}

tl::expected<void, BuildError> MicroVm::start_machine() {
  auto up = bring_up([this](std::span<VirtioDevice* const> devices, MachineSurroundings surroundings) {
    return Machine::build(config_, {*files_, devices}, std::move(surroundings));
  });
  if (up) {
    if (auto started = machine_->start(); !started) {
      up = tl::make_unexpected(BuildError(std::move(started.error())));
    }
  }
  if (!up) {
    take_down();
    return up;
  }
  files_.reset();
  LOG_INFO("running: %u vCPUs, %llu MiB of memory", config_.machine.vcpu_count,
           static_cast<unsigned long long>(config_.machine.mem_size_mib));
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

Result<void> MicroVm::send_ctrl_alt_del() {
  MAYFLY_TRY(expect_started());
  return machine_->request_shutdown();
}

Result<void> MicroVm::patch_drive(const DriveChanges& changes) {
  MAYFLY_TRY(expect_started());
  MAYFLY_TRY_ASSIGN(const std::size_t index, find_configured(config_.drives, changes.id, "drive"));
  BlockDeviceConfig& config = config_.drives[index];
  BlockDevice& device = *drives_[index];
  const MutexLock lock(device.mutex());
  // The limits are checked first and are the last to be set: the image is what can fail for reasons of the
  // host.
  if (changes.rate_limiter) {
    if (auto valid = RateLimiter().update(*changes.rate_limiter, 0); !valid) {
      return tl::make_unexpected(valid.error().within("drive " + changes.id));
    }
  }
  if (changes.path) {
    VmConfig wanted = config_;
    wanted.drives[index].path = *changes.path;
    MAYFLY_TRY(check_inputs(wanted));
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
  MAYFLY_TRY_ASSIGN(const std::size_t index,
                    find_configured(config_.networks, changes.id, "network interface"));
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
