// Ends a monitor whose guest's pages another process brings (memory/userfault.h), where that one does not.
//
// Whoever touches a page that is missing waits for it within the kernel, out of reach of all but SIGKILL: a
// vCPU, a device, a restore. So may the thread that hears of signals. This one touches no guest memory.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

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
  // that the monitor's loop does not. Errors: those of `confine` and of the host's.
  //
  // A handler is taken to be gone when it has closed the connection, its process has ended as far as that can
  // be known, and for two seconds nobody has read of a page that is missing. One that has brought all pages
  // may go.
  static Result<std::unique_ptr<HandlerGuard>> start(const UniqueFd& userfault, const GuestMemory& memory,
                                                     UniqueFd connection, Calls calls);
  HandlerGuard(const HandlerGuard&) = delete;
  HandlerGuard& operator=(const HandlerGuard&) = delete;
  ~HandlerGuard();

  // The orderly end has begun: from now on it has a second. Any thread.
  void expect_end();

 private:
  HandlerGuard(UniqueFd userfault, const GuestMemory& memory, UniqueFd connection, Calls calls);

  void main() noexcept;
  bool handler_has_hung_up();
  bool handler_is_gone() const;

  const UniqueFd userfault_;
  std::uint64_t begin_ = 0;  // addresses of this process between which all of guest memory lies
  std::uint64_t end_ = 0;
  UniqueFd connection_;  // not open: it has hung up
  const Calls calls_;
  UniqueFd handler_;  // of its process, which readable has ended; not open: nobody knows it
  UniqueFd signals_;
  UniqueFd wishes_;    // an eventfd: kEnd, kStop or both
  SideThread thread_;  // last: all above is there before it starts
};

}  // namespace mayfly
