// A microVM from the first thing that is said of it to its end: its configuration, put together piece by
// piece, then its machine. What the control API, a configuration file and the command line all act on.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/mutex.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "devices/serial/console.h"
#include "devices/serial/serial.h"
#include "devices/virtio/block/block_device.h"
#include "devices/virtio/net/net_device.h"
#include "devices/vmgenid/vmgenid.h"
#include "event/event_loop.h"
#include "memory/page_extents.h"
#include "memory/precopy.h"
#include "memory/prefetch.h"
#include "memory/userfault.h"
#include "memory/working_set.h"
#include "memory/working_set_recorder.h"
#include "mmds/mmds.h"
#include "rate_limiter/rate_limiter.h"
#include "rate_limiter/token_bucket.h"
#include "snapshot/micro_vm_state.h"
#include "vmm/boot_trace.h"
#include "vmm/clone_source.h"
#include "vmm/config.h"
#include "vmm/guest_files.h"
#include "vmm/load_request.h"
#include "vmm/machine.h"
#include "vmm/micro_vm_event.h"
#include "vmm/outcome.h"
#include "vmm/snapshot_ahead.h"
#include "vmm/snapshot_job.h"

namespace mayfly {

// What a microVM needs from around it. Borrowed; outlives it.
struct MicroVmSurroundings {
  EventRegistrar& registrar;  // of the thread that owns the microVM
  SerialMetrics& serial_metrics;
  BootTrace* trace = nullptr;  // null: none wanted
  ConsoleConfig console;       // of the serial port, unless its output is put elsewhere
  // As MachineSurroundings::on_outcome.
  std::function<void(Outcome)> on_outcome;
  // Called when the machine is made and nothing of it runs yet: the time to take the terminal. May be empty.
  std::function<Result<void>()> before_start{};
  // Called where the start fails after that. May be empty.
  std::function<void()> start_failed{};
  // Called on each vCPU's thread before it parks for the first time, and on the owner's when nothing can fail
  // any more and nothing of the guest has run yet: what they take away is missing from then on. Where one
  // fails so does the start. May be empty.
  std::function<Result<void>()> confine_vcpu{};
  std::function<Result<void>()> confine_owner{};
  // The same of each thread that reads or looks at memory beside the guest.
  std::function<Result<void>()> confine_side{};
  // Called where another process brings the guest's pages, before anything waits for one: with the connection
  // to it, the userfaultfd, and the memory that it is of, both borrowed for the call. Where it fails so does
  // the load. May be empty.
  std::function<Result<void>(UniqueFd connection, const UniqueFd& userfault, const GuestMemory& memory)>
      on_page_handler{};
  // Called at the end of such a load, before anything of the guest runs or where it has failed: an error
  // where the pages that it needed were not brought. May be empty.
  std::function<Result<void>()> expect_pages_brought{};
  // Logs how long the guest took from start() to its boot mark, in the dialect's words.
  bool boot_timer = false;
  std::size_t mmds_size_limit = Mmds::kDefaultSizeLimit;  // bytes
  // Called with what happens, in the order in which it happens, one call at a time but on any thread, which
  // it must not hold up; kEnded is the owner's to tell. May be empty: then the boot mark's register is part
  // of the machine only for boot_timer or a trace.
  std::function<void(const MicroVmEvent&)> on_event{};
  // Snapshots may be asked for: what they need is opened before the owner is confined.
  bool snapshots = false;
  HostKvm* host_kvm = nullptr;        // null: there is nothing ahead
  SnapshotAhead* snapshot = nullptr;  // the same; of the first load
};

// Where the serial port's output goes.
struct SerialConfig {
  std::optional<std::string>
      output_path;  // a file, appended to and made if need be, or a FIFO; absent: stdout
  std::optional<TokenBucketConfig> rate_limiter;  // bytes; what it holds back is dropped
};

// What is to change of a drive, live. What is absent stays.
struct DriveChanges {
  std::string id;
  std::optional<std::string> path;
  std::optional<RateLimiterConfig> rate_limiter;
};

// The same of a network interface.
struct NetworkChanges {
  std::string id;
  std::optional<RateLimiterConfig> rx_rate_limiter;
  std::optional<RateLimiterConfig> tx_rate_limiter;
};

// A recording of a microVM's memory, which it borrows.
struct RecordedSet {
  std::unique_ptr<WorkingSetRecorder> recorder{};
  WorkingSetOwner owner{};
};

// One thread owns it and calls it. Every function does what it says or, after an error, has changed nothing;
// but where a device's place has to be vacated for its successor, which then fails, and nor can the former be
// had again, it is gone from the configuration, and the error says so.
//
// State::kNotStarted takes the put_ functions, start() and load_snapshot(); the others are for a microVM that
// was started. In another state they are kBusy.
class MicroVm {
 public:
  enum class State : std::uint8_t { kNotStarted, kRunning, kPaused };

  explicit MicroVm(MicroVmSurroundings surroundings);
  MicroVm(const MicroVm&) = delete;
  MicroVm& operator=(const MicroVm&) = delete;
  ~MicroVm() = default;

  State state() const;
  // As it stands now; after a live change as that has left it.
  const VmConfig& config() const { return config_; }

  Result<void> put_machine_config(const MachineConfig& machine);
  // Opens the files that are named; what is at their paths later no longer matters.
  Result<void> put_boot_source(BootSourceConfig boot_source);
  // Opens the image, the tap or the socket, and makes the device. One of the same id is replaced. Errors name
  // the drive or the interface and what stands against it.
  Result<void> put_drive(BlockDeviceConfig drive);
  Result<void> put_network(NetDeviceConfig network);
  Result<void> put_serial(const SerialConfig& serial);
  // Puts the metadata service in front of the interfaces that are named, which must be there: the taps and
  // sockets of those that are concerned are opened anew.
  Result<void> put_mmds_config(const MmdsConfig& mmds);
  // Nothing: the host's processor again, as far as guests get it. What a template asks for and only KVM can
  // tell is start()'s to say.
  Result<void> put_cpu_template(std::optional<arch::CpuTemplate> cpu_template);

  // What this process writes to, besides the serial port's: "the log". kInvalidArgument where it is one of
  // the files that the microVM is made of, or has as a disk; once noted, such files are refused when they are
  // put. One path a role.
  Result<void> check_output(const std::string& role, const std::string& path) const;
  void note_output(const std::string& role, const std::string& path);

  // Makes the machine and lets it run. kInvalidArgument where there is no boot source.
  tl::expected<void, BuildError> start();

  // Goes on where a snapshot was taken. Nothing but outputs and metadata may have been put before (kBusy).
  // What does not fit this host, or is no snapshot, or whose disks are not those that it knew, is refused by
  // name, and all is as it was.
  tl::expected<void, BuildError> load_snapshot(const LoadRequest& request);
  // The same in two steps: the machine ahead, of which nothing runs, and then as a clone. Of the request only
  // what is the clone's own counts: overrides, metadata, clock, resume. After an error it is to be given up.
  Result<void> take_place(ClonePlace place);
  tl::expected<void, BuildError> load_clone(const LoadRequest& request);

  // What stands against a snapshot. kInvalidArgument where a file of the snapshot would take the place of one
  // that the microVM uses; kBusy where it runs, or its guest has
  // ended; kUnsupported where something of it cannot be saved.
  Result<void> check_snapshot(const SnapshotRequest& request) const;
  // For a live one, of a microVM that runs or not: from here on what is written to its memory is logged.
  Result<LiveMemory> begin_live();
  // Takes the state of a microVM that is paused; the memory is to be written before it runs again, or its
  // owner's thread does anything else. Errors as check_snapshot(), and of the host's.
  Result<CapturedVm> capture(const SnapshotRequest& request);
  // After the two above, whether they failed or not. `stands`: both files have their names.
  void end_snapshot(bool stands);

  // The recording that a load has begun, which goes on until its finish(). kNotFound where there is none, or
  // it was taken. kInvalidArgument where `path`, where it is to go, is a file that the microVM uses.
  Result<RecordedSet> take_working_set(const std::string& path);
  // Takes back what take_working_set() gave, for it to give it again.
  void keep_working_set(RecordedSet recorded) { recorded_ = std::move(recorded); }

  // As Machine's. Both are idempotent.
  Result<void> pause();
  Result<void> resume();

  // Asks the guest to end in good order, as Ctrl+Alt+Del at a keyboard would. As Machine::request_shutdown().
  Result<void> send_ctrl_alt_del();

  // kNotFound for an id that no device has; otherwise as BlockDevice::update_backing() and
  // update_rate_limiter(), and NetDevice::set_rate_limits().
  Result<void> patch_drive(const DriveChanges& changes);
  Result<void> patch_network(const NetworkChanges& changes);

  // What the metadata service tells; there from the beginning, for any thread.
  const std::shared_ptr<Mmds>& metadata() const { return mmds_; }

  // Ends the machine, if there is one. As Machine::stop().
  Result<void> stop();
  // After stop(): what the console still has to write.
  void flush_console();
  // Brings what devices count themselves into the metrics store.
  void collect_counts();

 private:
  Result<void> expect_not_started() const;
  Result<void> expect_started() const;
  Result<std::unique_ptr<BlockDevice>> open(const BlockDeviceConfig& drive);
  Result<std::unique_ptr<NetDevice>> open(const NetDeviceConfig& network);
  Result<void> check_inputs(const VmConfig& wanted) const;
  // Puts `config` into `list` of the configuration, and its device into `devices`.
  template <typename Config, typename Device>
  Result<void> put_device(std::vector<Config> VmConfig::*list, std::vector<std::unique_ptr<Device>>& devices,
                          Config config);
  // Opens those interfaces anew on which the two disagree. What was opened before is closed; on an error some
  // are missing.
  Result<void> reopen_networks(const std::optional<MmdsConfig>& one, const std::optional<MmdsConfig>& other);
  std::vector<VirtioDevice*> devices_in_order() const;
  Result<void> open_console();
  std::function<void()> on_boot_mark();
  using Make = std::function<tl::expected<std::unique_ptr<Machine>, BuildError>(
      std::span<VirtioDevice* const>, MachineSurroundings)>;
  // The machine that `make` makes, with all that is around it, and not one instruction of it run. Borrows the
  // devices for as long as the machine lives.
  tl::expected<void, BuildError> bring_up(const Make& make);
  void take_down();
  void open_page_map();
  tl::expected<void, BuildError> start_machine();
  using Load = std::function<tl::expected<void, BuildError>()>;
  tl::expected<void, BuildError> load_by(const LoadRequest& request, const Load& load);
  tl::expected<void, BuildError> load(const LoadRequest& request);
  // All of it but memory and machine, of which it answers what was begun ahead.
  Result<std::optional<FrameAhead>> read_snapshot(const LoadRequest& request, MicroVmState& saved);
  // What the request changes of config_, and whether that can be.
  Result<void> apply_changes(const LoadRequest& request);
  // What a guest is to find there before it touches it.
  struct ReadAhead {
    WorkingSet set;
    OwnBlocks own{};  // what it has already
  };
  Result<std::optional<ReadAhead>> open_read_ahead(const LoadRequest& request,
                                                   const MicroVmState& saved) const;
  // With config_ as it is to be, and the devices open. `frame` null: the machine that was made ahead.
  tl::expected<void, BuildError> go_on(MicroVmState saved, FrameAhead* frame, std::optional<ReadAhead> ahead,
                                       const LoadRequest& request);
  Result<void> override_devices(VmConfig& config, const LoadRequest& request) const;
  Result<void> open_restored(const MicroVmState& state);
  Result<GuestMemory> load_memory(const LoadRequest& request, const MicroVmState& state);
  MemoryFileOptions memory_file_options() const;
  Result<void> check_no_input(const std::string& role, const std::string& path) const;
  Result<void> check_no_output(const std::string& path) const;
  Result<void> check_new_file(const char* role, const std::string& path) const;
  Result<void> record_working_set(const GuestMemory& memory, std::uint64_t identity);
  Result<void> read_ahead(const GuestMemory& memory, std::optional<ReadAhead> ahead);
  Result<void> confine();

  // Events of the guest's and its devices' come from the moment at which vCPUs run, which is before start()
  // knows that all is well: they wait until it has said so.
  class Events {
   public:
    explicit Events(std::function<void(const MicroVmEvent&)> sink) : sink_(std::move(sink)) {}
    explicit operator bool() const { return static_cast<bool>(sink_); }
    // Of the thread that owns the microVM; then what waited, or, for kStarting, nothing more for now.
    void tell(MicroVmEvent::Kind kind, std::string detail = {});
    // Of any thread.
    void tell_of_guest(MicroVmEvent::Kind kind, std::string device = {}, std::string_view detail = {});

   private:
    const std::function<void(const MicroVmEvent&)> sink_;
    Mutex mutex_;  // taken under a device's lock; the sink's lock is taken under it
    bool holding_ MAYFLY_GUARDED_BY(mutex_) = true;
    std::vector<MicroVmEvent> held_ MAYFLY_GUARDED_BY(mutex_);
  };

  // The serial port's back end of a machine that is made before it is known where its output goes.
  class LateConsole final : public SerialBackend {
   public:
    // Before the machine runs. Borrowed; outlives the machine.
    void connect(Console& console) { console_ = &console; }
    void transmit(std::uint8_t byte) override { console_->transmit(byte); }
    void input_room_available() override { console_->input_room_available(); }

   private:
    Console* console_ = nullptr;
  };
  // What a clone goes on from, and its machine.
  struct Ahead {
    VmConfig config;
    MicroVmState state;
    std::unique_ptr<Machine> machine;
  };

  MicroVmSurroundings around_;
  Events events_;  // before all that tells
  std::shared_ptr<Mmds> mmds_;
  VmConfig config_;
  bool machine_is_put_ = false;
  std::optional<GuestFiles> files_;
  std::map<std::string, std::string> outputs_;  // paths by role
  // What it goes on from, and others may: to be replaced by another snapshot, and never to be written to.
  std::vector<std::string> snapshot_files_;
  UniqueFd serial_output_;  // not open: the console's own
  std::optional<TokenBucketConfig> serial_rate_limiter_;
  // One for each drive and network of config_, in its order. Before the machine, which borrows them.
  std::vector<std::unique_ptr<BlockDevice>> drives_;
  std::vector<std::unique_ptr<NetDevice>> networks_;
  std::unique_ptr<Console> console_;
  std::optional<PageMap> page_map_;     // where it could be had
  std::optional<Userfault> userfault_;  // who brings the guest's memory; outlives the machine
  // What the memory is the same as but for what was written since: what a diff is to.
  enum class DiffBase : std::uint8_t {
    kNone,        // nothing: a diff is all of memory
    kLoadedFile,  // the file that it was loaded from; the page tables know
    kLogged,      // the last snapshot; the ledger knows
  };
  DiffBase diff_base_ = DiffBase::kNone;
  RandomId diff_base_mark_{};  // of its memory file
  RandomId last_mark_{};       // of the snapshot that was begun last
  LateConsole late_console_;
  std::optional<Ahead> ahead_;
  std::unique_ptr<Machine> machine_;
  std::optional<DirtyLedger> ledger_;  // of the machine, while writes are logged
  // Of the machine's memory, each from a load on.
  std::unique_ptr<Prefetcher> prefetcher_;
  RecordedSet recorded_;
};

}  // namespace mayfly
