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
#include "event/event_loop.h"
#include "mmds/mmds.h"
#include "rate_limiter/rate_limiter.h"
#include "rate_limiter/token_bucket.h"
#include "vmm/boot_trace.h"
#include "vmm/config.h"
#include "vmm/guest_files.h"
#include "vmm/machine.h"
#include "vmm/micro_vm_event.h"
#include "vmm/outcome.h"

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
  // Logs how long the guest took from start() to its boot mark, in the dialect's words.
  bool boot_timer = false;
  std::size_t mmds_size_limit = Mmds::kDefaultSizeLimit;  // bytes
  // Called with what happens, in the order in which it happens, one call at a time but on any thread, which
  // it must not hold up; kEnded is the owner's to tell. May be empty: then the boot mark's register is part
  // of the machine only for boot_timer or a trace.
  std::function<void(const MicroVmEvent&)> on_event{};
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

// One thread owns it and calls it. Every function does what it says or, after an error, has changed nothing;
// but where a device's place has to be vacated for its successor, which then fails, and nor can the former be
// had again, it is gone from the configuration, and the error says so.
//
// State::kNotStarted takes the put_ functions and start(); the others are for a microVM that was started. In
// another state they are kBusy.
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
  tl::expected<void, BuildError> start_machine();
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

  MicroVmSurroundings around_;
  Events events_;  // before all that tells
  std::shared_ptr<Mmds> mmds_;
  VmConfig config_;
  std::optional<GuestFiles> files_;
  std::map<std::string, std::string> outputs_;  // paths by role
  UniqueFd serial_output_;                      // not open: the console's own
  std::optional<TokenBucketConfig> serial_rate_limiter_;
  // One for each drive and network of config_, in its order. Before the machine, which borrows them.
  std::vector<std::unique_ptr<BlockDevice>> drives_;
  std::vector<std::unique_ptr<NetDevice>> networks_;
  std::unique_ptr<Console> console_;
  std::unique_ptr<Machine> machine_;
};

}  // namespace mayfly
