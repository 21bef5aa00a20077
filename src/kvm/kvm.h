// /dev/kvm, open and found fit.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "kvm/capabilities.h"
#include "kvm/vm.h"
#include "memory/guest_memory.h"

namespace mayfly {

// The system descriptor. Owns it; move-only. All members are const and thread-safe: asking for the supported
// CPUID in one thread while another creates the Vm is legal, and worth it (both take a few tenths of a
// millisecond).
class Kvm {
 public:
  // Opens `path`, and checks KVM_GET_API_VERSION (api.rst 4.1) and the wanted capabilities (4.4). Errors say
  // what to do: kNotFound where there is no such device, kPermission where this user may not open it,
  // kUnsupported where it is no KVM, speaks another version, or lacks an essential capability.
  // `changes`: which of the capabilities not to ask for.
  static Result<Kvm> open(const std::string& path = "/dev/kvm",
                          std::span<const CapabilityChange> changes = {});

  // What this KVM cannot do that guests can do without; for the log. Sentences without a final stop.
  std::span<const std::string> warnings() const { return warnings_; }

  // KVM_CHECK_EXTENSION (api.rst 4.4): 0 where the KVM does not know `capability`, else positive; what the
  // number means depends on the capability.
  int check_extension(std::uint32_t capability) const;

  // The most vCPUs a Vm can have, and the most that KVM recommends (KVM_CAP_MAX_VCPUS, KVM_CAP_NR_VCPUS).
  std::uint32_t max_vcpus() const;
  std::uint32_t recommended_vcpus() const;

  // Bytes that KVM_GET_XSAVE2 fills for a vCPU (KVM_CAP_XSAVE2, api.rst 4.134): 4096, the size of kvm_xsave,
  // unless guests may have larger state; this process asks for none (x86_64/cpuid.h on AMX).
  std::size_t xsave_size() const;

  // KVM_CREATE_VM (api.rst 4.2) alone. Errors: kBusy where another hypervisor holds the processor's
  // virtualization, kExhausted.
  Result<Vm> create_empty_vm() const;
  // All else that comes before its vCPUs, of a VM of this KVM's, in the one order that is fast: memory slots,
  // then the interrupt controllers. (Creating the controllers starts a grace period of the kernel's SRCU that
  // a memory slot set after it waits for: 1.3 ms against 6.8 ms in all, measured.) `memory` is
  // GuestMemory::regions(), and what it points at must outlive the Vm. Error kInvalidArgument for regions KVM
  // refuses.
  Result<Vm> complete_vm(Vm vm, std::span<const MemoryRegion> memory, const VmOptions& options) const;

  // The descriptor, for this room's own use.
  const UniqueFd& descriptor() const { return fd_; }

 private:
  Kvm(UniqueFd fd, std::size_t run_area_size, std::vector<std::string> warnings)
      : fd_(std::move(fd)), run_area_size_(run_area_size), warnings_(std::move(warnings)) {}

  UniqueFd fd_;
  std::size_t run_area_size_;  // bytes of a vCPU's kvm_run mapping
  std::vector<std::string> warnings_;
};

}  // namespace mayfly
