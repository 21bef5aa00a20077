#include "kvm/kvm.h"

#include <fcntl.h>
#include <linux/kvm.h>

#include <algorithm>
#include <utility>

#include "kvm/capabilities.h"
#include "kvm/ioctl.h"

namespace mayfly {
namespace {

using kvm_detail::call;

// What a person can do about an open(2) that failed so.
std::string_view remedy_for_open(int os_errno) {
  switch (os_errno) {
    case ENOENT:
    case ENODEV:
    case ENXIO:
      return "; load the module kvm-intel or kvm-amd (modprobe kvm-intel); if it refuses, enable "
             "virtualization in the firmware, or nested virtualization where this host is itself a virtual "
             "machine";
    case EACCES:
    case EPERM:
      return "; let this user open it: join the group that owns it (usermod -aG kvm USER, then log in "
             "anew), and in a container pass the device in";
    default:
      return "";
  }
}

Error with_remedy(const Error& error, std::string_view remedy) {
  return Error(error.code(), error.message() + std::string(remedy));
}

}  // namespace

Result<Kvm> Kvm::open(const std::string& path, std::span<const CapabilityChange> changes) {
  auto opened = open_file(path, O_RDWR, "KVM device");
  if (!opened) {
    return tl::make_unexpected(with_remedy(opened.error(), remedy_for_open(opened.error().os_errno())));
  }
  UniqueFd fd = std::move(*opened);

  const auto version = call(fd, KVM_GET_API_VERSION, 0UL, "ask " + path + " for its KVM version");
  if (!version) {
    return tl::make_unexpected(with_remedy(version.error(), "; it is not a KVM device"));
  }
  if (*version != KVM_API_VERSION) {
    return fail(ErrorCode::kUnsupported,
                path + ": speaks version " + std::to_string(*version) +
                    " of the KVM interface, and only 12 is known; use a kernel of 2.6.22 or later");
  }

  auto warnings = check_capabilities(
      wanted_capabilities(),
      [&fd](std::uint32_t number) {
        return call(fd, KVM_CHECK_EXTENSION, static_cast<unsigned long>(number), "").value_or(0);
      },
      changes);
  if (!warnings) {
    return tl::make_unexpected(warnings.error().within(path));
  }

  MAYFLY_TRY_ASSIGN(const int run_area_size,
                    call(fd, KVM_GET_VCPU_MMAP_SIZE, 0UL, "ask for the size of a vCPU's shared area"));
  return Kvm(std::move(fd), static_cast<std::size_t>(run_area_size), std::move(*warnings));
}

int Kvm::check_extension(std::uint32_t capability) const {
  return call(fd_, KVM_CHECK_EXTENSION, static_cast<unsigned long>(capability), "").value_or(0);
}

// The fallbacks are those of api.rst 4.7: 4 recommended, and as many at most as are recommended.
std::uint32_t Kvm::recommended_vcpus() const {
  const int count = check_extension(KVM_CAP_NR_VCPUS);
  return count > 0 ? static_cast<std::uint32_t>(count) : 4;
}

std::uint32_t Kvm::max_vcpus() const {
  const int count = check_extension(KVM_CAP_MAX_VCPUS);
  return count > 0 ? static_cast<std::uint32_t>(count) : recommended_vcpus();
}

std::size_t Kvm::xsave_size() const {
  const int size = check_extension(KVM_CAP_XSAVE2);
  // What KVM_GET_XSAVE takes. Not sizeof(kvm_xsave): its array without a size takes up room in C++, and a
  // vCPU of any host would seem to have more state than that.
  constexpr std::size_t kSmallest = 4096;
  return std::max(kSmallest, size > 0 ? static_cast<std::size_t>(size) : 0);
}

Result<Vm> Kvm::create_empty_vm() const {
  const auto created = call(fd_, KVM_CREATE_VM, 0UL, "create a virtual machine (KVM_CREATE_VM)");
  if (!created) {
    return tl::make_unexpected(with_remedy(
        created.error(), created.error().os_errno() == EBUSY
                             ? "; another hypervisor holds the processor's virtualization: stop it"
                             : ""));
  }
  return Vm(UniqueFd(*created), run_area_size_);
}

Result<Vm> Kvm::complete_vm(Vm vm, std::span<const MemoryRegion> memory, const VmOptions& options) const {
  MAYFLY_TRY(vm.set_memory(memory));
  if (options.read_only && check_extension(KVM_CAP_READONLY_MEM) > 0) {
    MAYFLY_TRY(vm.set_read_only(*options.read_only));
  }
  MAYFLY_TRY(vm.create_platform(options));
  return vm;
}

}  // namespace mayfly
