#include "base/side_thread.h"

#include <system_error>
#include <utility>

#include "base/thread_name.h"

namespace mayfly {

Result<void> SideThread::start(const std::string& name, std::function<Result<void>()> confine,
                               std::function<void()> body) {
  MAYFLY_TRY_ASSIGN(CrashStack crash_stack, CrashStack::create());
  crash_stack_.emplace(std::move(crash_stack));
  const auto main = [this, name, confine = std::move(confine), body = std::move(body)]() noexcept {
    const CrashStack::Use use(*crash_stack_);
    set_thread_name(name);
    auto confined = confine ? confine() : Result<void>();
    const bool run = confined.has_value();
    {
      const MutexLock lock(mutex_);
      confined_ = std::move(confined);
      changed_.notify_all();
    }
    if (run) {
      body();
    }
  };
  try {
    thread_ = std::thread(main);
  } catch (const std::system_error& error) {
    return fail_errno(error.code().value(), "start the thread " + name);
  }
  return {};
}

Result<void> SideThread::wait_confined() {
  const MutexLock lock(mutex_);
  while (!confined_) {
    changed_.wait(mutex_);
  }
  return *confined_;
}

void SideThread::request_stop() {
  const MutexLock lock(mutex_);
  stopping_ = true;
  changed_.notify_all();
}

void SideThread::stop() {
  if (thread_.joinable()) {
    request_stop();
    thread_.join();
  }
}

bool SideThread::sleep(std::chrono::nanoseconds time) {
  const auto deadline = std::chrono::steady_clock::now() + time;
  const MutexLock lock(mutex_);
  while (!stopping_) {
    if (!changed_.wait_until(mutex_, deadline)) {
      return !stopping_;
    }
  }
  return false;
}

}  // namespace mayfly
