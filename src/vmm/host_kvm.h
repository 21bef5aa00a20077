// This host's KVM, looked at while others get ready for it.
#pragma once

#include <cstdint>
#include <functional>
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

// Opens KVM and makes a VM, and asks what guests can have of the host's processor, which takes some tenths of
// a millisecond each: on two threads of its own, which end when all was taken or none of it is wanted any
// more. It is ahead only: who gets nothing here asks KVM in its place, and hears what stands against it. One
// thread calls it.
class HostKvm {
 public:
  HostKvm() = default;
  HostKvm(const HostKvm&) = delete;
  HostKvm& operator=(const HostKvm&) = delete;
  ~HostKvm();

  // What the threads are for: what take() gives, and they end by themselves; or use() as well, for which the
  // first of them waits.
  enum class Purpose : std::uint8_t { kTake, kUse };
  // The first time begins it; without it there is nothing ahead. The threads take no signals.
  void start(Purpose purpose = Purpose::kTake);

  // Once: has the thread that opens KVM do more with it, beside what the caller does. `job`, which does not
  // throw, is called with null where it could not be opened. take() waits for its end and gives what it
  // leaves. False where there is nothing ahead, or it was taken before: `job` is not called then.
  bool use(std::function<void(OpenKvm*)> job);

  // These wait, the second one for the threads' end. Nothing where it could not be had, or was taken before.
  // `trace`, which may be null, is told how long it took.
  std::optional<OpenKvm> take(BootTrace* trace);
  std::optional<arch::SupportedProcessor> take_supported(BootTrace* trace);

 private:
  using Job = std::function<void(OpenKvm*)>;

  void look() noexcept;
  void want(Job job);
  void end();

  BootTrace::Phase opening_{};  // set before the handover
  BootTrace::Phase asking_{};
  Handover<Result<OpenKvm>> opened_;
  Handover<Job> wanted_;            // empty: nothing more is
  Handover<Result<OpenKvm>> used_;  // after the job
  Handover<Result<arch::SupportedProcessor>> supported_;
  bool is_wanted_ = false;  // wanted_ was given
  bool is_used_ = false;    // and is a job
  bool started_ = false;
  bool opened_is_there_ = false;
  bool supported_is_there_ = false;
  std::thread thread_;  // these last: everything above is there before they start
  std::thread asking_thread_;
};

}  // namespace mayfly
