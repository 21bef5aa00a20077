// A host that refuses a system call, played for one thread.
#pragma once

#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <thread>

namespace mayfly::testing {

// Makes `call` fail with `error` for this thread and those that it starts, where of the lower half of its
// argument number `argument` the bits `mask` are `value`. For good: a filter needs no privilege and cannot be
// taken away.
inline void refuse_call_where(std::uint32_t call, std::uint32_t argument, std::uint32_t mask,
                              std::uint32_t value, std::uint32_t error) {
  std::array<sock_filter, 7> program = {{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 4),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
               static_cast<std::uint32_t>(offsetof(seccomp_data, args)) + argument * 8),
      BPF_STMT(BPF_ALU | BPF_AND | BPF_K, mask),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  }};
  const sock_fprog loaded = {static_cast<unsigned short>(program.size()), program.data()};
  ASSERT_EQ(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  ASSERT_EQ(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &loaded), 0);
}

// The same where those bits are all set.
inline void refuse_call(std::uint32_t call, std::uint32_t argument, std::uint32_t mask, std::uint32_t error) {
  refuse_call_where(call, argument, mask, mask, error);
}

// Runs `body` on a thread of its own, for which `call` fails so, whatever its arguments.
inline void where_refused(std::uint32_t call, std::uint32_t error, const std::function<void()>& body) {
  std::thread([&] {
    refuse_call(call, 0, 0, error);
    body();
  }).join();
}

}  // namespace mayfly::testing
