// What the host's KVM can give a guest of the host's processor.
#pragma once

#include <optional>

#include "base/aside.h"
#include "base/result.h"
#include "kvm/arch.h"
#include "kvm/kvm.h"
#include "vmm/boot_trace.h"

namespace mayfly {

// Asks while others get ready for the answer, which takes KVM a few tenths of a millisecond: on a thread of
// its own, which ends by itself.
class HostProcessor {
 public:
  // `trace` may be null; outlives this.
  explicit HostProcessor(BootTrace* trace);

  // Asks `kvm` itself where there was no answer, or it was taken before.
  Result<arch::SupportedProcessor> take(const Kvm& kvm);

 private:
  std::optional<Aside<Result<arch::SupportedProcessor>>> asked_;
};

}  // namespace mayfly
