#include "terminal_filter.h"

#include <linux/audit.h>
#include <linux/seccomp.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>

namespace mayfly::jail {
namespace {

#if defined(__x86_64__)
constexpr std::uint32_t kArchitecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr std::uint32_t kArchitecture = AUDIT_ARCH_AARCH64;
#else
#error "the filter does not know this architecture's name (linux/audit.h)"
#endif
// The bit of system calls of x32, which has numbers of its own but AUDIT_ARCH_X86_64's name (seccomp(2)).
constexpr std::uint32_t kX32 = 0x40000000;
// No system call, which a tracer makes of one that it takes away.
constexpr std::uint32_t kNone = 0xffffffff;
constexpr std::uint32_t kPermissionError = SECCOMP_RET_ERRNO | EPERM;
static_assert(std::endian::native == std::endian::little, "the lower half of an argument is its first");

constexpr sock_filter load(std::size_t offset) {
  return {.code = BPF_LD | BPF_W | BPF_ABS, .jt = 0, .jf = 0, .k = static_cast<std::uint32_t>(offset)};
}

constexpr sock_filter jump(unsigned condition, std::uint32_t value, std::uint8_t yes, std::uint8_t no) {
  return {.code = static_cast<std::uint16_t>(BPF_JMP | BPF_K | condition), .jt = yes, .jf = no, .k = value};
}

constexpr sock_filter answer(std::uint32_t action) {
  return {.code = BPF_RET | BPF_K, .jt = 0, .jf = 0, .k = action};
}

}  // namespace

std::vector<sock_filter> terminal_filter() {
  // The kernel looks at the lower half of a command only: a filter that compared all of it could be evaded.
  return {
      load(offsetof(seccomp_data, arch)),
      jump(BPF_JEQ, kArchitecture, 0, 8),
      load(offsetof(seccomp_data, nr)),
      jump(BPF_JEQ, kNone, 5, 0),
      jump(BPF_JGE, kX32, 5, 0),
      jump(BPF_JEQ, SYS_ioctl, 0, 3),
      load(offsetof(seccomp_data, args[1])),
      jump(BPF_JEQ, TIOCSTI, 3, 0),
      jump(BPF_JEQ, TIOCLINUX, 2, 0),
      answer(SECCOMP_RET_ALLOW),
      answer(SECCOMP_RET_KILL_PROCESS),
      answer(kPermissionError),
  };
}

Result<void> leave_terminals_alone() {
  std::vector<sock_filter> instructions = terminal_filter();
  const sock_fprog program{.len = static_cast<unsigned short>(instructions.size()),
                           .filter = instructions.data()};
  if (::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) != 0) {
    return fail_errno(errno, "load the filter of system calls that types into no terminal");
  }
  return {};
}

}  // namespace mayfly::jail
