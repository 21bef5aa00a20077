// The dirty log on the host's own /dev/kvm. Where there is no such device, or it may not be opened, every
// case is skipped and says why.
#include "vmm/dirty_log.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <optional>
#include <variant>

#include "kvm/kvm.h"
#include "support/real_mode_guest.h"

namespace mayfly {
namespace {

class DirtyLogDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    kvm_ = testing::open_kvm_or_skip();
    if (!kvm_) {
      return;
    }
    const std::array ranges = {*GuestRange::make(GuestAddress(0), 1U << 20),
                               *GuestRange::make(GuestAddress(1ULL << 32), 70 * kGuestPage)};
    memory_.emplace(GuestMemory::create(ranges, Backing::kAnonymous).value());
    vm_.emplace(
        kvm_->complete_vm(kvm_->create_empty_vm().value(), memory_->regions(), {.pmu = false}).value());
  }

  // Twice: mov byte [5123h], 1; out 10h, al
  Vcpu make_vcpu() {
    constexpr std::array<std::uint8_t, 14> kTwice = {0xc6, 0x06, 0x23, 0x51, 0x01, 0xe6, 0x10,
                                                     0xc6, 0x06, 0x23, 0x51, 0x02, 0xe6, 0x10};
    Vcpu vcpu = vm_->create_vcpu(0).value();
    testing::enter_real_mode(vcpu, *memory_, kTwice);
    return vcpu;
  }
  static void run(Vcpu& vcpu) {
    const auto exit = vcpu.run();
    ASSERT_TRUE(exit.has_value()) << exit.error().message();
    ASSERT_TRUE(std::holds_alternative<PortWrite>(*exit));
  }

  std::optional<Kvm> kvm_;
  std::optional<GuestMemory> memory_;
  std::optional<Vm> vm_;
};

TEST_F(DirtyLogDevice, what_guest_and_monitor_write_is_told_once) {
  DirtyLog log(*vm_, *memory_);
  Vcpu vcpu = make_vcpu();
  EXPECT_EQ(log.take_dirty_pages(0).error().code(), ErrorCode::kNotFound);
  ASSERT_TRUE(log.start());
  PageSet expected = no_pages(*memory_);
  EXPECT_EQ(take_dirty_pages(*memory_, log).value(), expected) << "what was written before";

  run(vcpu);
  ASSERT_TRUE(memory_->write_object(GuestAddress(0x9000), 1));
  ASSERT_TRUE(memory_->write_object(GuestAddress((1ULL << 32) + 65 * kGuestPage), 1));
  expected[0][0] = 1U << 5 | 1U << 9;
  expected[1][1] = 1U << 1;
  EXPECT_EQ(take_dirty_pages(*memory_, log).value(), expected);
  EXPECT_EQ(count_pages(take_dirty_pages(*memory_, log).value()), 0U);

  // A page that KVM has mapped for writing, now by the monitor, then by the guest again.
  ASSERT_TRUE(memory_->write_object(GuestAddress(0x5000), 1));
  EXPECT_EQ(log.take_dirty_pages(0).value()[0], 1U << 5);
  run(vcpu);
  EXPECT_EQ(log.take_dirty_pages(0).value()[0], 1U << 5);
  EXPECT_EQ(log.take_dirty_pages(2).error().code(), ErrorCode::kOutOfRange);
}

TEST_F(DirtyLogDevice, a_take_that_kvm_refuses_forgets_nothing) {
  DirtyLog log(*vm_, *memory_);
  ASSERT_TRUE(log.start());
  ASSERT_TRUE(memory_->write_object(GuestAddress(0x9000), 1));
  ASSERT_TRUE(vm_->set_dirty_logging(false));
  EXPECT_FALSE(log.take_dirty_pages(0).has_value());
  ASSERT_TRUE(vm_->set_dirty_logging(true));
  EXPECT_EQ(log.take_dirty_pages(0).value()[0], 1U << 9);
}

TEST_F(DirtyLogDevice, it_is_off_again_and_begins_anew) {
  DirtyLog log(*vm_, *memory_);
  ASSERT_TRUE(log.start());
  ASSERT_TRUE(memory_->write_object(GuestAddress(0x9000), 1));
  ASSERT_TRUE(log.start()) << "it goes on";
  log.stop();
  EXPECT_FALSE(log.is_on());
  EXPECT_FALSE(memory_->notes_writes());
  EXPECT_FALSE(vm_->take_dirty_pages(0).has_value());
  ASSERT_TRUE(log.start());
  EXPECT_EQ(log.take_dirty_pages(0).value()[0], 0U);
}

}  // namespace
}  // namespace mayfly
