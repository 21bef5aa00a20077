#include "vmm/outcome.h"

namespace mayfly {

int exit_code_of(OutcomeKind kind) {
  switch (kind) {
    case OutcomeKind::kGuestReset:
    case OutcomeKind::kGuestPowerOff:
    case OutcomeKind::kStopped:
      return 0;
    case OutcomeKind::kTripleFault:
    case OutcomeKind::kGuestCrash:
    case OutcomeKind::kVcpuFailed:
      return 1;
  }
  return 1;
}

const char* name_of(OutcomeKind kind) {
  switch (kind) {
    case OutcomeKind::kGuestReset:
      return "guest reset";
    case OutcomeKind::kGuestPowerOff:
      return "guest power-off";
    case OutcomeKind::kStopped:
      return "stopped";
    case OutcomeKind::kTripleFault:
      return "triple fault";
    case OutcomeKind::kGuestCrash:
      return "guest crash";
    case OutcomeKind::kVcpuFailed:
      return "vCPU failed";
  }
  return "unknown";
}

}  // namespace mayfly
