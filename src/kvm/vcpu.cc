#include "kvm/vcpu.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <string>
#include <utility>

#include "kvm/ioctl.h"

namespace mayfly {

Result<Vcpu> Vcpu::from_descriptor(UniqueFd fd, std::size_t run_area_size, std::uint32_t id) {
  void* area = MAP_FAILED;
  if (run_area_size >= sizeof(kvm_run)) {
    area = ::mmap(nullptr, run_area_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  } else {
    errno = EINVAL;
  }
  if (area == MAP_FAILED) {
    return fail_errno(errno, "map the shared area of vCPU " + std::to_string(id));
  }
  // SAFETY: the descriptor's first page is a kvm_run that the kernel made (api.rst 5), checked to be mapped
  // whole.
  return Vcpu(std::move(fd), static_cast<kvm_run*>(area), run_area_size, id);
}

Vcpu::Vcpu(Vcpu&& other) noexcept
    : fd_(std::move(other.fd_)),
      run_(std::exchange(other.run_, nullptr)),
      run_area_size_(other.run_area_size_),
      id_(other.id_) {}

Vcpu& Vcpu::operator=(Vcpu&& other) noexcept {
  if (this != &other) {
    unmap();
    fd_ = std::move(other.fd_);
    run_ = std::exchange(other.run_, nullptr);
    run_area_size_ = other.run_area_size_;
    id_ = other.id_;
  }
  return *this;
}

Vcpu::~Vcpu() {
  unmap();
}

void Vcpu::unmap() noexcept {
  if (run_ != nullptr) {
    ::munmap(std::exchange(run_, nullptr), run_area_size_);
  }
}

Result<VcpuExit> Vcpu::run() {
  if (::ioctl(fd_.get(), KVM_RUN, 0UL) < 0) {
    switch (errno) {
      case EINTR:   // a signal, or immediate_exit
      case EAGAIN:  // a vCPU that waits for its start-up interrupt was woken by something else
        return Interrupted{};
      case EFAULT:
        if (auto exit = decode_exit(*run_, run_area_size_);
            exit && std::holds_alternative<MemoryFaulted>(*exit)) {
          return exit;
        }
        return fail_errno(EFAULT, "run vCPU " + std::to_string(id_) +
                                      ": the host has no memory for a page the guest touched (KVM_RUN)");
      default:
        return fail_errno(errno, "run vCPU " + std::to_string(id_) + " (KVM_RUN)");
    }
  }
  return decode_exit(*run_, run_area_size_);
}

void Vcpu::request_exit() noexcept {
  // The kernel reads it once on its way into the guest; the signal that follows orders the two.
  std::atomic_ref<__u8>(run_->immediate_exit).store(1, std::memory_order_release);
}

void Vcpu::clear_exit_request() noexcept {
  std::atomic_ref<__u8>(run_->immediate_exit).store(0, std::memory_order_release);
}

Result<VcpuExit> Vcpu::complete_pending_access() {
  request_exit();
  return run();
}

Result<kvm_mp_state> Vcpu::mp_state() const {
  return kvm_detail::read_state<kvm_mp_state>(fd_, KVM_GET_MP_STATE,
                                              "read the run state of a vCPU (KVM_GET_MP_STATE)");
}

Result<void> Vcpu::set_mp_state(const kvm_mp_state& state) const {
  return kvm_detail::command(fd_, KVM_SET_MP_STATE, &state, "set the run state of a vCPU (KVM_SET_MP_STATE)");
}

Result<void> Vcpu::note_pause() const {
  auto told = kvm_detail::command(fd_, KVM_KVMCLOCK_CTRL, 0UL, "note a pause (KVM_KVMCLOCK_CTRL)");
  if (!told && told.error().os_errno() == EINVAL) {
    return {};  // the guest has no kvmclock
  }
  return told;
}

}  // namespace mayfly
