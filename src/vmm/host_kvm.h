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

// What guests can have of the host's processor, and the KVM that said so.
struct AskedKvm {
  Kvm kvm;
  arch::SupportedProcessor supported;
};

// Opens KVM and makes a VM, and asks what guests can have of the host's processor, which takes some tenths of
// a millisecond each: on threads of its own, which end by themselves or when none of it is wanted any
// more. It is ahead only: who gets nothing here asks KVM in its place, and hears what stands against it. One
// thread calls it.
class HostKvm {
 public:
  HostKvm() = default;
  HostKvm(const HostKvm&) = delete;
  HostKvm& operator=(const HostKvm&) = delete;
  ~HostKvm();

  // Whether the thread that opens KVM then waits for what is to be done with it, which spares use() the start
  // of another.
  enum class Purpose : std::uint8_t { kTake, kUse };
  // The first time begins it; without it there is nothing ahead. The threads take no signals.
  void start(Purpose purpose = Purpose::kTake);

  // Once, in place of take(): has a thread of this go on with it, beside what the caller does. `job`, which
  // does not throw, gets nothing where it could not be opened, and how long that took. False where there is
  // nothing ahead, it was taken before, or no thread is to be had: `job` is not called then.
  using Job = std::function<void(std::optional<OpenKvm>, const BootTrace::Phase&)>;
  bool use(Job job);

  // These wait. Nothing where it could not be had, or was taken or used before. `trace`, which may be null,
  // is told how long it took.
  std::optional<OpenKvm> take(BootTrace* trace);
  std::optional<AskedKvm> take_supported(BootTrace* trace);

  // Waits for the threads' end, a job's among it, and lets go of what nobody took.
  void end();

 private:
  void do_job(const Job& job) noexcept;
  void want(Job job);

  BootTrace::Phase opening_{};  // set before the handover
  BootTrace::Phase asking_{};
  Handover<Result<OpenKvm>> opened_;
  Handover<Job> wanted_;  // empty: nothing more is
  Handover<Result<AskedKvm>> supported_;
  bool is_wanted_ = false;  // wanted_ was given
  bool started_ = false;
  bool opened_is_there_ = false;
  bool supported_is_there_ = false;
  std::thread thread_;  // these last: everything above is there before they start
  std::thread using_thread_;
  std::thread asking_thread_;
};

}  // namespace mayfly
