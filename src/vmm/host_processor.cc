#include "vmm/host_processor.h"

#include "vmm/arch.h"

namespace mayfly {

HostProcessor::HostProcessor(BootTrace* trace) {
  asked_.emplace([trace]() -> Result<arch::SupportedProcessor> {
    const TracePhase phase(trace, "ask for CPUID");
    MAYFLY_TRY_ASSIGN(const Kvm kvm, Kvm::open());
    return supported_processor(kvm);
  });
}

Result<arch::SupportedProcessor> HostProcessor::take(const Kvm& kvm) {
  if (asked_) {
    auto answer = asked_->take();
    asked_.reset();
    if (answer) {
      return answer;
    }
  }
  return supported_processor(kvm);
}

}  // namespace mayfly
