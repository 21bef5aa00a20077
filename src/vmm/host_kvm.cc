#include "vmm/host_kvm.h"

#include <system_error>
#include <utility>

#include "base/thread_name.h"
#include "vmm/arch.h"

namespace mayfly {
namespace {

Result<OpenKvm> open_with_vm(BootTrace* trace) {
  const TracePhase phase(trace, "make a VM ahead");
  MAYFLY_TRY_ASSIGN(Kvm kvm, Kvm::open());
  MAYFLY_TRY_ASSIGN(Vm vm, kvm.create_empty_vm());
  return OpenKvm{std::move(kvm), std::move(vm)};
}

// By a descriptor of its own: the other's owner may close it meanwhile.
Result<arch::SupportedProcessor> ask(BootTrace* trace) {
  const TracePhase phase(trace, "ask for CPUID");
  MAYFLY_TRY_ASSIGN(const Kvm kvm, Kvm::open());
  return supported_processor(kvm);
}

// What `place` holds, where it still does.
template <typename T>
std::optional<T> take_once(Handover<Result<T>>& place, bool& is_there) {
  if (!std::exchange(is_there, false)) {
    return std::nullopt;
  }
  Result<T> found = place.take();
  return found ? std::optional<T>(std::move(*found)) : std::nullopt;
}

}  // namespace

void HostKvm::start() {
  try {
    thread_ = std::thread([this] {
      set_thread_name("mayfly_ahead");
      look();
    });
    opened_is_there_ = supported_is_there_ = true;
  } catch (const std::system_error&) {
    // No thread to be had: the vCPUs' own will say so.
  }
}

HostKvm::~HostKvm() {
  if (thread_.joinable()) {
    thread_.join();
  }
}

void HostKvm::look() noexcept {
  opened_.give(open_with_vm(trace_));
  supported_.give(ask(trace_));
}

std::optional<OpenKvm> HostKvm::take() {
  return take_once(opened_, opened_is_there_);
}

std::optional<arch::SupportedProcessor> HostKvm::take_supported() {
  auto supported = take_once(supported_, supported_is_there_);
  if (thread_.joinable()) {
    thread_.join();  // it has nothing left to do
  }
  return supported;
}

}  // namespace mayfly
