#include "monitor_copy.h"

#include <sys/sendfile.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace mayfly::jail {

Result<std::unique_ptr<MonitorCopy>> MonitorCopy::start(const UniqueFd& from, UniqueFd to, std::string what) {
  std::unique_ptr<MonitorCopy> self(new MonitorCopy(from, std::move(to), std::move(what)));
  pthread_t thread{};
  if (const int error = ::pthread_create(&thread, nullptr, &MonitorCopy::main, self.get()); error != 0) {
    return fail_errno(error, "make the thread that copies the monitor");
  }
  self->thread_ = thread;
  return self;
}

MonitorCopy::~MonitorCopy() {
  if (thread_) {
    ::pthread_join(*thread_, nullptr);
  }
}

Result<void> MonitorCopy::finish() {
  if (thread_) {
    ::pthread_join(*thread_, nullptr);
    thread_.reset();
  }
  return std::exchange(outcome_, {});
}

void* MonitorCopy::main(void* self) {
  auto& own = *static_cast<MonitorCopy*>(self);
  own.outcome_ = own.copy();
  own.to_.reset();  // what is open for writing cannot be executed
  return nullptr;
}

Result<void> MonitorCopy::copy() {
  constexpr std::size_t kChunk = std::size_t{1} << 30U;
  bool is_plain = false;
  for (;;) {
    // A file system that can lends the copy the blocks.
    const ssize_t count = is_plain ? ::sendfile(to_.get(), from_.get(), nullptr, kChunk)
                                   : ::copy_file_range(from_.get(), nullptr, to_.get(), nullptr, kChunk, 0);
    if (count == 0) {
      return {};
    }
    if (count < 0 && !is_plain && errno != EINTR) {
      is_plain = true;  // between file systems, or not of this one; what is copied already counts
    } else if (count < 0 && errno != EINTR) {
      return fail_errno(errno, "copy " + what_);
    }
  }
}

}  // namespace mayfly::jail
