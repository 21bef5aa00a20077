#include "terminal_filter.h"

#include <gtest/gtest.h>
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

namespace mayfly::jail {
namespace {

// As the kernel runs it.
std::uint32_t run(const seccomp_data& call) {
  const auto program = terminal_filter();
  std::uint32_t value = 0;
  for (std::size_t at = 0; at < program.size(); ++at) {
    const sock_filter& one = program[at];
    switch (BPF_CLASS(one.code)) {
      case BPF_LD:
        // SAFETY: the filter's offsets are those of the structure's fields.
        std::memcpy(&value, reinterpret_cast<const char*>(&call) + one.k, sizeof value);
        break;
      case BPF_JMP: {
        const bool is_met = BPF_OP(one.code) == BPF_JGE ? value >= one.k : value == one.k;
        at += is_met ? one.jt : one.jf;
        break;
      }
      default:
        return one.k;
    }
  }
  return 0;
}

#if defined(__x86_64__)
constexpr std::uint32_t kOwn = AUDIT_ARCH_X86_64;
#else
constexpr std::uint32_t kOwn = AUDIT_ARCH_AARCH64;
#endif

seccomp_data call(int number, std::uint64_t command, std::uint32_t architecture = kOwn) {
  return {.nr = number, .arch = architecture, .instruction_pointer = 0, .args = {0, command}};
}

constexpr std::uint32_t kRefused = SECCOMP_RET_ERRNO | EPERM;
constexpr int kX32 = 0x40000000;

TEST(TerminalFilter, typing_into_a_terminal_is_refused_whatever_the_upper_half_says) {
  for (const std::uint64_t command : {std::uint64_t{TIOCSTI}, std::uint64_t{TIOCLINUX}}) {
    EXPECT_EQ(run(call(SYS_ioctl, command)), kRefused);
    EXPECT_EQ(run(call(SYS_ioctl, command | 0xffffffff00000000)), kRefused);
  }
}

TEST(TerminalFilter, other_calls_are_left) {
  EXPECT_EQ(run(call(SYS_ioctl, TCGETS)), SECCOMP_RET_ALLOW);
  EXPECT_EQ(run(call(SYS_ioctl, TIOCSTI + 1)), SECCOMP_RET_ALLOW);
  EXPECT_EQ(run(call(SYS_write, TIOCSTI)), SECCOMP_RET_ALLOW);
  EXPECT_EQ(run(call(-1, TIOCSTI)), SECCOMP_RET_ALLOW);
}

TEST(TerminalFilter, another_architectures_calls_end_the_process) {
  EXPECT_EQ(run(call(SYS_ioctl, TCGETS, AUDIT_ARCH_I386)), SECCOMP_RET_KILL_PROCESS);
  EXPECT_EQ(run(call(kX32 | 514, TIOCSTI)), SECCOMP_RET_KILL_PROCESS);
  EXPECT_EQ(run(call(kX32 | SYS_write, 0)), SECCOMP_RET_KILL_PROCESS);
}

}  // namespace
}  // namespace mayfly::jail
