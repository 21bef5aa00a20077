// A guest's state through a file, on the host's own /dev/kvm. Where there is no such device, or it may not be
// opened, every case is skipped and says why.
#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <variant>
#include <vector>

#include "kvm/kvm.h"
#include "kvm/x86_64/cpuid.h"
#include "kvm/x86_64/saved_state.h"
#include "memory/guest_memory.h"
#include "snapshot/micro_vm_state.h"
#include "support/real_mode_guest.h"

namespace mayfly {
namespace {

constexpr std::uint64_t kMemorySize = 1 << 20;

// The port's byte that the guest writes next.
std::uint8_t next_output(Vcpu& vcpu) {
  auto exit = vcpu.run();
  EXPECT_TRUE(exit.has_value()) << exit.error().message();
  const PortWrite* write = exit ? std::get_if<PortWrite>(&*exit) : nullptr;
  EXPECT_NE(write, nullptr);
  return write != nullptr && !write->data.empty() ? write->data.front() : std::uint8_t{0};
}

TEST(SnapshotDevice, a_guest_goes_on_where_its_file_says) {
  const auto kvm = testing::open_kvm_or_skip();
  if (!kvm) {
    return;
  }
  const std::array ranges = {*GuestRange::make(GuestAddress(0), kMemorySize)};
  auto memory = GuestMemory::create(ranges, Backing::kAnonymous).value();
  // again: inc al; out 10h, al; jmp again
  const std::array<std::uint8_t, 6> code = {0xfe, 0xc0, 0xe6, 0x10, 0xeb, 0xfa};
  const auto supported = x86_64::supported_cpuid(*kvm).value();

  std::vector<std::byte> file;
  {
    const Vm vm = kvm->complete_vm(kvm->create_empty_vm().value(), memory.regions(), {}).value();
    Vcpu vcpu = vm.create_vcpu(0).value();
    const auto cpuid = x86_64::make_guest_cpuid(supported, {}).value();
    ASSERT_TRUE(x86_64::set_cpuid(vcpu, cpuid));
    testing::enter_real_mode(vcpu, memory, code);
    EXPECT_EQ(next_output(vcpu), 1);
    EXPECT_EQ(next_output(vcpu), 2);
    ASSERT_TRUE(vcpu.complete_pending_access());

    MicroVmState state;
    state.machine.vcpu_count = 1;
    state.memory = {{.address = 0, .size = kMemorySize}};
    state.vcpus.push_back(x86_64::save_vcpu(vcpu, x86_64::vcpu_saving(*kvm).value(), cpuid).value());
    state.platform = x86_64::save_platform(vm).value();
    state.clock = vm.clock().value();
    auto encoded = encode(state);
    ASSERT_TRUE(encoded.has_value()) << encoded.error().message();
    file = std::move(*encoded);
  }

  const auto state = decode(file);
  ASSERT_TRUE(state.has_value()) << state.error().message();
  const auto fits = x86_64::check_cpuid_fits(state->vcpus[0].cpuid, supported);
  EXPECT_TRUE(fits.has_value()) << fits.error().message();
  const Vm vm = kvm->complete_vm(kvm->create_empty_vm().value(), memory.regions(), {}).value();
  Vcpu vcpu = vm.create_vcpu(0).value();
  const auto timeless = x86_64::restore_timeless(vcpu, state->vcpus[0], kvm->xsave_size());
  ASSERT_TRUE(timeless.has_value()) << timeless.error().message();
  const auto timed = x86_64::restore_timed(vcpu, state->vcpus[0]);
  ASSERT_TRUE(timed.has_value()) << timed.error().message();
  ASSERT_TRUE(x86_64::restore_platform(vm, state->platform));
  kvm_clock_data clock = state->clock;
  clock.flags = 0;
  ASSERT_TRUE(vm.set_clock(clock));
  EXPECT_EQ(next_output(vcpu), 3);
  EXPECT_EQ(next_output(vcpu), 4);
}

}  // namespace
}  // namespace mayfly
