// The dirty log of a machine's RAM: all that is written to it, by whomever, for diffs and for writing memory
// while its guest runs.
//
// Two logs make one. KVM's has what vCPUs write and what KVM itself writes for them (clocks, steal time).
// GuestMemory's has what this process and its system calls write. Who that is, and what notes it:
//
//   device data   by copies and system calls (readv, preadv2, io_uring, recvmsg) into descriptor chains:
//                 block, network with tap, passt and the metadata service's frames. DescriptorChain notes all
//                 device-writable bytes of a chain when it ends, however it does: completed, put back, or
//                 dropped by a reset, a stopped queue or a fault. The status bytes of requests and of the
//                 control queue are among them.
//   used rings    VirtQueue: entries, index, flags, avail_event
//   tables, boot  write(), write_object(), fill(), load_file() of GuestMemory note themselves
//
// Not in it, for it is no change of what the guest has in RAM: loading a memory file and a userfaultfd
// handler's pages, which make RAM; and the register pages of virtio devices, which are no RAM
// (virtio_windows.h).
//
// What is written is marked after it was, so a page may be copied between the two: it is told by the next
// take. For the last one of a snapshot there is no next. So before it, in this order: stop the vCPUs; have
// every device's state, which ends what is under way in guest memory; take.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/result.h"
#include "kvm/vm.h"
#include "memory/guest_memory.h"
#include "memory/precopy.h"

namespace mayfly {

class DirtyLog final : public DirtyPageSource {
 public:
  // Borrows both; the VM's memory is `memory`. Off at first. One thread at a time.
  DirtyLog(Vm& vm, GuestMemory& memory) : vm_(vm), memory_(memory) {}

  // From here on every write is told; started already: nothing happens. Where the guest runs, see
  // GuestMemory::note_writes() for what has to come between this and the first copied page. After an error
  // it is off.
  Result<void> start();
  void stop();
  bool is_on() const { return on_; }

  // Errors: kNotFound where it is off, kOutOfRange for a region that is none, and KVM's; after each of them
  // nothing was taken.
  //
  // Both are taken before a page is copied, so for the pages their order is all the same. KVM's comes first
  // because it can fail: were the record taken before it, its pages would be forgotten and told to nobody.
  Result<std::vector<std::uint64_t>> take_dirty_pages(std::size_t region) override;

 private:
  Vm& vm_;
  GuestMemory& memory_;
  bool on_ = false;
};

}  // namespace mayfly
