#include "memory/userfault.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

namespace mayfly {
namespace {

// Without UFFD_USER_MODE_ONLY: KVM faults in the kernel. Non-blocking, as handlers expect it who poll(2).
constexpr int kFlags = O_CLOEXEC | O_NONBLOCK;

Result<UniqueFd> open_userfaultfd() {
  const UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  UniqueFd fd(device ? ::ioctl(device.get(), USERFAULTFD_IOC_NEW, kFlags) : -1);
  if (!fd) {
    fd = UniqueFd(static_cast<int>(::syscall(SYS_userfaultfd, kFlags)));
  }
  if (!fd) {
    const int why = errno;
    return fail_errno(why, why == EPERM ? "make a userfaultfd (/dev/userfaultfd cannot be opened, and "
                                          "vm.unprivileged_userfaultfd is 0)"
                                        : "make a userfaultfd");
  }
  return fd;
}

std::uint64_t address_of(const MemoryRegion& region) {
  // SAFETY: the number is for the kernel and the handler; nothing is accessed through it.
  return reinterpret_cast<std::uintptr_t>(region.host);
}

}  // namespace

Result<Userfault> Userfault::open() {
  MAYFLY_TRY_ASSIGN(UniqueFd fd, open_userfaultfd());
  uffdio_api api{};
  api.api = UFFD_API;
  // What this kernel has is told once and only where all that is asked for is there (ioctl_userfaultfd(2)).
  api.features = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MISSING_HUGETLBFS;
  if (::ioctl(fd.get(), UFFDIO_API, &api) != 0) {
    const int why = errno;
    if (why == EINVAL) {
      return fail(ErrorCode::kUnsupported,
                  "userfaultfd: this kernel tells no removed pages, or knows no "
                  "faults in shared memory");
    }
    return fail_errno(why, "set up a userfaultfd");
  }
  return Userfault(std::move(fd));
}

Result<void> Userfault::watch(const GuestMemory& memory) const {
  if (memory.backing() == Backing::kPrivateFile) {
    return fail(ErrorCode::kUnsupported, "userfaultfd: a private memory file brings its pages itself");
  }
  for (const MemoryRegion& region : memory.regions()) {
    uffdio_register request{};
    request.range = {address_of(region), region.range.size()};
    request.mode = UFFDIO_REGISTER_MODE_MISSING;
    if (::ioctl(fd_.get(), UFFDIO_REGISTER, &request) != 0) {
      return fail_errno(errno, "register guest memory with a userfaultfd");
    }
    constexpr std::uint64_t kCopy = 1ULL << _UFFDIO_COPY;
    if ((request.ioctls & kCopy) == 0) {
      return fail(ErrorCode::kUnsupported, "userfaultfd: no pages can be brought to guest memory of " +
                                               std::string(to_string(memory.backing())));
    }
  }
  return {};
}

std::string describe_regions(const GuestMemory& memory) {
  const std::string page_size = memory.backing() == Backing::kHugetlb2M ? "2097152" : "4096";
  std::string text = "[";
  for (const MemoryRegion& region : memory.regions()) {
    text += text.size() > 1 ? "," : "";
    text += R"({"base_host_virt_addr":)" + std::to_string(address_of(region));
    text += R"(,"size":)" + std::to_string(region.range.size());
    text += R"(,"offset":)" + std::to_string(region.backing_offset);
    text += R"(,"page_size":)" + page_size;
    text += R"(,"page_size_kib":)" + page_size + "}";
  }
  return text + "]";
}

Result<void> Userfault::hand_over(const UniqueFd& socket, const GuestMemory& memory) const {
  std::string text = describe_regions(memory);
  iovec bytes = {text.data(), text.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};  // NOLINT(modernize-avoid-c-arrays): cmsg(3)
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = static_cast<void*>(control);
  message.msg_controllen = sizeof(control);
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  const int fd = fd_.get();
  std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  ssize_t sent = 0;
  do {
    sent = ::sendmsg(socket.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (sent < 0 && errno == EINTR);
  if (sent < 0) {
    return fail_errno(errno, "hand guest memory to the page fault handler");
  }
  if (static_cast<std::size_t>(sent) != text.size()) {
    return fail(ErrorCode::kIo, "hand guest memory to the page fault handler: it took a part only");
  }
  return {};
}

}  // namespace mayfly
