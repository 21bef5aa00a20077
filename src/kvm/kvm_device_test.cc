// The wrappers against the host's own /dev/kvm, with guests of a few instructions. Where there is no such
// device, or it may not be opened, every case is skipped and says why.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "kvm/kvm.h"
#include "kvm/x86_64/cpuid.h"
#include "kvm/x86_64/io_apic.h"
#include "kvm/x86_64/msrs.h"
#include "kvm/x86_64/saved_state.h"
#include "kvm/x86_64/vcpu_state.h"
#include "memory/guest_memory.h"
#include "support/real_mode_guest.h"

namespace mayfly {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::kRealModeCode;

constexpr std::uint64_t kMemorySize = 1 << 20;
constexpr VmOptions kOptions{.pmu = false};

class KvmDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    kvm_ = testing::open_kvm_or_skip();
    if (!kvm_) {
      return;
    }
    const std::array ranges = {*GuestRange::make(GuestAddress(0), kMemorySize)};
    memory_.emplace(GuestMemory::create(ranges, Backing::kAnonymous).value());
  }

  Result<Vm> create_vm(std::span<const MemoryRegion> memory, const VmOptions& options) {
    return kvm_->complete_vm(kvm_->create_empty_vm().value(), memory, options);
  }
  Vm make_vm() { return create_vm(memory_->regions(), kOptions).value(); }

  Result<void> restore_vcpu(const Vcpu& vcpu, const x86_64::VcpuState& state) {
    MAYFLY_TRY(x86_64::restore_timeless(vcpu, state, kvm_->xsave_size()));
    return x86_64::restore_timed(vcpu, state);
  }

  // A vCPU in real mode about to run `code` at kRealModeCode.
  Vcpu make_vcpu(const Vm& vm, std::initializer_list<std::uint8_t> code) {
    Vcpu vcpu = vm.create_vcpu(0).value();
    testing::enter_real_mode(vcpu, *memory_, {code.begin(), code.size()});
    return vcpu;
  }

  std::optional<Kvm> kvm_;
  std::optional<GuestMemory> memory_;
};

template <typename T>
T run_to(Vcpu& vcpu) {
  auto exit = vcpu.run();
  EXPECT_TRUE(exit.has_value()) << exit.error().message();
  const T* found = exit ? std::get_if<T>(&*exit) : nullptr;
  if (found == nullptr) {
    ADD_FAILURE() << "another exit, alternative " << (exit ? exit->index() : 0);
    return T{};
  }
  return *found;
}

TEST_F(KvmDevice, this_hosts_kvm_is_fit) {
  for (const std::string& warning : kvm_->warnings()) {
    std::printf("warning: %s\n", warning.c_str());
  }
  EXPECT_GE(kvm_->max_vcpus(), 1U);
  EXPECT_GE(kvm_->max_vcpus(), kvm_->recommended_vcpus());
  EXPECT_EQ(kvm_->check_extension(0x7fffffff), 0);
  EXPECT_GE(kvm_->xsave_size(), 4096U);
}

TEST_F(KvmDevice, a_port_write_arrives) {
  const Vm vm = make_vm();
  Vcpu vcpu = make_vcpu(vm, {0xba, 0xf8, 0x03, 0xb0, '!', 0xee});  // mov dx, 3f8h; mov al, '!'; out dx, al
  const auto write = run_to<PortWrite>(vcpu);
  EXPECT_EQ(write.port, 0x3f8);
  EXPECT_EQ(write.size, 1);
  EXPECT_THAT(write.data, ElementsAre('!'));
}

TEST_F(KvmDevice, a_port_read_reaches_the_register_and_settling_runs_no_further) {
  const Vm vm = make_vm();
  Vcpu vcpu = make_vcpu(vm, {0xe5, 0x10, 0xe7, 0x90});  // in ax, 10h; out 90h, ax
  const auto read = run_to<PortRead>(vcpu);
  EXPECT_EQ(read.port, 0x10);
  ASSERT_EQ(read.data.size(), 2U);
  read.data[0] = 0x34;
  read.data[1] = 0x12;
  ASSERT_TRUE(vcpu.complete_pending_access());
  run_to<Interrupted>(vcpu);
  EXPECT_EQ(x86_64::get_regs(vcpu).value().rax & 0xffff, 0x1234U);
  EXPECT_EQ(x86_64::get_regs(vcpu).value().rip, kRealModeCode + 2);
  vcpu.clear_exit_request();
  const auto write = run_to<PortWrite>(vcpu);
  EXPECT_THAT(write.data, ElementsAre(0x34, 0x12));
}

TEST_F(KvmDevice, an_access_outside_memory_is_mmio) {
  const Vm vm = make_vm();
  // mov ax, 0ffffh; mov ds, ax; mov bl, [0010h] at 100000h, past the end of RAM; mov [0010h], bl
  Vcpu vcpu = make_vcpu(vm, {0xb8, 0xff, 0xff, 0x8e, 0xd8, 0x8a, 0x1e, 0x10, 0x00, 0x88, 0x1e, 0x10, 0x00});
  const auto read = run_to<MmioRead>(vcpu);
  EXPECT_EQ(read.address, 0x100000U);
  ASSERT_EQ(read.data.size(), 1U);
  read.data[0] = 0x99;
  const auto write = run_to<MmioWrite>(vcpu);
  EXPECT_EQ(write.address, 0x100000U);
  EXPECT_THAT(write.data, ElementsAre(0x99));
}

TEST_F(KvmDevice, read_only_pages_are_read_without_an_exit_and_written_with_one) {
  if (kvm_->check_extension(KVM_CAP_READONLY_MEM) <= 0) {
    GTEST_SKIP() << "this KVM has no KVM_CAP_READONLY_MEM";
  }
  alignas(4096) static std::array<std::uint8_t, 4096> page{};
  page[0x10] = 0x42;
  VmOptions options = kOptions;
  options.read_only = ReadOnlyPages{*GuestRange::make(GuestAddress(kMemorySize), page.size()), page.data()};
  Vm vm = create_vm(memory_->regions(), options).value();
  ASSERT_TRUE(vm.set_dirty_logging(true)) << "of RAM only";
  ASSERT_TRUE(vm.set_dirty_logging(false));
  const UniqueFd event = make_eventfd().value();
  const Doorbell doorbell{
      .space = Doorbell::Space::kMmio, .address = kMemorySize + 0x50, .length = 0, .value = std::nullopt};
  ASSERT_TRUE(vm.register_doorbell(event, doorbell));
  // mov ax, 0ffffh; mov ds, ax; mov al, [0020h]: what the page has at 10h; out 10h, al; mov [0060h], al: the
  // doorbell; mov [0020h], al
  Vcpu vcpu = make_vcpu(
      vm, {0xb8, 0xff, 0xff, 0x8e, 0xd8, 0xa0, 0x20, 0x00, 0xe6, 0x10, 0xa2, 0x60, 0x00, 0xa2, 0x20, 0x00});
  const auto seen = run_to<PortWrite>(vcpu);
  EXPECT_THAT(seen.data, ElementsAre(0x42));
  const auto write = run_to<MmioWrite>(vcpu);
  EXPECT_EQ(write.address, kMemorySize + 0x10);
  EXPECT_THAT(write.data, ElementsAre(0x42));
  std::uint64_t rings = 0;
  EXPECT_EQ(::read(event.get(), &rings, sizeof(rings)), static_cast<ssize_t>(sizeof(rings)));
  EXPECT_EQ(rings, 1U);
}

TEST_F(KvmDevice, a_requested_exit_comes_before_the_first_instruction_until_it_is_cleared) {
  const Vm vm = make_vm();
  Vcpu vcpu = make_vcpu(vm, {0xe6, 0x10});  // out 10h, al
  vcpu.request_exit();
  run_to<Interrupted>(vcpu);
  run_to<Interrupted>(vcpu);
  EXPECT_TRUE(vcpu.complete_pending_access());
  run_to<Interrupted>(vcpu);
  EXPECT_EQ(x86_64::get_regs(vcpu).value().rip, kRealModeCode);
  vcpu.clear_exit_request();
  run_to<PortWrite>(vcpu);
}

TEST_F(KvmDevice, a_guest_that_spins_is_stopped_by_the_request_and_a_signal) {
  struct sigaction quiet {};
  struct sigaction before {};
  quiet.sa_handler = [](int) {};
  ASSERT_EQ(sigaction(SIGUSR1, &quiet, &before), 0);
  const Vm vm = make_vm();
  Vcpu vcpu = make_vcpu(vm, {0xe6, 0x10, 0xfa, 0xeb, 0xfe});  // out 10h, al; cli; jmp $
  run_to<PortWrite>(vcpu);
  const pthread_t runner = pthread_self();
  std::thread stopper([&vcpu, runner] {
    vcpu.request_exit();
    pthread_kill(runner, SIGUSR1);
  });
  run_to<Interrupted>(vcpu);
  stopper.join();
  EXPECT_EQ(sigaction(SIGUSR1, &before, nullptr), 0);
}

TEST_F(KvmDevice, a_triple_fault_is_a_shutdown) {
  const Vm vm = make_vm();
  // Protected mode with an interrupt table of no entries, then ud2.
  Vcpu vcpu = make_vcpu(vm, {0x0f, 0x0b});
  auto special = x86_64::get_sregs(vcpu).value();
  special.cr0 |= 1;
  special.idt.limit = 0;
  special.cs.limit = 0xffffffff;
  special.cs.selector = 8;
  special.cs.type = 11;
  special.cs.db = special.cs.g = 1;
  ASSERT_TRUE(x86_64::set_sregs(vcpu, special));
  run_to<GuestShutdown>(vcpu);
}

TEST_F(KvmDevice, a_doorbell_rings_its_event_and_only_for_its_value) {
  const Vm vm = make_vm();
  const UniqueFd event = make_eventfd().value();
  const Doorbell doorbell{Doorbell::Space::kPort, 0x50, 2, 7};
  ASSERT_TRUE(vm.register_doorbell(event, doorbell));
  EXPECT_FALSE(vm.register_doorbell(event, doorbell).has_value()) << "there already";
  // mov ax, 7; out 50h, ax; inc ax; out 50h, ax
  Vcpu vcpu = make_vcpu(vm, {0xb8, 0x07, 0x00, 0xe7, 0x50, 0x40, 0xe7, 0x50});
  const auto write = run_to<PortWrite>(vcpu);
  EXPECT_THAT(write.data, ElementsAre(8, 0));
  eventfd_t count = 0;
  ASSERT_EQ(eventfd_read(event.get(), &count), 0);
  EXPECT_EQ(count, 1U);
}

TEST_F(KvmDevice, a_doorbell_of_an_odd_length_is_refused) {
  const Vm vm = make_vm();
  const UniqueFd event = make_eventfd().value();
  EXPECT_EQ(vm.register_doorbell(event, {Doorbell::Space::kMmio, 0xc0001050, 3, std::nullopt}).error().code(),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(vm.register_doorbell(event, {Doorbell::Space::kMmio, 0xc0001050, 0, 1}).error().code(),
            ErrorCode::kInvalidArgument);
  EXPECT_TRUE(vm.register_doorbell(event, {Doorbell::Space::kMmio, 0xc0001050, 4, std::nullopt}));
}

TEST_F(KvmDevice, interrupt_lines_take_events_up_to_their_last) {
  const Vm vm = make_vm();
  const UniqueFd event = make_eventfd().value();
  ASSERT_TRUE(vm.register_irqfd(event, Vm::kGsiCount - 1));
  EXPECT_EQ(vm.register_irqfd(event, 4).error().code(), ErrorCode::kBusy);
  const auto past = vm.register_irqfd(event, Vm::kGsiCount);
  ASSERT_FALSE(past.has_value());
  EXPECT_EQ(past.error().message(), "interrupt line 24: the interrupt controllers have only 24");
}

TEST_F(KvmDevice, interrupt_lines_are_pulsed_up_to_their_last_and_a_fresh_guest_takes_none) {
  const Vm vm = make_vm();
  EXPECT_TRUE(vm.pulse_line(Vm::kGsiCount - 1));
  EXPECT_EQ(vm.pulse_line(Vm::kGsiCount).error().code(), ErrorCode::kInvalidArgument);
  for (std::uint32_t gsi = 0; gsi < Vm::kGsiCount; ++gsi) {
    EXPECT_EQ(x86_64::guest_takes_line(vm, gsi), false) << "line " << gsi;
  }
  EXPECT_EQ(x86_64::guest_takes_line(vm, Vm::kGsiCount).error().code(), ErrorCode::kInvalidArgument);
}

TEST_F(KvmDevice, a_signal_on_an_interrupt_line_wakes_a_halted_guest) {
  const Vm vm = make_vm();
  const UniqueFd event = make_eventfd().value();
  ASSERT_TRUE(vm.register_irqfd(event, 4));
  // PIC: vectors from 20h, all masked but line 4. Handler of vector 24h at 1100h: out 99h, al.
  ASSERT_TRUE(memory_->write_object(GuestAddress(0x24 * 4), std::uint32_t{0x1100}));
  ASSERT_TRUE(memory_->write_object(GuestAddress(0x1100), std::uint16_t{0x99e6}));
  Vcpu vcpu = make_vcpu(vm, {0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21, 0xb0,
                             0x01, 0xe6, 0x21, 0xb0, 0xef, 0xe6, 0x21, 0xe6, 0x98, 0xfb, 0xf4, 0xeb, 0xfd});
  ASSERT_TRUE(x86_64::connect_local_interrupts(vcpu));
  kvm_regs registers = x86_64::get_regs(vcpu).value();
  registers.rsp = 0x8000;
  ASSERT_TRUE(x86_64::set_regs(vcpu, registers));
  EXPECT_EQ(run_to<PortWrite>(vcpu).port, 0x98);
  ASSERT_EQ(eventfd_write(event.get(), 1), 0);
  EXPECT_EQ(run_to<PortWrite>(vcpu).port, 0x99);
}

TEST_F(KvmDevice, a_guest_reads_the_cpuid_that_was_made_for_it) {
  const auto supported = x86_64::supported_cpuid(*kvm_).value();
  ASSERT_GT(supported.size(), 2U);
  x86_64::GuestCpuConfig config;
  config.vcpu_count = 4;
  config.smt = true;
  auto guest = x86_64::make_guest_cpuid(supported, config).value();
  const Vm vm = make_vm();
  Vcpu vcpu =
      make_vcpu(vm, {0x66, 0xb8, 1, 0, 0, 0, 0x0f, 0xa2, 0xe6, 0x10});  // mov eax, 1; cpuid; out 10h, al
  x86_64::set_vcpu_id(guest, 3);
  const auto set = x86_64::set_cpuid(vcpu, guest);
  ASSERT_TRUE(set.has_value()) << set.error().message();
  run_to<PortWrite>(vcpu);
  const kvm_regs registers = x86_64::get_regs(vcpu).value();
  EXPECT_EQ((registers.rbx >> 24) & 0xff, 3U) << "APIC id";
  EXPECT_EQ((registers.rbx >> 16) & 0xff, 4U) << "how many";
  EXPECT_EQ((registers.rcx >> 31) & 1, 1U) << "hypervisor";
  EXPECT_EQ((registers.rdx >> 28) & 1, 1U) << "more than one";
}

TEST_F(KvmDevice, every_count_of_vcpus_makes_a_cpuid_that_this_kvm_takes) {
  const auto supported = x86_64::supported_cpuid(*kvm_).value();
  for (std::uint32_t count = 1; count <= 32; ++count) {
    x86_64::GuestCpuConfig config;
    config.vcpu_count = count;
    config.smt = count % 2 == 0;
    auto guest = x86_64::make_guest_cpuid(supported, config).value();
    x86_64::set_vcpu_id(guest, count - 1);
    const Vm vm = make_vm();
    const Vcpu vcpu = vm.create_vcpu(count - 1).value();
    const auto set = x86_64::set_cpuid(vcpu, guest);
    ASSERT_TRUE(set.has_value()) << count << ": " << set.error().message();
  }
}

TEST_F(KvmDevice, boot_msrs_are_set_after_the_cpuid_and_read_back) {
  const auto supported = x86_64::supported_cpuid(*kvm_).value();
  const Vm vm = make_vm();
  const Vcpu vcpu = vm.create_vcpu(0).value();
  ASSERT_TRUE(x86_64::set_cpuid(vcpu, x86_64::make_guest_cpuid(supported, {}).value()));
  const auto refused = x86_64::set_msrs_that_exist(
      x86_64::boot_msrs(),
      [&vcpu](std::span<const kvm_msr_entry> entries) { return x86_64::set_msrs(vcpu, entries); });
  ASSERT_TRUE(refused.has_value()) << refused.error().message();
  for (const std::uint32_t index : *refused) {
    std::printf("this KVM refuses MSR %s\n", x86_64::msr_name(index).c_str());
  }
  const std::array<std::uint32_t, 2> asked = {0x1a0, 0xc0000082};
  const auto read = x86_64::get_msrs(vcpu, asked).value();
  ASSERT_EQ(read.size(), 2U);
  EXPECT_EQ(read[0].data & 1, 1U);
  EXPECT_EQ(read[1].data, 0U);
}

TEST_F(KvmDevice, an_msr_that_does_not_exist_is_passed_over) {
  const Vm vm = make_vm();
  const Vcpu vcpu = vm.create_vcpu(0).value();
  const std::array<kvm_msr_entry, 3> entries = {
      {{0x174, 0, 1}, {0x12345678, 0, 1}, {0x175, 0, 2}}};  // SYSENTER_CS, none, SYSENTER_ESP
  const auto refused = x86_64::set_msrs_that_exist(
      entries, [&vcpu](std::span<const kvm_msr_entry> some) { return x86_64::set_msrs(vcpu, some); });
  EXPECT_THAT(refused.value(), ElementsAre(0x12345678U));
  const std::array<std::uint32_t, 1> asked = {0x175};
  EXPECT_EQ(x86_64::get_msrs(vcpu, asked).value().at(0).data, 2U);
}

TEST_F(KvmDevice, registers_are_read_back_as_they_were_set) {
  const Vm vm = make_vm();
  const Vcpu vcpu = make_vcpu(vm, {0xf4});
  ASSERT_TRUE(x86_64::set_fpu(vcpu, x86_64::initial_fpu()));
  kvm_fpu fpu{};
  ASSERT_EQ(::ioctl(vcpu.descriptor().get(), KVM_GET_FPU, &fpu), 0);
  EXPECT_EQ(fpu.fcw, 0x37f);
  ASSERT_TRUE(x86_64::connect_local_interrupts(vcpu));
  const auto local = x86_64::get_lapic(vcpu).value();
  EXPECT_EQ(local.regs[0x351] & 7, 7) << "LINT0 ExtINT";
  EXPECT_EQ(local.regs[0x361] & 7, 4) << "LINT1 NMI";
  kvm_mp_state state{};
  state.mp_state = KVM_MP_STATE_HALTED;
  ASSERT_TRUE(vcpu.set_mp_state(state));
  EXPECT_EQ(vcpu.mp_state().value().mp_state, static_cast<std::uint32_t>(KVM_MP_STATE_HALTED));
  EXPECT_TRUE(vcpu.note_pause()) << "without a kvmclock nothing happens";
  EXPECT_GT(x86_64::tsc_khz(vcpu).value(), 0U);
}

TEST_F(KvmDevice, only_the_first_vcpu_starts_by_itself) {
  const Vm vm = make_vm();
  EXPECT_EQ(vm.create_vcpu(0).value().mp_state().value().mp_state,
            static_cast<std::uint32_t>(KVM_MP_STATE_RUNNABLE));
  EXPECT_EQ(vm.create_vcpu(1).value().mp_state().value().mp_state,
            static_cast<std::uint32_t>(KVM_MP_STATE_UNINITIALIZED));
  EXPECT_FALSE(vm.create_vcpu(1).has_value()) << "taken";
}

TEST_F(KvmDevice, the_guests_clock_is_kept) {
  const Vm vm = make_vm();
  kvm_clock_data clock = vm.clock().value();
  clock.flags = 0;
  clock.clock += 3'600'000'000'000;
  const std::uint64_t later = clock.clock;
  ASSERT_TRUE(vm.set_clock(clock));
  EXPECT_GE(vm.clock().value().clock, later);
}

TEST_F(KvmDevice, pages_that_the_guest_writes_are_logged_once) {
  Vm vm = make_vm();
  EXPECT_EQ(vm.take_dirty_pages(0).error().code(), ErrorCode::kNotFound) << "not logged";
  ASSERT_TRUE(vm.set_dirty_logging(true));
  // mov byte [5123h], 1; out 10h, al
  Vcpu vcpu = make_vcpu(vm, {0xc6, 0x06, 0x23, 0x51, 0x01, 0xe6, 0x10});
  run_to<PortWrite>(vcpu);
  const auto pages = vm.take_dirty_pages(0).value();
  ASSERT_EQ(pages.size(), kMemorySize / 4096 / 64);
  EXPECT_EQ(pages[0], 1U << 5);
  EXPECT_EQ(vm.take_dirty_pages(0).value()[0], 0U);
  EXPECT_EQ(vm.take_dirty_pages(1).error().code(), ErrorCode::kOutOfRange);
  ASSERT_TRUE(vm.set_dirty_logging(false));
  EXPECT_FALSE(vm.take_dirty_pages(0).has_value());
}

TEST_F(KvmDevice, memory_that_kvm_refuses_is_named) {
  std::array regions = {memory_->regions()[0], memory_->regions()[0]};
  const auto created = create_vm(regions, kOptions);
  ASSERT_FALSE(created.has_value());
  EXPECT_THAT(created.error().message(), HasSubstr("guest memory slot 1 of 0x100000 bytes at 0"));
}

TEST_F(KvmDevice, a_vcpu_can_be_moved_and_outlives_its_vm) {
  std::optional<Vm> vm(make_vm());
  Vcpu first = make_vcpu(*vm, {0xe6, 0x10, 0xe6, 0x11});  // out 10h, al; out 11h, al
  run_to<PortWrite>(first);
  Vcpu second = std::move(first);
  vm.reset();
  EXPECT_EQ(run_to<PortWrite>(second).port, 0x11);
}

// As a machine does; answers what was given.
std::vector<kvm_cpuid_entry2> give_cpuid(const Kvm& kvm, const Vcpu& vcpu) {
  auto cpuid = x86_64::make_guest_cpuid(x86_64::supported_cpuid(kvm).value(), {}).value();
  x86_64::set_vcpu_id(cpuid, vcpu.id());
  EXPECT_TRUE(x86_64::set_cpuid(vcpu, cpuid));
  return cpuid;
}

template <typename State>
bool same_bytes(const State& one, const State& other) {
  return std::memcmp(&one, &other, sizeof one) == 0;
}

TEST_F(KvmDevice, a_guest_goes_on_in_another_vm) {
  const Vm vm = make_vm();
  // again: inc ax; out 10h, ax; jmp again
  Vcpu vcpu = make_vcpu(vm, {0x40, 0xe7, 0x10, 0xeb, 0xfb});
  const auto cpuid = give_cpuid(*kvm_, vcpu);
  for (int step = 0; step < 3; ++step) {
    run_to<PortWrite>(vcpu);
  }
  ASSERT_TRUE(vcpu.complete_pending_access());
  const auto saving = x86_64::vcpu_saving(*kvm_);
  ASSERT_TRUE(saving.has_value()) << saving.error().message();
  const auto state = x86_64::save_vcpu(vcpu, *saving, cpuid);
  ASSERT_TRUE(state.has_value()) << state.error().message();
  const auto platform = x86_64::save_platform(vm);
  ASSERT_TRUE(platform.has_value()) << platform.error().message();

  const Vm other = make_vm();
  Vcpu successor = other.create_vcpu(0).value();
  const auto restored = restore_vcpu(successor, *state);
  ASSERT_TRUE(restored.has_value()) << restored.error().message();
  const auto shared = x86_64::restore_platform(other, *platform);
  ASSERT_TRUE(shared.has_value()) << shared.error().message();
  EXPECT_THAT(run_to<PortWrite>(successor).data, ElementsAre(4, 0));
  EXPECT_THAT(run_to<PortWrite>(successor).data, ElementsAre(5, 0));
}

TEST_F(KvmDevice, what_was_restored_is_saved_again_as_it_was) {
  const auto saving = x86_64::vcpu_saving(*kvm_).value();
  const Vm vm = make_vm();
  const Vcpu vcpu = make_vcpu(vm, {0xf4});
  const auto cpuid = give_cpuid(*kvm_, vcpu);
  ASSERT_TRUE(x86_64::set_fpu(vcpu, [] {
    kvm_fpu fpu = x86_64::initial_fpu();
    fpu.xmm[3][5] = 0x77;
    return fpu;
  }()));
  ASSERT_TRUE(x86_64::connect_local_interrupts(vcpu));
  x86_64::VcpuState first = x86_64::save_vcpu(vcpu, saving, cpuid).value();
  EXPECT_EQ(first.id, 0U);
  EXPECT_GE(first.msrs.size(), 10U);
  EXPECT_FALSE(first.cpuid.empty());
  EXPECT_GT(first.tsc_khz, 0U);
  // What a fresh vCPU does not have, in every part.
  first.registers.r11 = 0x1122334455667788;
  first.special.gs.base = 0x4000;
  first.debug.db[2] = 0x5000;
  first.events.nmi.masked = 1;
  first.mp_state.mp_state = KVM_MP_STATE_HALTED;
  for (kvm_msr_entry& entry : first.msrs) {
    if (entry.index == 0xc0000082) {  // LSTAR
      entry.data = 0xffffffff81000000;
    }
  }

  const Vm other = make_vm();
  const Vcpu successor = other.create_vcpu(0).value();
  const auto restored = restore_vcpu(successor, first);
  ASSERT_TRUE(restored.has_value()) << restored.error().message();
  const x86_64::VcpuState second = x86_64::save_vcpu(successor, saving, first.cpuid).value();
  EXPECT_TRUE(same_bytes(second.registers, first.registers));
  EXPECT_TRUE(same_bytes(second.special, first.special));
  EXPECT_TRUE(same_bytes(second.extended_control, first.extended_control));
  EXPECT_TRUE(same_bytes(second.debug, first.debug));
  EXPECT_TRUE(same_bytes(second.local_apic, first.local_apic));
  EXPECT_TRUE(same_bytes(second.events, first.events));
  EXPECT_EQ(second.mp_state.mp_state, first.mp_state.mp_state);
  EXPECT_EQ(second.xsave, first.xsave);
  EXPECT_EQ(second.tsc_khz, first.tsc_khz);
  ASSERT_EQ(second.msrs.size(), first.msrs.size());
  for (std::size_t index = 0; index < first.msrs.size(); ++index) {
    EXPECT_EQ(second.msrs[index].index, first.msrs[index].index);
    if (first.msrs[index].index == 0x10) {
      EXPECT_GE(second.msrs[index].data, first.msrs[index].data) << "time goes on";
    } else {
      EXPECT_EQ(second.msrs[index].data, first.msrs[index].data) << x86_64::msr_name(first.msrs[index].index);
    }
  }
}

TEST_F(KvmDevice, an_interrupt_that_was_pending_reaches_the_restored_guest) {
  const Vm vm = make_vm();
  // As in a_signal_on_an_interrupt_line_wakes_a_halted_guest; with interrupts off until after the first out.
  ASSERT_TRUE(memory_->write_object(GuestAddress(0x24 * 4), std::uint32_t{0x1100}));
  ASSERT_TRUE(memory_->write_object(GuestAddress(0x1100), std::uint16_t{0x99e6}));
  Vcpu vcpu = make_vcpu(vm, {0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21, 0xb0,
                             0x01, 0xe6, 0x21, 0xb0, 0xef, 0xe6, 0x21, 0xe6, 0x98, 0xfb, 0xf4, 0xeb, 0xfd});
  const auto cpuid = give_cpuid(*kvm_, vcpu);
  ASSERT_TRUE(x86_64::connect_local_interrupts(vcpu));
  kvm_regs registers = x86_64::get_regs(vcpu).value();
  registers.rsp = 0x8000;
  ASSERT_TRUE(x86_64::set_regs(vcpu, registers));
  EXPECT_EQ(run_to<PortWrite>(vcpu).port, 0x98);
  ASSERT_TRUE(vcpu.complete_pending_access());
  ASSERT_TRUE(vm.pulse_line(4));
  const auto state = x86_64::save_vcpu(vcpu, x86_64::vcpu_saving(*kvm_).value(), cpuid).value();
  const auto platform = x86_64::save_platform(vm).value();

  const Vm other = make_vm();
  Vcpu successor = other.create_vcpu(0).value();
  ASSERT_TRUE(restore_vcpu(successor, state));
  ASSERT_TRUE(x86_64::restore_platform(other, platform));
  EXPECT_EQ(run_to<PortWrite>(successor).port, 0x99);
}

TEST_F(KvmDevice, a_deadline_that_has_run_out_is_saved_as_one_that_runs_out_now) {
  const auto saving = x86_64::vcpu_saving(*kvm_).value();
  const Vm vm = make_vm();
  const Vcpu vcpu = make_vcpu(vm, {0xf4});
  const auto cpuid = give_cpuid(*kvm_, vcpu);
  const auto value_of = [](const x86_64::VcpuState& state, std::uint32_t index) {
    const auto found = std::find_if(state.msrs.begin(), state.msrs.end(),
                                    [index](const kvm_msr_entry& entry) { return entry.index == index; });
    return found != state.msrs.end() ? std::optional<std::uint64_t>(found->data) : std::nullopt;
  };
  const auto one_shot = x86_64::save_vcpu(vcpu, saving, cpuid).value();
  if (!value_of(one_shot, 0x6e0)) {
    GTEST_SKIP() << "this KVM has no TSC deadline";
  }
  EXPECT_EQ(value_of(one_shot, 0x6e0), 0U) << "the timer is in another mode";

  // The timer's vector: 0x40020, TSC deadline. No deadline is set.
  auto local = x86_64::get_lapic(vcpu).value();
  const std::uint32_t entry = 2U << 17 | 0x20;
  std::memcpy(&local.regs[0x320], &entry, sizeof entry);
  ASSERT_TRUE(x86_64::set_lapic(vcpu, local));
  const auto expired = x86_64::save_vcpu(vcpu, saving, cpuid).value();
  EXPECT_NE(value_of(expired, 0x10), 0U);
  EXPECT_EQ(value_of(expired, 0x6e0), value_of(expired, 0x10));
}

TEST_F(KvmDevice, every_vcpu_of_several_is_saved_as_what_it_is) {
  const auto saving = x86_64::vcpu_saving(*kvm_).value();
  const Vm vm = make_vm();
  const Vm other = make_vm();
  for (std::uint32_t id = 0; id < 4; ++id) {
    const Vcpu vcpu = vm.create_vcpu(id).value();
    const auto cpuid = give_cpuid(*kvm_, vcpu);
    const auto state = x86_64::save_vcpu(vcpu, saving, cpuid).value();
    EXPECT_EQ(state.id, id);
    EXPECT_EQ(state.mp_state.mp_state == KVM_MP_STATE_RUNNABLE, id == 0) << "only the first starts by itself";
    const Vcpu successor = other.create_vcpu(id).value();
    const auto restored = restore_vcpu(successor, state);
    ASSERT_TRUE(restored.has_value()) << restored.error().message();
    EXPECT_EQ(successor.mp_state().value().mp_state, state.mp_state.mp_state);
  }
}

TEST_F(KvmDevice, a_state_that_this_kvm_refuses_is_named) {
  const Vm vm = make_vm();
  const Vcpu vcpu = vm.create_vcpu(0).value();
  const auto cpuid = give_cpuid(*kvm_, vcpu);
  x86_64::VcpuState state = x86_64::save_vcpu(vcpu, x86_64::vcpu_saving(*kvm_).value(), cpuid).value();
  state.msrs.push_back({0x12345678, 0, 1});
  const Vm other = make_vm();
  const auto refused = restore_vcpu(other.create_vcpu(0).value(), state);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code(), ErrorCode::kUnsupported);
  EXPECT_THAT(refused.error().message(), HasSubstr("MSR 0x12345678"));

  x86_64::PlatformState platform = x86_64::save_platform(vm).value();
  std::swap(platform.first_pic, platform.io_apic);
  EXPECT_EQ(x86_64::restore_platform(other, platform).error().code(), ErrorCode::kInvalidArgument);
}

TEST_F(KvmDevice, a_guest_of_this_host_fits_this_host) {
  const auto supported = x86_64::supported_cpuid(*kvm_).value();
  const Vm vm = make_vm();
  const Vcpu vcpu = vm.create_vcpu(0).value();
  const auto cpuid = give_cpuid(*kvm_, vcpu);
  const auto state = x86_64::save_vcpu(vcpu, x86_64::vcpu_saving(*kvm_).value(), cpuid).value();
  const auto fits = x86_64::check_cpuid_fits(state.cpuid, supported);
  EXPECT_TRUE(fits.has_value()) << fits.error().message();
}

}  // namespace
}  // namespace mayfly
