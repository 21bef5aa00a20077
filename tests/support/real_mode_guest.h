// For tests on the host's own /dev/kvm: the device, and guests of a few instructions on it.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>

#include "kvm/kvm.h"
#include "kvm/x86_64/vcpu_state.h"
#include "memory/guest_memory.h"

namespace mayfly::testing {

// Where there is no such device, or it may not be opened, the case is skipped and nothing comes back; where
// it is not fit, the case fails as well. Either way the caller returns.
inline std::optional<Kvm> open_kvm_or_skip() {
  auto opened = Kvm::open();
  if (opened) {
    return std::move(*opened);
  }
  const Error& error = opened.error();
  [&error] {
    if (error.code() == ErrorCode::kNotFound || error.code() == ErrorCode::kPermission) {
      GTEST_SKIP() << "no usable /dev/kvm here: " << error.message();
    }
    FAIL() << error.message();
  }();
  return std::nullopt;
}

constexpr std::uint64_t kRealModeCode = 0x1000;

// The vCPU is about to run `code` in real mode, at kRealModeCode. With no stack.
inline void enter_real_mode(const Vcpu& vcpu, GuestMemory& memory, std::span<const std::uint8_t> code) {
  ASSERT_TRUE(memory.write(GuestAddress(kRealModeCode), std::as_bytes(code)));
  auto special = x86_64::get_sregs(vcpu).value();
  special.cs.base = 0;
  special.cs.selector = 0;
  ASSERT_TRUE(x86_64::set_sregs(vcpu, special));
  kvm_regs registers{};
  registers.rip = kRealModeCode;
  registers.rflags = 2;
  ASSERT_TRUE(x86_64::set_regs(vcpu, registers));
}

}  // namespace mayfly::testing
