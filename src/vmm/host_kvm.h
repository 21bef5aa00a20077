// This host's KVM, looked at while others get ready for it.
#pragma once

#include <optional>
#include <thread>

#include "base/handover.h"
#include "base/result.h"
#include "kvm/arch.h"
#include "kvm/kvm.h"
#include "kvm/vm.h"
#include "vmm/boot_trace.h"

namespace mayfly {

struct OpenKvm {
  Kvm kvm;
  std::optional<Vm> vm{};  // of this process, with nothing in it; where somebody has made one ahead
};

// Opens KVM, makes a VM and asks what guests can have of the host's processor, which takes some tenths of a
// millisecond each: on a thread of its own, which ends by itself. It is ahead only: who gets nothing here
// asks KVM in its place, and hears what stands against it. One thread calls it.
class HostKvm {
 public:
  HostKvm() = default;
  HostKvm(const HostKvm&) = delete;
  HostKvm& operator=(const HostKvm&) = delete;
  ~HostKvm();

  // The first time begins it; without it there is nothing ahead. The thread takes no signals.
  void start();

  // These wait, the second one for the thread's end. Nothing where it could not be had, or was taken before.
  // `trace`, which may be null, is told how long it took.
  std::optional<OpenKvm> take(BootTrace* trace);
  std::optional<arch::SupportedProcessor> take_supported(BootTrace* trace);

 private:
  void look() noexcept;

  BootTrace::Phase opening_{};  // set before the handover
  BootTrace::Phase asking_{};
  Handover<Result<OpenKvm>> opened_;
  Handover<Result<arch::SupportedProcessor>> supported_;
  bool started_ = false;
  bool opened_is_there_ = false;
  bool supported_is_there_ = false;
  std::thread thread_;  // last: everything above is there before it starts
};

}  // namespace mayfly
