#include "vmm/frame_ahead.h"

#include <unistd.h>

#include <utility>

#include "base/check.h"
#include "base/handover.h"

namespace mayfly {
namespace {

// A frame without vCPUs, and, where it is not wanted yet, without timer.
Result<MachineFrame> begin_frame(GuestMemory memory, std::size_t devices, const Kvm& kvm,
                                 std::optional<Vm> empty, bool timer) {
  MAYFLY_TRY_ASSIGN(VirtioWindows windows, VirtioWindows::create(devices));
  MAYFLY_TRY_ASSIGN(Vm vm, create_platform_vm(std::move(empty), kvm, memory, windows.all(), timer));
  return MachineFrame{std::move(memory), std::move(windows), std::move(vm), {}, {}};
}

Result<void> add_vcpus(MachineFrame& frame, std::uint32_t count) {
  for (std::uint32_t id = 0; id < count; ++id) {
    MAYFLY_TRY_ASSIGN(Vcpu vcpu, frame.vm.create_vcpu(id));
    frame.vcpus.push_back(std::move(vcpu));
  }
  return {};
}

}  // namespace

Result<MachineFrame> make_frame(GuestMemory memory, std::size_t devices, const Kvm& kvm,
                                std::optional<Vm> empty, std::uint32_t vcpus) {
  MAYFLY_TRY_ASSIGN(MachineFrame frame, begin_frame(std::move(memory), devices, kvm, std::move(empty), true));
  MAYFLY_TRY(add_vcpus(frame, vcpus));
  return frame;
}

struct FrameAhead::Making {
  Making(GuestMemory ram, std::size_t device_count, std::uint32_t vcpu_count)
      : memory(std::move(ram)), devices(device_count), vcpus(vcpu_count) {}

  void make(OpenKvm& opened, bool timer) {
    const auto begin = BootTrace::Clock::now();
    made.emplace(
        begin_frame(std::move(memory), devices, opened.kvm, std::exchange(opened.vm, std::nullopt), timer));
    if (!timer) {
      without_timer.give(*made ? &(*made)->vm : nullptr);
    }
    if (*made) {
      added = add_vcpus(**made, vcpus);
    }
    phase = {"create VM", begin, BootTrace::Clock::now(), ::gettid()};
  }

  GuestMemory memory;
  const std::size_t devices;
  const std::uint32_t vcpus;
  Handover<const Vm*> without_timer{};         // null: it could not be made
  std::optional<Result<MachineFrame>> made{};  // the thread's, up to its end
  Result<void> added{};
  BootTrace::Phase phase{};
};

FrameAhead::FrameAhead(GuestMemory memory, std::size_t devices, std::uint32_t vcpus, HostKvm* host)
    : backing_(memory.backing()), making_(std::make_shared<Making>(std::move(memory), devices, vcpus)) {
  is_under_way_ = host != nullptr && host->use([making = making_](OpenKvm* opened) {
    if (opened != nullptr) {
      making->make(*opened, false);
    } else {
      making->without_timer.give(nullptr);
    }
  });
}

void FrameAhead::create_timer() {
  const Vm* const vm = is_under_way_ ? making_->without_timer.take() : nullptr;
  if (vm != nullptr) {
    timer_ = vm->create_timer();
  }
  timer_is_made_ = true;
}

Result<MachineFrame> FrameAhead::take(OpenKvm& opened, BootTrace* trace) {
  MAYFLY_CHECK(!is_under_way_ || timer_is_made_, "create_timer() comes before take()");
  if (!making_->made) {
    making_->make(opened, true);
  }
  if (trace != nullptr) {
    trace->phase(making_->phase);
  }
  Result<MachineFrame> frame = *std::exchange(making_->made, std::nullopt);
  if (frame) {
    MAYFLY_TRY(timer_);
    MAYFLY_TRY(making_->added);
  }
  return frame;
}

}  // namespace mayfly
