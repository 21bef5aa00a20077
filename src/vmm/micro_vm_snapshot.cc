// Snapshots of a microVM: taken of one that is paused, and one that goes on from there.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>
#include <variant>

#include "base/check.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/same_file.h"
#include "devices/vmgenid/vmgenid.h"
#include "memory/memory_file.h"
#include "snapshot/micro_vm_state.h"
#include "vmm/arch.h"
#include "vmm/micro_vm.h"
#include "vmm/saved_config.h"

namespace mayfly {
namespace {

constexpr const char* kStateRole = "the snapshot's state file";
constexpr const char* kMemoryRole = "the snapshot's memory file";
constexpr const char* kWorkingSetRole = "working set";

// The handler that listens at `path`.
Result<UniqueFd> connect_to_handler(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return fail(ErrorCode::kInvalidArgument, "page fault handler " + path + ": a socket's path has 1 to " +
                                                 std::to_string(sizeof(address.sun_path) - 1) + " bytes");
  }
  path.copy(address.sun_path, path.size());
  // Who does not take connections must not hold up this thread.
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) {
    return fail_errno(errno, "make a socket for the page fault handler");
  }
  // SAFETY: the sockets interface takes every kind of address by this type.
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return fail_errno(errno, "connect to the page fault handler at " + path);
  }
  return socket;
}

Result<WorkingSet> open_working_set(const std::string& path, const WorkingSetOwner& owner) {
  MAYFLY_TRY_ASSIGN(const UniqueFd file, open_file(path, O_RDONLY | O_NONBLOCK, kWorkingSetRole));
  return WorkingSet::read({file, std::string(kWorkingSetRole) + " " + path}, owner);
}

// By what a working set knows its snapshot. 0: of one that has no mark.
std::uint64_t identity_of(const std::optional<SnapshotMark>& mark) {
  std::uint64_t identity = 0;
  if (mark) {
    std::memcpy(&identity, mark->data(), sizeof(identity));
  }
  return identity;
}

template <typename Config>
Result<Config*> find_overridden(std::vector<Config>& list, const std::string& id, const char* what) {
  const auto found = std::ranges::find(list, id, &Config::id);
  if (found == list.end()) {
    std::string known;
    for (const Config& config : list) {
      known.append(known.empty() ? "; it has: " : ", ").append(config.id);
    }
    return fail(ErrorCode::kInvalidArgument,
                std::string("the snapshot has no ") + what + " \"" + id + "\"" + known);
  }
  return &*found;
}

// What a guest has written to an overlay is not in the image beneath it: another one has to bring that along.
Result<void> expect_contents(const BlockDeviceConfig& saved, const BlockOverlayConfig& other) {
  struct stat file {};
  const bool is_empty = !other.path || ::stat(other.path->c_str(), &file) != 0 || file.st_size == 0;
  if (saved.overlay && saved.overlay->path && is_empty) {
    return fail(
        ErrorCode::kInvalidArgument,
        "drive " + saved.id + ": was saved with the overlay " + *saved.overlay->path +
            ", and an empty one lacks what the guest has written: name a copy of it, or another image "
            "by path_on_host as well");
  }
  return {};
}

// The original, or another copy, mostly still has what a copy is to open: `way` gives it one of its own.
auto naming_the_way(std::string way) {
  return [way = std::move(way)](const Error& error) {
    return error.code() == ErrorCode::kBusy ? Error(ErrorCode::kBusy, error.message() + ". " + way) : error;
  };
}

}  // namespace

Result<void> MicroVm::check_new_file(const char* role, const std::string& path) const {
  MAYFLY_TRY(check_no_input(role, path));
  return check_no_output(path);
}

Result<void> MicroVm::check_no_output(const std::string& path) const {
  for (const auto& [other_role, other] : outputs_) {
    if (same_file(path, other)) {
      return fail(ErrorCode::kInvalidArgument,
                  std::string(path).append(": is written to by ").append(other_role));
    }
  }
  return {};
}

Result<void> MicroVm::check_snapshot(const SnapshotRequest& request) const {
  MAYFLY_TRY(expect_started());
  if (machine_->has_ended()) {
    return fail(ErrorCode::kBusy, "the guest has ended: there is nothing left that could go on");
  }
  if (request.live && request.kind == SnapshotKind::kDiff) {
    return fail(ErrorCode::kUnsupported,
                "a live snapshot is Full: a Diff is small, and taken of a microVM that is paused");
  }
  if (request.live && !ledger_) {
    return fail(ErrorCode::kUnsupported,
                "a live snapshot needs track_dirty_pages (--track-dirty-pages of 'mayfly run' and 'mayfly "
                "restore'): in machine-config, or when a snapshot is loaded");
  }
  if (!request.live && state() != State::kPaused) {
    return fail(ErrorCode::kBusy,
                "a snapshot is taken of a microVM that is paused: PATCH /vm first, or ask for a live one");
  }
  MAYFLY_TRY(check_new_file(kStateRole, request.state_path));
  MAYFLY_TRY(check_new_file(kMemoryRole, request.memory_path));
  for (const BlockDeviceConfig& drive : config_.drives) {
    if (drive.overlay && !drive.overlay->path) {
      return fail(ErrorCode::kUnsupported, "drive " + drive.id +
                                               ": what was written to it is in memory, which a snapshot does "
                                               "not keep; give its overlay a file");
    }
  }
  return {};
}

Result<CapturedVm> MicroVm::capture(const SnapshotRequest& request) {
  MAYFLY_TRY(check_snapshot(request));
  if (state() != State::kPaused) {
    return fail(ErrorCode::kBusy, "the microVM is not paused");
  }
  if (machine_->memory().backing() == Backing::kPrivateFile) {
    // Who touches what was cut off ends the process.
    MAYFLY_TRY(check_memory_file(machine_->memory().backing_file(), machine_->memory().size(),
                                 std::string(kLoadedMemoryRole) + " " + snapshot_files_.back()));
  }
  MAYFLY_TRY_ASSIGN(MicroVmState saved, saved_config(config_));
  saved.created_ns = realtime_ns();
  // The devices first: what they have under way ends, in guest memory and by interrupts.
  for (std::size_t index = 0; index < drives_.size(); ++index) {
    const MutexLock lock(drives_[index]->mutex());
    saved.drives[index].state = drives_[index]->state();
    saved.drives[index].sectors = drives_[index]->capacity();
  }
  for (std::size_t index = 0; index < networks_.size(); ++index) {
    const MutexLock lock(networks_[index]->mutex());
    saved.networks[index].state = networks_[index]->save();
  }
  MAYFLY_TRY_ASSIGN(MachineState machine, machine_->save());
  for (SavedDrive& drive : saved.drives) {
    drive.registers = std::move(machine.transports.at(drive.slot));
  }
  for (SavedNetwork& network : saved.networks) {
    network.registers = std::move(machine.transports.at(network.slot));
  }
  saved.vcpus = std::move(machine.vcpus);
  saved.platform = machine.platform;
  saved.clock = machine.clock;
  saved.serial = machine.serial;
  saved.power = machine.power;
  MAYFLY_TRY_ASSIGN(const RandomId mark, make_random_id());
  const bool is_diff = request.kind == SnapshotKind::kDiff && diff_base_ != DiffBase::kNone;
  MAYFLY_TRY(machine_->mark_snapshot(mark, is_diff ? diff_base_mark_ : RandomId{}));
  last_mark_ = mark;
  saved.mark = std::bit_cast<SnapshotMark>(mark);
  if (is_diff) {
    saved.base = std::bit_cast<SnapshotMark>(diff_base_mark_);
  }
  CapturedVm captured;
  MAYFLY_TRY_ASSIGN(captured.state, encode(saved));
  captured.memory = &machine_->memory();
  captured.options = memory_file_options();
  // Last: all that is written to guest memory for the snapshot was.
  if (request.live) {
    captured.content = CapturedVm::Rest{&*ledger_};
    return captured;
  }
  if (ledger_) {
    // For the next diff, also where this is a full one.
    MAYFLY_TRY(take_dirty_pages(*captured.memory, *ledger_));
  }
  if (request.kind == SnapshotKind::kDiff) {
    if (diff_base_ == DiffBase::kLogged) {
      captured.content = CapturedVm::Pages{&ledger_->since_last()};
    } else if (diff_base_ == DiffBase::kLoadedFile) {
      captured.content = CapturedVm::OwnPages{};
    } else {
      captured.content = CapturedVm::AllAsDiff{};
    }
  }
  return captured;
}

MemoryFileOptions MicroVm::memory_file_options() const {
  return {.pages = page_map_ ? &*page_map_ : nullptr, .served_by_handler = userfault_.has_value()};
}

Result<LiveMemory> MicroVm::begin_live() {
  MAYFLY_TRY(expect_started());
  // What was written until now is in the file anyway.
  MAYFLY_TRY(mayfly::take_dirty_pages(machine_->memory(), *ledger_));
  return LiveMemory{.memory = &machine_->memory(), .log = &*ledger_, .options = memory_file_options()};
}

void MicroVm::end_snapshot(bool stands) {
  if (ledger_ && stands) {
    ledger_->settle();
    diff_base_ = DiffBase::kLogged;
    diff_base_mark_ = last_mark_;
  }
}

Result<RecordedSet> MicroVm::take_working_set(const std::string& path) {
  MAYFLY_TRY(expect_started());
  MAYFLY_TRY(check_new_file(kWorkingSetRole, path));
  if (!recorded_.recorder) {
    return fail(
        ErrorCode::kNotFound,
        "no working set is being recorded: 'mayfly restore --record-working-set', or record_working_set of a "
        "load, begins it, and it is written once");
  }
  return std::exchange(recorded_, RecordedSet{});
}

Result<void> MicroVm::record_working_set(const GuestMemory& memory, std::uint64_t identity) {
  if (!page_map_) {
    return fail(ErrorCode::kUnsupported,
                "record_working_set: this process cannot look at its page tables (/proc/self/pagemap)");
  }
  MAYFLY_TRY_ASSIGN(recorded_.recorder, WorkingSetRecorder::start(memory, *page_map_, around_.confine_side));
  recorded_.owner = {.memory_size = memory.size(), .snapshot = identity};
  return recorded_.recorder->wait_confined();
}

Result<void> MicroVm::read_ahead(const GuestMemory& memory, std::optional<ReadAhead> ahead) {
  if (!ahead) {
    return {};
  }
  MAYFLY_TRY_ASSIGN(prefetcher_, Prefetcher::start(memory, std::move(ahead->set), around_.confine_side,
                                                   std::move(ahead->own)));
  return prefetcher_->wait_confined();
}

tl::expected<void, BuildError> MicroVm::load_snapshot(const LoadRequest& request) {
  return load_by(request, [&] { return load(request); });
}

Result<void> MicroVm::take_place(ClonePlace place) {
  MAYFLY_TRY(expect_not_started());
  MAYFLY_TRY_ASSIGN(auto machine,
                    Machine::make_ahead(std::move(place.frame), {.registrar = around_.registrar,
                                                                 .console = late_console_,
                                                                 .serial_metrics = around_.serial_metrics,
                                                                 .trace = around_.trace,
                                                                 .on_outcome = around_.on_outcome,
                                                                 .on_boot_mark = on_boot_mark(),
                                                                 .confine_vcpu = around_.confine_vcpu}));
  MAYFLY_TRY(machine->wait_ready());
  open_page_map();
  snapshot_files_ = std::move(place.files);
  ahead_.emplace(Ahead{std::move(place.config), std::move(place.state), std::move(machine)});
  return {};
}

tl::expected<void, BuildError> MicroVm::load_clone(const LoadRequest& request) {
  MAYFLY_CHECK(ahead_.has_value(), "a clone has a place");
  return load_by(request, [&]() -> tl::expected<void, BuildError> {
    config_ = std::move(ahead_->config);
    config_.machine.track_dirty_pages = request.track_dirty_pages;
    MAYFLY_TRY(apply_changes(request));
    MAYFLY_TRY(open_restored(ahead_->state));
    MAYFLY_TRY_ASSIGN(auto read, open_read_ahead(request, ahead_->state).map_error(BuildError::of_loading));
    return go_on(std::move(ahead_->state), nullptr, std::move(read), request);
  });
}

tl::expected<void, BuildError> MicroVm::load_by(const LoadRequest& request, const Load& load) {
  MAYFLY_TRY(expect_not_started());
  if (request.record_working_set && request.working_set_path) {
    return fail(ErrorCode::kInvalidArgument,
                "a working set is recorded of a guest for which none is read ahead: not both");
  }
  if (files_ || !drives_.empty() || !networks_.empty() || config_.mmds || machine_is_put_) {
    return fail(
        ErrorCode::kBusy,
        "a snapshot brings its own machine: only its log, metrics, serial port, processor and metadata "
        "can be put before it is loaded");
  }
  const VmConfig before = config_;
  events_.tell(MicroVmEvent::Kind::kStarting);
  auto loaded = load();
  if (!loaded) {
    if (userfault_ && around_.expect_pages_brought) {
      // What was seen in place of its pages is not what is wrong.
      if (const auto brought = around_.expect_pages_brought(); !brought) {
        const Error why = brought.error().within("the page fault handler at " + request.memory_path);
        loaded = tl::make_unexpected(BuildError::of_loading(why));
      }
    }
    take_down();
    diff_base_ = DiffBase::kNone;
    snapshot_files_.clear();
    drives_.clear();
    networks_.clear();
    config_ = before;
    events_.tell(MicroVmEvent::Kind::kStartFailed, loaded.error().error.message());
    return loaded;
  }
  if (config_.mmds) {
    mmds_->configure(*config_.mmds);
  }
  if (request.metadata) {
    MAYFLY_TRY(mmds_->put(*request.metadata));  // which load() has seen to be possible
  }
  LOG_INFO("restored: %u vCPUs, %llu MiB of memory", config_.machine.vcpu_count,
           static_cast<unsigned long long>(config_.machine.mem_size_mib));
  events_.tell(MicroVmEvent::Kind::kRunning);
  if (request.resume) {
    MAYFLY_TRY(machine_->resume());
  } else {
    events_.tell(MicroVmEvent::Kind::kPaused);
  }
  return {};
}

tl::expected<void, BuildError> MicroVm::load(const LoadRequest& request) {
  MicroVmState saved;
  MAYFLY_TRY_ASSIGN(std::optional<FrameAhead> frame,
                    read_snapshot(request, saved).map_error(BuildError::of_loading));
  MAYFLY_TRY_ASSIGN(std::optional<ReadAhead> ahead,
                    open_read_ahead(request, saved).map_error(BuildError::of_loading));
  if (!frame) {
    MAYFLY_TRY_ASSIGN(GuestMemory memory, load_memory(request, saved).map_error(BuildError::of_loading));
    if (ahead && config_.machine.huge_pages == HugePages::kTransparent) {
      const TracePhase phase(around_.trace, "read working set");
      MAYFLY_TRY_ASSIGN(ahead->own, take_own(memory, ahead->set).map_error(BuildError::of_loading));
    }
    const bool as_it_is = !config_.cpu_template || config_.cpu_template->capabilities.empty();
    frame.emplace(std::move(memory), saved.drives.size() + saved.networks.size(), config_.machine.vcpu_count,
                  as_it_is ? around_.host_kvm : nullptr);
  }
  return go_on(std::move(saved), &*frame, std::move(ahead), request);
}

Result<std::optional<FrameAhead>> MicroVm::read_snapshot(const LoadRequest& request, MicroVmState& saved) {
  const auto within = [&request](const Error& error) {
    return error.within("snapshot " + request.state_path);
  };
  for (const std::string& path :
       {request.state_path, request.memory_path, request.working_set_path.value_or("")}) {
    MAYFLY_TRY(check_no_output(path));
  }
  snapshot_files_ = {request.state_path, request.memory_path};
  std::optional<FrameAhead> frame;
  if (auto found = around_.snapshot ? around_.snapshot->take(around_.trace) : std::nullopt) {
    saved = std::move(found->state);
    config_ = std::move(found->config);
    frame = std::move(found->frame);
  } else {
    MAYFLY_TRY_ASSIGN(const std::string bytes, read_snapshot_state(request.state_path));
    MAYFLY_TRY_ASSIGN(saved, decode(std::as_bytes(std::span(bytes))).map_error(within));
    MAYFLY_TRY_ASSIGN(config_, config_of(saved).map_error(within));
  }
  config_.machine.track_dirty_pages = request.track_dirty_pages;
  config_.machine.huge_pages = request.huge_pages.value_or(config_.machine.huge_pages);
  MAYFLY_TRY(apply_changes(request));
  MAYFLY_TRY(open_restored(saved));
  return frame;
}

Result<void> MicroVm::apply_changes(const LoadRequest& request) {
  MAYFLY_TRY(override_devices(config_, request));
  MAYFLY_TRY(config_.validate_devices());
  MAYFLY_TRY(check_inputs(config_));
  if (request.metadata) {
    MAYFLY_TRY(Mmds(around_.mmds_size_limit).put(*request.metadata));
  }
  return {};
}

Result<std::optional<MicroVm::ReadAhead>> MicroVm::open_read_ahead(const LoadRequest& request,
                                                                   const MicroVmState& saved) const {
  if (!request.working_set_path) {
    return std::nullopt;
  }
  WorkingSetOwner owner{.snapshot = identity_of(saved.mark)};
  MAYFLY_TRY_ASSIGN(const std::vector<GuestRange> ranges, memory_ranges_of(saved));
  for (const GuestRange& range : ranges) {
    owner.memory_size += range.size();
  }
  MAYFLY_TRY_ASSIGN(WorkingSet set, open_working_set(*request.working_set_path, owner));
  return ReadAhead{std::move(set)};
}

tl::expected<void, BuildError> MicroVm::go_on(MicroVmState saved, FrameAhead* frame,
                                              std::optional<ReadAhead> ahead, const LoadRequest& request) {
  std::vector<std::vector<std::optional<VirtQueueState>>> queues(saved.drives.size() + saved.networks.size());
  MachineState machine{.vcpus = std::move(saved.vcpus),
                       .platform = saved.platform,
                       .clock = saved.clock,
                       .serial = saved.serial,
                       .power = saved.power,
                       .transports = std::vector<MmioTransportState>(queues.size())};
  for (SavedDrive& drive : saved.drives) {
    machine.transports.at(drive.slot) = std::move(drive.registers);
    queues.at(drive.slot) = std::move(drive.state.queues);
  }
  for (SavedNetwork& network : saved.networks) {
    machine.transports.at(network.slot) = std::move(network.registers);
    queues.at(network.slot) = std::move(network.state.queues);
  }
  const auto mark = saved.mark;
  const Backing backing = frame != nullptr ? frame->backing() : ahead_->machine->memory().backing();
  const Make make =
      [&](std::span<VirtioDevice* const> devices,
          MachineSurroundings surroundings) -> tl::expected<std::unique_ptr<Machine>, BuildError> {
    RestoreParts parts{.frame = frame,
                       .devices = devices,
                       .queues = queues,
                       .state = std::move(machine),
                       .advance_clock = request.advance_clock,
                       .log_writes = config_.machine.track_dirty_pages};
    std::unique_ptr<Machine> restored;
    if (parts.frame != nullptr) {
      const auto within = [&request](BuildError error) {
        const ErrorCode code = error.error.code();
        if (code == ErrorCode::kUnsupported || code == ErrorCode::kInvalidArgument) {  // for the file's sake
          error.error = error.error.within("snapshot " + request.state_path);
        }
        return error;
      };
      MAYFLY_TRY_ASSIGN(
          restored, Machine::restore(config_, std::move(parts), std::move(surroundings)).map_error(within));
    } else {
      restored = std::move(ahead_->machine);
      late_console_.connect(*console_);
      MAYFLY_TRY(restored->restore_ahead(parts));
    }
    if (request.record_working_set) {
      MAYFLY_TRY(record_working_set(restored->memory(), identity_of(mark)).map_error(BuildError::of_loading));
    }
    MAYFLY_TRY(read_ahead(restored->memory(), std::move(ahead)).map_error(BuildError::of_loading));
    return restored;
  };
  MAYFLY_TRY(bring_up(make));
  diff_base_mark_ = mark ? std::bit_cast<RandomId>(*mark) : RandomId{};
  diff_base_ = ledger_                                         ? DiffBase::kLogged
               : backing == Backing::kPrivateFile && page_map_ ? DiffBase::kLoadedFile
                                                               : DiffBase::kNone;
  return {};
}

Result<void> MicroVm::override_devices(VmConfig& config, const LoadRequest& request) const {
  for (const NetworkOverride& change : request.networks) {
    MAYFLY_TRY_ASSIGN(NetDeviceConfig * network,
                      find_overridden(config.networks, change.id, "network interface"));
    if (change.tap) {
      if (!std::holds_alternative<TapConfig>(network->backend)) {
        return fail(ErrorCode::kInvalidArgument,
                    "network interface " + change.id + " has no tap that another could take the place of");
      }
      network->backend = TapConfig{.name = *change.tap};
    }
    if (change.mac) {
      network->mac = MacAddress::parse(*change.mac);
      if (!network->mac) {
        return fail(ErrorCode::kInvalidArgument, "network interface " + change.id + ": guest_mac \"" +
                                                     *change.mac + "\" is no MAC address");
      }
    }
  }
  for (const DriveOverride& change : request.drives) {
    MAYFLY_TRY_ASSIGN(BlockDeviceConfig * drive, find_overridden(config.drives, change.id, "drive"));
    drive->path = change.path.value_or(drive->path);
    if (change.overlay) {
      if (!change.path) {
        MAYFLY_TRY(expect_contents(*drive, *change.overlay));
      }
      drive->overlay = change.overlay;
    }
  }
  return {};
}

// The devices of config_, as they were.
Result<void> MicroVm::open_restored(const MicroVmState& state) {
  for (std::size_t index = 0; index < config_.drives.size(); ++index) {
    const std::string& id = config_.drives[index].id;
    MAYFLY_TRY_ASSIGN(auto device,
                      open(config_.drives[index])
                          .map_error(naming_the_way(
                              "A copy gets its own by --disk " + id +
                              "=IMAGE of the command line, for several clones with {id} in its paths, or "
                              "drive_overrides of the API's call")));
    const SavedDrive& saved = state.drives[index];
    {
      const MutexLock lock(device->mutex());
      if (device->capacity() != saved.sectors) {
        return fail(ErrorCode::kInvalidImage, "drive " + saved.config.id + ": " + config_.drives[index].path +
                                                  " has " + std::to_string(device->capacity()) +
                                                  " sectors, the guest knows a disk of " +
                                                  std::to_string(saved.sectors) + ": it is another");
      }
      MAYFLY_TRY(device->restore(saved.state));
    }
    drives_.push_back(std::move(device));
  }
  for (std::size_t index = 0; index < config_.networks.size(); ++index) {
    const NetDeviceConfig& network = config_.networks[index];
    auto opened = open(network);
    if (std::holds_alternative<TapConfig>(network.backend)) {
      opened = std::move(opened).map_error(
          naming_the_way("A copy gets its own by --tap " + network.id +
                         "=TAP of the command line, or network_overrides of the API's call"));
    }
    MAYFLY_TRY_ASSIGN(auto device, std::move(opened));
    {
      const MutexLock lock(device->mutex());
      MAYFLY_TRY(device->restore(state.networks[index].state));
    }
    networks_.push_back(std::move(device));
  }
  return {};
}

Result<GuestMemory> MicroVm::load_memory(const LoadRequest& request, const MicroVmState& state) {
  const TracePhase phase(around_.trace, "load memory");
  if (!request.memory_from_handler) {
    MAYFLY_TRY_ASSIGN(UniqueFd file,
                      open_file(request.memory_path, O_RDONLY | O_NONBLOCK, kLoadedMemoryRole));
    // Of memory in transparent huge pages, what the working set has is read whole, and the rest is mapped.
    const bool maps = request.working_set_path && config_.machine.huge_pages == HugePages::kTransparent;
    return load_saved_memory(state, maps ? HugePages::kNone : config_.machine.huge_pages, std::move(file),
                             std::string(kLoadedMemoryRole) + " " + request.memory_path, request.state_path);
  }
  MAYFLY_TRY_ASSIGN(const std::vector<GuestRange> ranges, memory_ranges_of(state));
  MAYFLY_TRY_ASSIGN(UniqueFd socket, connect_to_handler(request.memory_path));
  MAYFLY_TRY_ASSIGN(userfault_, Userfault::open());
  MAYFLY_TRY_ASSIGN(GuestMemory memory, GuestMemory::create(ranges, backing_of(config_.machine.huge_pages)));
  MAYFLY_TRY(userfault_->watch(memory));
  MAYFLY_TRY(userfault_->hand_over(socket, memory));
  if (around_.on_page_handler) {
    MAYFLY_TRY(around_.on_page_handler(std::move(socket), userfault_->descriptor(), memory));
  }
  return memory;
}

}  // namespace mayfly
