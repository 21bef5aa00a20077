// Ends a monitor whose guest's pages another process brings (memory/userfault.h), where that one does not.
//
// Whoever touches a page that is missing waits for it within the kernel, out of reach of all but SIGKILL: a
// vCPU, a device, a restore. So may the thread that hears of signals. This one touches no guest memory.
//
// Until a load has ended there is a way back: memory that the userfaultfd watches no longer reads as zeros,
// who waits goes on, and the load, which hears of it, fails.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/result.h"
#include "base/side_thread.h"
#include "base/unique_fd.h"
#include "memory/guest_memory.h"
#include "vmm/outcome.h"

namespace mayfly {

class HandlerGuard {
 public:
  struct Calls {
    // Begins the orderly end of the monitor. Thread-safe, and never waits.
    std::function<void(Outcome)> end_with;
    // Where that has not come to its end in time: ends the process. Called on the guard's thread.
    std::function<void()> end_at_once;
    // As SideThread's.
    std::function<Result<void>()> confine;
  };

  // Starts the thread "mayfly_guard". `connection`: to the handler. `userfault` and `memory`, which it is of,
  // are borrowed for the call. SIGTERM and SIGINT are blocked in the calling thread; the guard takes those
  // that the monitor's loop does not. Errors: those of `confine` and of the host's. A load is under way until
  // finish_load().
  //
  // A handler is taken to be gone when it has closed the connection, its process has ended as far as that can
  // be known, and for two seconds nobody has read of a page that is missing. One that has brought all pages
  // may go. One that has gone, or a request to end, gives up a load that is under way; so does one that has
  // taken ten seconds.
  static Result<std::unique_ptr<HandlerGuard>> start(const UniqueFd& userfault, const GuestMemory& memory,
                                                     UniqueFd connection, Calls calls);
  HandlerGuard(const HandlerGuard&) = delete;
  HandlerGuard& operator=(const HandlerGuard&) = delete;
  ~HandlerGuard();

  // The end of the load, before anything of the guest runs, or where it has failed. An error, each time,
  // where it was given up: what it has read of guest memory since is worth nothing. Any thread.
  Result<void> finish_load();

  // The orderly end has begun: from now on it has five seconds. Any thread.
  void expect_end();

 private:
  HandlerGuard(UniqueFd userfault, const GuestMemory& memory, UniqueFd connection, Calls calls);

  void main() noexcept;
  bool handler_has_hung_up();
  bool handler_is_gone() const;
  bool is_loading();
  bool give_up_load(const std::string& why);

  struct Range {
    std::uint64_t start;  // an address of this process
    std::uint64_t size;
  };

  const UniqueFd userfault_;
  std::vector<Range> memory_;
  UniqueFd connection_;  // not open: it has hung up
  const Calls calls_;
  pid_t handler_id_ = 0;  // 0: nobody knows it
  UniqueFd handler_;      // of its process, which readable has ended; not open: nobody knows it
  UniqueFd signals_;
  UniqueFd wishes_;  // an eventfd: kEnd, kStop or both
  Mutex mutex_;      // a leaf
  bool loading_ MAYFLY_GUARDED_BY(mutex_) = true;
  std::string given_up_ MAYFLY_GUARDED_BY(mutex_);  // why the load was; empty: it was not
  SideThread thread_;                               // last: all above is there before it starts
};

}  // namespace mayfly
