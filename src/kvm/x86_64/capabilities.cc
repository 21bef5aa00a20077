#include "kvm/capabilities.h"

#include <linux/kvm.h>

#include <array>

namespace mayfly {
namespace {

// Essential is what the first instruction of a guest, its first interrupt or a clean stop would fail without.
constexpr std::array kWanted = {
    Capability{KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY", "guest RAM made of the monitor's memory",
               Need::kEssential},
    Capability{KVM_CAP_SET_TSS_ADDR, "KVM_CAP_SET_TSS_ADDR", "real mode on older Intel processors",
               Need::kEssential},
    Capability{KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID", "telling guests which processor they have",
               Need::kEssential},
    Capability{KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP", "interrupt controllers inside the kernel",
               Need::kEssential},
    Capability{KVM_CAP_PIT2, "KVM_CAP_PIT2", "the timer that guests calibrate their clocks with",
               Need::kEssential},
    Capability{KVM_CAP_IRQFD, "KVM_CAP_IRQFD", "interrupts of devices", Need::kEssential},
    Capability{KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD", "doorbells of virtio devices", Need::kEssential},
    Capability{KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT", "stopping a vCPU without a race",
               Need::kEssential},
    Capability{KVM_CAP_TSC_DEADLINE_TIMER, "KVM_CAP_TSC_DEADLINE_TIMER",
               "guests calibrate a slower timer instead, and boot later", Need::kOptional},
    Capability{KVM_CAP_KVMCLOCK_CTRL, "KVM_CAP_KVMCLOCK_CTRL",
               "guests that were paused may report a soft lockup", Need::kOptional},
    Capability{KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE", "snapshots cannot hold whether a vCPU has started",
               Need::kOptional},
    Capability{KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS", "snapshots cannot hold pending interrupts",
               Need::kOptional},
    Capability{KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS", "snapshots cannot hold debug registers",
               Need::kOptional},
    Capability{KVM_CAP_XSAVE, "KVM_CAP_XSAVE", "snapshots cannot hold vector registers", Need::kOptional},
    Capability{KVM_CAP_XCRS, "KVM_CAP_XCRS", "snapshots cannot hold XCR0", Need::kOptional},
    Capability{KVM_CAP_PIT_STATE2, "KVM_CAP_PIT_STATE2", "snapshots cannot hold the timer's state",
               Need::kOptional},
    Capability{KVM_CAP_ADJUST_CLOCK, "KVM_CAP_ADJUST_CLOCK", "the clock of a restored guest jumps",
               Need::kOptional},
    Capability{KVM_CAP_GET_TSC_KHZ, "KVM_CAP_GET_TSC_KHZ",
               "a snapshot cannot tell whether its clock fits another host", Need::kOptional},
};

}  // namespace

std::span<const Capability> wanted_capabilities() {
  return kWanted;
}

}  // namespace mayfly
