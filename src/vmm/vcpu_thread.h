// One thread that runs one vCPU: started ahead of it, then resumed, parked and stopped from outside.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <thread>

#include "base/crash.h"
#include "base/mutex.h"
#include "base/result.h"
#include "vmm/guest_cpu.h"

namespace mayfly {

// The signal that takes a vCPU thread out of the guest. Its handler does nothing; being delivered is what
// counts. Install the handler once, before the first thread starts: it unblocks the signal in the calling
// thread as well, whose mask threads inherit. Signals for which others wait are to be blocked there.
int vcpu_kick_signal();
Result<void> install_vcpu_kick_handler();

class VcpuThread {
 public:
  // Starts the thread, named "mayfly_vcpu <index>", with no vCPU yet. `confine` is called once on the thread,
  // before all else: what it takes away is missing from then on. Where it fails the guest is never run; see
  // wait_ready(). May be empty.
  static Result<std::unique_ptr<VcpuThread>> start(std::uint32_t index,
                                                   std::function<Result<void>()> confine = {});
  VcpuThread(const VcpuThread&) = delete;
  VcpuThread& operator=(const VcpuThread&) = delete;
  // Stops the thread. One that does not come out of the kernel is a broken invariant: aborts.
  ~VcpuThread();

  // Once: the vCPU to run. The thread settles it (GuestCpu::settle()), by which KVM does what a VM needs when
  // it runs for the first time, and parks. `cpu` is borrowed and must outlive this. `on_outcome` is called at
  // most once, on the vCPU's thread, when the guest or KVM ends it; the thread then waits to be stopped.
  void take_on(GuestCpu& cpu, std::function<void(Outcome)> on_outcome);

  // After take_on(), before resume(): waits until the thread has parked for the first time. The error of
  // `confine`, where it has one; kInternal where KVM does not take the vCPU.
  Result<void> wait_ready();

  // These three never block; the owner's thread calls them.
  void resume();
  void request_park();
  void request_stop();

  // After request_park() waits until the thread runs no guest code; false at the deadline.
  bool wait_parked(std::chrono::steady_clock::time_point deadline);
  // Waits for the thread's end after request_stop(); false at the deadline.
  bool wait_stopped(std::chrono::steady_clock::time_point deadline);

 private:
  enum class Command : std::uint8_t { kPark, kRun, kStop };

  VcpuThread(std::uint32_t index, std::function<Result<void>()> confine);
  void main() noexcept;
  bool await_cpu() noexcept;
  Result<void> get_ready() noexcept;
  void command(Command command);
  bool park(bool ended) noexcept;
  bool run_until_told() noexcept;

  const std::uint32_t index_;
  const std::function<Result<void>()> confine_;
  std::optional<CrashStack> crash_stack_;

  // Under it the vCPU completes its last access, which takes the locks of devices: before all of theirs.
  Mutex mutex_;
  CondVar changed_;  // command_, cpu_, parked_, finished_ or ready_
  // Null until take_on(); the thread reads both without the mutex once it has seen them.
  GuestCpu* cpu_ = nullptr;
  std::function<void(Outcome)> on_outcome_;
  std::atomic<Command> command_ = Command::kPark;  // written with mutex_ held; read without after each exit
  bool parked_ MAYFLY_GUARDED_BY(mutex_) = false;
  bool finished_ MAYFLY_GUARDED_BY(mutex_) = false;
  std::optional<Result<void>> ready_ MAYFLY_GUARDED_BY(mutex_);  // once it is known

  std::thread thread_;  // last: everything above is there before it starts
};

}  // namespace mayfly
