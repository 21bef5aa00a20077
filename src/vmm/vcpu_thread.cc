#include "vmm/vcpu_thread.h"

#include <pthread.h>

#include <cerrno>
#include <csignal>
#include <string>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "base/thread_name.h"

namespace mayfly {
namespace {

constexpr std::chrono::seconds kStopLimit{10};

}  // namespace

int vcpu_kick_signal() {
  return SIGRTMIN;
}

Result<void> install_vcpu_kick_handler() {
  // A mask that was inherited through exec must not keep the kick from the vCPUs.
  sigset_t kick;
  ::sigemptyset(&kick);
  ::sigaddset(&kick, vcpu_kick_signal());
  if (const int failed = ::pthread_sigmask(SIG_UNBLOCK, &kick, nullptr); failed != 0) {
    return fail_errno(failed, "unblock the vCPU kick signal");
  }
  struct sigaction action = {};
  action.sa_handler = [](int) {};
  // No SA_RESTART: KVM_RUN must come back with EINTR.
  if (::sigaction(vcpu_kick_signal(), &action, nullptr) != 0) {
    return fail_errno(errno, "install the handler of the vCPU kick signal");
  }
  return {};
}

VcpuThread::VcpuThread(std::uint32_t index, std::function<Result<void>()> confine)
    : index_(index), confine_(std::move(confine)) {}

Result<std::unique_ptr<VcpuThread>> VcpuThread::start(std::uint32_t index,
                                                      std::function<Result<void>()> confine) {
  std::unique_ptr<VcpuThread> vcpu(new VcpuThread(index, std::move(confine)));
  MAYFLY_TRY_ASSIGN(CrashStack crash_stack, CrashStack::create());
  vcpu->crash_stack_.emplace(std::move(crash_stack));
  try {
    vcpu->thread_ = std::thread([self = vcpu.get()] { self->main(); });
  } catch (const std::system_error& error) {
    return fail_errno(error.code().value(), "start the thread of vCPU " + std::to_string(index));
  }
  return vcpu;
}

VcpuThread::~VcpuThread() {
  if (thread_.joinable()) {
    request_stop();
    MAYFLY_CHECK(wait_stopped(std::chrono::steady_clock::now() + kStopLimit), "a vCPU thread does not stop");
  }
}

void VcpuThread::take_on(GuestCpu& cpu, std::function<void(Outcome)> on_outcome) {
  const MutexLock lock(mutex_);
  MAYFLY_CHECK(cpu_ == nullptr, "a thread runs one vCPU");
  cpu.want_exit(true);
  cpu_ = &cpu;
  on_outcome_ = std::move(on_outcome);
  changed_.notify_all();
}

Result<void> VcpuThread::wait_ready() {
  const MutexLock lock(mutex_);
  while (!ready_) {
    changed_.wait(mutex_);
  }
  return *ready_;
}

void VcpuThread::command(Command command) {
  const MutexLock lock(mutex_);
  command_ = command;
  // Exits are wanted exactly while the command is not to run: set together, or a command that is taken back
  // before the thread saw it would leave the wish behind, and the thread would never enter the guest again.
  if (cpu_ != nullptr) {
    cpu_->want_exit(command != Command::kRun);
  }
  // After the wish: a thread that the signal finds just before it enters the guest sees it and comes back.
  if (command != Command::kRun && !finished_) {
    ::pthread_kill(thread_.native_handle(), vcpu_kick_signal());
  }
  changed_.notify_all();
}

void VcpuThread::resume() {
  command(Command::kRun);
}
void VcpuThread::request_park() {
  command(Command::kPark);
}
void VcpuThread::request_stop() {
  command(Command::kStop);
}

bool VcpuThread::wait_parked(std::chrono::steady_clock::time_point deadline) {
  const MutexLock lock(mutex_);
  while (!parked_ && !finished_) {
    if (!changed_.wait_until(mutex_, deadline)) {
      return parked_ || finished_;
    }
  }
  return true;
}

bool VcpuThread::wait_stopped(std::chrono::steady_clock::time_point deadline) {
  {
    const MutexLock lock(mutex_);
    while (!finished_) {
      if (!changed_.wait_until(mutex_, deadline) && !finished_) {
        return false;
      }
    }
  }
  if (thread_.joinable()) {
    thread_.join();
  }
  return true;
}

void VcpuThread::main() noexcept {
  const CrashStack::Use crash_stack(*crash_stack_);
  set_thread_name("mayfly_vcpu " + std::to_string(index_));
  auto ready = get_ready();
  bool ended = !ready;
  {
    const MutexLock lock(mutex_);
    ready_ = std::move(ready);
    changed_.notify_all();
  }
  while (park(ended)) {
    ended = !run_until_told();
  }
}

Result<void> VcpuThread::get_ready() noexcept {
  MAYFLY_TRY(confine_ ? confine_() : Result<void>());
  if (!await_cpu()) {
    return {};
  }
  if (const auto ended = cpu_->settle()) {
    return fail(ErrorCode::kInternal, "vCPU " + std::to_string(index_) + ": " + ended->detail);
  }
  return {};
}

// False when the thread is to end before it has one.
bool VcpuThread::await_cpu() noexcept {
  const MutexLock lock(mutex_);
  while (cpu_ == nullptr && command_ != Command::kStop) {
    changed_.wait(mutex_);
  }
  return cpu_ != nullptr;
}

// Waits as long as the vCPU is not to run. False when the thread is to end.
bool VcpuThread::park(bool ended) noexcept {
  const MutexLock lock(mutex_);
  while (command_ == Command::kPark || (command_ == Command::kRun && ended)) {
    parked_ = true;
    changed_.notify_all();
    changed_.wait(mutex_);
  }
  parked_ = false;
  finished_ = command_ == Command::kStop;
  if (finished_) {
    changed_.notify_all();
  }
  return !finished_;
}

// False when the vCPU has ended for good.
bool VcpuThread::run_until_told() noexcept {
  for (;;) {
    if (auto outcome = cpu_->run_once()) {
      on_outcome_(std::move(*outcome));
      // The access that it ended by may be half done. A second outcome is no news.
      const MutexLock lock(mutex_);
      static_cast<void>(cpu_->settle());
      return false;
    }
    // Most exits change nothing, and a command that is missed here makes the next run come back at once.
    if (command_.load() == Command::kRun) {
      continue;
    }
    const MutexLock lock(mutex_);
    if (command_ != Command::kRun) {
      auto outcome = cpu_->settle();
      if (outcome) {
        on_outcome_(std::move(*outcome));
      }
      return !outcome;
    }
  }
}

}  // namespace mayfly
