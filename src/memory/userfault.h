// Guest RAM that another process brings, page by page, as the guest touches it: userfaultfd(2), handed over a
// UNIX socket.
//
// The handler gets one message: the descriptor by SCM_RIGHTS, and as its bytes a JSON array with an object
// for each region: where it lies in this process, its size, where its bytes are in the memory file, the size
// of its pages. From then on it reads fault events from the descriptor and answers them with UFFDIO_COPY or
// UFFDIO_ZEROPAGE; pages that this process gives back to the host (MADV_DONTNEED) are told by
// UFFD_EVENT_REMOVE: when they are touched again, the handler is to answer with zeros.
#pragma once

#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/guest_memory.h"

namespace mayfly {

// Owns the descriptor, which must live as long as the guest: with the last one closed the kernel watches
// nothing any more, and every missing page would read as zeros, unseen. The handler has another, which its
// death closes; with this one open its guest waits at the next page that is missing, for good: to end it is
// its owner's part.
class Userfault {
 public:
  // Through /dev/userfaultfd, or by the system call, which wants CAP_SYS_PTRACE or the sysctl
  // vm.unprivileged_userfaultfd, as faults come from within the kernel as well, when KVM runs the guest.
  // Before a jail takes the device away. Errors: kPermission, kUnsupported for a kernel without.
  static Result<Userfault> open();

  // From here on every page of `memory` that is not there, at the start all of them, is the handler's to
  // bring: whoever touches one waits, this process too. Nothing may have been written to it; pages that
  // something has touched are not missed again. For anonymous memory, memfds and huge pages; a private file
  // is kUnsupported.
  Result<void> watch(const GuestMemory& memory) const;

  // Sends the descriptor and the regions through `socket`, a connected UNIX stream socket. One message,
  // which a handler can receive by one call. Waits neither for room in the socket nor for an answer, of which
  // the dialect has none. Errors name the cause; a handler that has gone is EPIPE.
  Result<void> hand_over(const UniqueFd& socket, const GuestMemory& memory) const;

  const UniqueFd& descriptor() const { return fd_; }

 private:
  explicit Userfault(UniqueFd fd) : fd_(std::move(fd)) {}

  UniqueFd fd_;
};

// The regions of `memory` as the handler is told: [{"base_host_virt_addr":...,"size":...,"offset":...,
// "page_size":...,"page_size_kib":...}], all in bytes, the last as well: older handlers know the page's size
// by that name.
std::string describe_regions(const GuestMemory& memory);

}  // namespace mayfly
