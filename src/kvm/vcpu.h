// One virtual processor.
#pragma once

#include <linux/kvm.h>

#include <cstddef>
#include <cstdint>

#include "base/result.h"
#include "base/unique_fd.h"
#include "kvm/vcpu_exit.h"

namespace mayfly {

// Owns the descriptor and the kvm_run area shared with the kernel; move-only. One thread at a time uses it,
// except for request_exit(). Registers are set through the functions of x86_64/vcpu_state.h.
class Vcpu {
 public:
  Vcpu(Vcpu&& other) noexcept;
  Vcpu& operator=(Vcpu&& other) noexcept;
  Vcpu(const Vcpu&) = delete;
  Vcpu& operator=(const Vcpu&) = delete;
  ~Vcpu();

  std::uint32_t id() const { return id_; }

  // KVM_RUN (api.rst 4.10): runs the guest until it needs something. A port or MMIO access is completed by
  // the next call, which takes what the caller put into `data`. Errors: kIo (EFAULT) where guest memory
  // cannot be had, say for lack of huge pages, and kInternal for an answer that contradicts itself; the guest
  // is then lost.
  Result<VcpuExit> run();

  // Makes the run() under way, or the next one, come back with Interrupted (kvm_run.immediate_exit), and
  // those after it until clear_exit_request(). Any thread, and async-signal-safe; a vCPU that is inside the
  // guest must also be sent a signal. The Vcpu must not be moved from or destroyed meanwhile.
  void request_exit() noexcept;
  void clear_exit_request() noexcept;

  // Completes a port or MMIO access that is still open, without running the guest, so that registers are
  // whole (the note in api.rst 4.10). Interrupted: nothing is open any more. Another access: KVM had split
  // one (a wide MMIO access, a string instruction) and wants this part handled next; handle it and call
  // again. Leaves the exit requested.
  Result<VcpuExit> complete_pending_access();

  // KVM_GET_MP_STATE and KVM_SET_MP_STATE (api.rst 4.38, 4.39): KVM_MP_STATE_*.
  Result<kvm_mp_state> mp_state() const;
  Result<void> set_mp_state(const kvm_mp_state& state) const;

  // Tells a guest with kvmclock that it was stopped, so that its watchdogs do not bark (KVM_KVMCLOCK_CTRL,
  // api.rst 4.70). Nothing happens for a guest without one.
  Result<void> note_pause() const;

  // The descriptor, for this room's own use.
  const UniqueFd& descriptor() const { return fd_; }

 private:
  friend class Vm;
  static Result<Vcpu> from_descriptor(UniqueFd fd, std::size_t run_area_size, std::uint32_t id);
  Vcpu(UniqueFd fd, kvm_run* run, std::size_t run_area_size, std::uint32_t id)
      : fd_(std::move(fd)), run_(run), run_area_size_(run_area_size), id_(id) {}
  void unmap() noexcept;

  UniqueFd fd_;
  kvm_run* run_;
  std::size_t run_area_size_;  // bytes
  std::uint32_t id_;
};

// What `run`, an area of `area_size` bytes that KVM filled, says; for Vcpu and its tests. Error kInternal
// where the data of a port access lies outside the area.
Result<VcpuExit> decode_exit(kvm_run& run, std::size_t area_size);

}  // namespace mayfly
