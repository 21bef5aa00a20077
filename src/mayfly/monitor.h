// One microVM from its configuration to its end: what the process does between its command line and its exit
// code.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "mayfly/failure.h"
#include "mayfly/options.h"
#include "mayfly/plan.h"
#include "vmm/boot_trace.h"
#include "vmm/clone_source.h"
#include "vmm/host_kvm.h"
#include "vmm/micro_vm.h"
#include "vmm/outcome.h"
#include "vmm/snapshot_ahead.h"

namespace mayfly {

// What was begun before the rest was ready for it.
struct Ahead {
  HostKvm host_kvm{};
  std::optional<SnapshotAhead> snapshot{};  // of `restore`
};

// Runs the microVM until it ends by itself, by SIGTERM or SIGINT, or by the console's escape. It starts at
// once where the plan has a configuration, else when the control API is told to. Log and metrics are open,
// the crash handlers installed, descriptors 0 to 2 open. `trace` may be null. How it ended; a failure where
// it could not be made (kBadConfiguration or kError) or where its end failed. KVM is asked ahead here where
// no guest is to run before a caller of the API wants it.
OrFailure<Outcome> run_microvm(const Options& options, const Plan& plan, Ahead& ahead, BootTrace* trace);

// What becomes of a place.
struct CloneBirth {
  std::string id;
  LoadRequest load{};                        // as MicroVm::load_clone()
  std::optional<std::string> api_socket{};   // absent: no control API
  std::optional<std::string> serial_path{};  // where what the guest prints goes; absent: nowhere
};
struct CloneWait {
  std::function<OrFailure<CloneBirth>()> for_birth;  // called when all that can be done before is done
  std::function<void()> on_born;  // called once the guest runs, or is paused as it was asked for
};

// The same of a clone, which has neither terminal nor metrics: first of what it needs whoever it will be. Of
// `options`: filters, limits, whether clones have a control API; its socket's path is put into them.
OrFailure<Outcome> run_clone(Options& options, ClonePlace place, const CloneWait& wait);

}  // namespace mayfly
