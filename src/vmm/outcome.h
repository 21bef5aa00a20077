// How a microVM ended, and what the process says of it.
#pragma once

#include <cstdint>
#include <string>

namespace mayfly {

enum class OutcomeKind : std::uint8_t {
  kGuestReset,     // the guest asked for a reset: ACPI reset register, i8042, or KVM's own event
  kGuestPowerOff,  // the guest asked for power-off: ACPI sleep control register (S5), or KVM's own event
  kStopped,        // SIGTERM, SIGINT, the console's escape, or an API call
  kTripleFault,    // a vCPU shut down on a triple fault (KVM_EXIT_SHUTDOWN)
  kGuestCrash,     // the guest reported a crash (KVM_SYSTEM_EVENT_CRASH)
  kVcpuFailed,     // KVM could not go on: internal error, failed entry, an exit nobody asked for, a failed
                   // KVM_RUN
};

struct Outcome {
  OutcomeKind kind;
  std::string detail;  // a clause for the log: which vCPU, which register
};

// The dialect's exit code: 0 for a reset, a power-off or a stop that was asked for, 1 for every failure.
int exit_code_of(OutcomeKind kind);

// "guest reset", "triple fault", ...
const char* name_of(OutcomeKind kind);

}  // namespace mayfly
