#include "vmm/frame_ahead.h"

#include <unistd.h>

#include <string_view>
#include <utility>

#include "base/check.h"

namespace mayfly {
namespace {

Result<MachineFrame> make_without_timer(GuestMemory memory, std::size_t devices, const Kvm& kvm,
                                        std::optional<Vm> empty, std::uint32_t vcpus) {
  MAYFLY_TRY_ASSIGN(VirtioWindows windows, VirtioWindows::create(devices));
  MAYFLY_TRY_ASSIGN(Vm vm, create_platform_vm(std::move(empty), kvm, memory, windows.all(), false));
  MachineFrame frame{std::move(memory), std::move(windows), std::move(vm), {}, {}};
  for (std::uint32_t id = 0; id < vcpus; ++id) {
    MAYFLY_TRY_ASSIGN(Vcpu vcpu, frame.vm.create_vcpu(id));
    frame.vcpus.push_back(std::move(vcpu));
  }
  return frame;
}

constexpr std::string_view kMaking = "create VM";

// Once; `trace` may be null.
void tell(BootTrace* trace, std::optional<BootTrace::Phase>& phase) {
  if (trace != nullptr && phase) {
    trace->phase(*phase);
  }
  phase.reset();
}

}  // namespace

Result<MachineFrame> make_frame(GuestMemory memory, std::size_t devices, const Kvm& kvm,
                                std::optional<Vm> empty, std::uint32_t vcpus) {
  MAYFLY_TRY_ASSIGN(MachineFrame frame,
                    make_without_timer(std::move(memory), devices, kvm, std::move(empty), vcpus));
  MAYFLY_TRY(frame.vm.create_timer());
  return frame;
}

struct FrameAhead::Making {
  struct Made {
    std::optional<OpenKvm> opened{};
    std::optional<Result<MachineFrame>> frame{};
    std::optional<BootTrace::Phase> opening{};
    std::optional<BootTrace::Phase> making{};
  };

  Making(GuestMemory ram, std::size_t device_count, std::uint32_t vcpu_count)
      : memory(std::move(ram)), devices(device_count), vcpus(vcpu_count) {}

  // The timer last, beside what its taker does with the rest: KVM starts a thread for it and waits for that.
  void make_and_give(std::optional<OpenKvm> opened, const BootTrace::Phase& opening) {
    if (!opened) {
      made.give({.opening = opening});
      return;
    }
    const auto begin = BootTrace::Clock::now();
    Result<MachineFrame> frame = make_without_timer(std::move(memory), devices, opened->kvm,
                                                    std::exchange(opened->vm, std::nullopt), vcpus);
    Result<Vm> timed = frame ? frame->vm.duplicate() : tl::make_unexpected(frame.error());
    std::shared_ptr<Handover<Result<void>>> timer;
    if (timed) {
      timer = std::make_shared<Handover<Result<void>>>();
      frame->timer = timer;
    } else {
      frame = tl::make_unexpected(timed.error());
    }
    made.give({.opened = std::move(opened),
               .frame = std::move(frame),
               .opening = opening,
               .making = BootTrace::Phase{kMaking, begin, BootTrace::Clock::now(), ::gettid()}});
    if (timer) {
      timer->give(timed->create_timer());
    }
  }

  GuestMemory memory;
  const std::size_t devices;
  const std::uint32_t vcpus;
  Handover<Made> made{};
  std::optional<Made> taken{};
};

FrameAhead::FrameAhead(GuestMemory memory, std::size_t devices, std::uint32_t vcpus, HostKvm* host)
    : backing_(memory.backing()),
      host_(host),
      making_(std::make_shared<Making>(std::move(memory), devices, vcpus)) {
  const auto job = [making = making_](std::optional<OpenKvm> opened, const BootTrace::Phase& opening) {
    making->make_and_give(std::move(opened), opening);
  };
  if (host_ != nullptr && host_->use(job)) {
    host_ = nullptr;
  } else {
    making_->taken.emplace(Making::Made{});
  }
}

FrameAhead& FrameAhead::operator=(FrameAhead&& other) noexcept {
  give_up();
  backing_ = other.backing_;
  host_ = other.host_;
  making_ = std::move(other.making_);
  return *this;
}

FrameAhead::~FrameAhead() {
  give_up();
}

// The thread, which may still be making the timer, keeps nothing of it.
void FrameAhead::give_up() {
  if (making_) {
    wait();
    making_->taken.reset();
  }
}

void FrameAhead::wait() {
  if (!making_->taken) {
    making_->taken.emplace(making_->made.take());
  }
}

std::optional<OpenKvm> FrameAhead::take_kvm(BootTrace* trace) {
  if (host_ != nullptr) {
    return host_->take(trace);
  }
  wait();
  tell(trace, making_->taken->opening);
  return std::exchange(making_->taken->opened, std::nullopt);
}

Result<MachineFrame> FrameAhead::take(OpenKvm& opened, BootTrace* trace) {
  MAYFLY_CHECK(making_->taken.has_value(), "take_kvm() comes before take()");
  auto made = std::move(making_->taken->frame);
  making_->taken->frame.reset();
  if (!made) {
    const TracePhase phase(trace, kMaking);
    return make_frame(std::move(making_->memory), making_->devices, opened.kvm,
                      std::exchange(opened.vm, std::nullopt), making_->vcpus);
  }
  tell(trace, making_->taken->making);
  return std::move(*made);
}

}  // namespace mayfly
