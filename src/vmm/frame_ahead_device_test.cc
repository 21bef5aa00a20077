// A machine's frame made beside its owner, on the host's own /dev/kvm. Where there is no such device, or it
// may not be opened, every case is skipped and says why.
#include "vmm/frame_ahead.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/kvm.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "support/held.h"
#include "support/host_kvm_purposes.h"
#include "support/memory_of_file.h"
#include "support/poor_host.h"
#include "support/real_mode_guest.h"
#include "support/temp_dir.h"

namespace mayfly {
namespace {

constexpr std::size_t kDevices = 2;
constexpr std::uint32_t kVcpus = 6;

class FrameAheadDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    kvm_ = testing::open_kvm_or_skip();
    before_ = testing::held();
  }

  static FrameAhead begin(HostKvm* host) {
    return {testing::memory_of_file("memory"), kDevices, kVcpus, host};
  }

  // All that was asked for is there, and a vCPU runs what the memory holds.
  static void expect_whole(MachineFrame& frame) {
    if (frame.timer) {
      const auto timer = frame.timer->take();
      EXPECT_TRUE(timer.has_value()) << timer.error().message();
    }
    ASSERT_EQ(frame.vcpus.size(), kVcpus);
    EXPECT_EQ(frame.windows.window(kDevices - 1).size(), frame.windows.all().size() / kDevices);
    EXPECT_EQ(frame.memory.read_object<std::uint32_t>(GuestAddress(0)).value(), 0x6f6d656dU) << "memo";
    const auto again = frame.vm.create_timer();
    ASSERT_FALSE(again.has_value()) << "there was no timer";
    EXPECT_EQ(again.error().os_errno(), EEXIST);
    constexpr std::array<std::uint8_t, 2> kOut = {0xe6, 0x10};  // out 10h, al
    testing::enter_real_mode(frame.vcpus.at(0), frame.memory, kOut);
    const auto exit = frame.vcpus.at(0).run();
    ASSERT_TRUE(exit.has_value()) << exit.error().message();
    EXPECT_TRUE(std::holds_alternative<PortWrite>(*exit));
  }

  // What comes of a frame by a host that refuses `call` where that argument is `value`.
  void expect_refused(std::uint32_t call, std::uint32_t argument, std::uint32_t value,
                      const std::string& why) {
    std::optional<Error> error;
    std::thread([&] {
      testing::refuse_call_where(call, argument, ~std::uint32_t{0}, value, ENOSPC);
      HostKvm host;
      host.start(HostKvm::Purpose::kUse);
      FrameAhead frame = begin(&host);
      auto opened = frame.take_kvm(nullptr);
      ASSERT_TRUE(opened.has_value());
      const auto made = frame.take(*opened, nullptr);
      const Result<void> timer = made ? made->timer->take() : Result<void>();
      ASSERT_FALSE(made.has_value() && timer.has_value());
      error = made ? timer.error() : made.error();
    }).join();
    ASSERT_TRUE(error.has_value());
    EXPECT_EQ(error->os_errno(), ENOSPC);
    EXPECT_NE(error->message().find(why), std::string::npos) << error->message();
    EXPECT_EQ(testing::held(), before_);
  }

  std::optional<Kvm> kvm_;
  std::vector<std::string> before_;  // and no more is to be held at a case's end
};

class FrameAheadDeviceFor : public FrameAheadDevice,
                            public ::testing::WithParamInterface<HostKvm::Purpose> {};

INSTANTIATE_TEST_SUITE_P(Purposes, FrameAheadDeviceFor, testing::both_purposes(), testing::purpose_name);

TEST_P(FrameAheadDeviceFor, is_made_by_a_thread_of_its_host) {
  if (!kvm_) {
    return;
  }
  const testing::TempDir dir;
  {
    const auto trace = BootTrace::create(dir.file("trace"), BootTrace::Clock::now()).value();
    HostKvm host;
    host.start(GetParam());
    FrameAhead frame = begin(&host);
    EXPECT_FALSE(host.take(nullptr).has_value()) << "it is the frame's";
    auto opened = frame.take_kvm(trace.get());
    ASSERT_TRUE(opened.has_value());
    EXPECT_FALSE(opened->vm.has_value()) << "the frame has it";
    EXPECT_FALSE(frame.take_kvm(nullptr).has_value()) << "once";
    auto made = frame.take(*opened, trace.get());
    ASSERT_TRUE(made.has_value()) << made.error().message();
    expect_whole(*made);
    ASSERT_TRUE(trace->write());
  }
  const std::string text = testing::read_file(dir.file("trace"));
  const std::size_t phase = text.find("create VM");
  ASSERT_NE(phase, std::string::npos) << text;
  EXPECT_NE(text.find("make a VM ahead"), std::string::npos) << text;
  EXPECT_EQ(text.find("\"tid\":" + std::to_string(::gettid()), phase), std::string::npos) << text;
  EXPECT_EQ(testing::held(), before_);
}

TEST_F(FrameAheadDevice, without_a_host_is_made_when_it_is_taken) {
  if (!kvm_) {
    return;
  }
  const testing::TempDir dir;
  {
    const auto trace = BootTrace::create(dir.file("trace"), BootTrace::Clock::now()).value();
    OpenKvm opened{.kvm = Kvm::open().value()};
    FrameAhead frame = begin(nullptr);
    EXPECT_FALSE(frame.take_kvm(nullptr).has_value());
    auto made = frame.take(opened, trace.get());
    ASSERT_TRUE(made.has_value()) << made.error().message();
    EXPECT_EQ(made->timer, nullptr) << "it is there already";
    expect_whole(*made);
    ASSERT_TRUE(trace->write());
  }
  EXPECT_NE(testing::read_file(dir.file("trace")).find("create VM"), std::string::npos);
  EXPECT_EQ(testing::held(), before_);
}

TEST_F(FrameAheadDevice, of_a_host_that_could_not_open_kvm_is_made_when_it_is_taken) {
  if (!kvm_) {
    return;
  }
  {
    std::optional<FrameAhead> frame;
    testing::where_refused(SYS_openat, EACCES, [&] {
      HostKvm host;
      host.start(HostKvm::Purpose::kUse);
      frame.emplace(begin(&host));
      EXPECT_FALSE(frame->take_kvm(nullptr).has_value());
    });
    OpenKvm opened{.kvm = Kvm::open().value()};
    auto made = frame->take(opened, nullptr);
    ASSERT_TRUE(made.has_value()) << made.error().message();
    expect_whole(*made);
  }
  EXPECT_EQ(testing::held(), before_);
}

TEST_F(FrameAheadDevice, a_vm_that_cannot_be_made_is_told_when_it_is_taken) {
  if (kvm_) {
    expect_refused(SYS_ioctl, 1, KVM_CREATE_IRQCHIP, "KVM_CREATE_IRQCHIP");
  }
}

TEST_F(FrameAheadDevice, a_timer_that_cannot_be_made_is_told_when_it_is_waited_for) {
  if (kvm_) {
    expect_refused(SYS_ioctl, 1, KVM_CREATE_PIT2, "KVM_CREATE_PIT2");
  }
}

TEST_F(FrameAheadDevice, a_vcpu_that_cannot_be_made_is_told_when_it_is_taken) {
  if (kvm_) {
    // The id; no other call has such an argument.
    expect_refused(SYS_ioctl, 2, kVcpus - 1, "create vCPU 5");
  }
}

TEST_F(FrameAheadDevice, a_vm_whose_descriptor_cannot_be_duplicated_is_told_when_it_is_taken) {
  if (kvm_) {
    expect_refused(SYS_fcntl, 1, F_DUPFD_CLOEXEC, "duplicate the descriptor of a virtual machine");
  }
}

TEST_F(FrameAheadDevice, of_a_host_without_a_thread_for_it_is_made_when_it_is_taken) {
  if (!kvm_) {
    return;
  }
  {
    HostKvm host;
    host.start();
    testing::where_refused(SYS_clone3, EAGAIN, [&] {
      FrameAhead frame = begin(&host);
      auto opened = frame.take_kvm(nullptr);
      ASSERT_TRUE(opened.has_value());
      EXPECT_TRUE(opened->vm.has_value());
      auto made = frame.take(*opened, nullptr);
      ASSERT_TRUE(made.has_value()) << made.error().message();
      EXPECT_FALSE(opened->vm.has_value()) << "the frame has it";
      expect_whole(*made);
    });
  }
  EXPECT_EQ(testing::held(), before_);
}

// The fault of a caller, not of a host: it shows at once.
TEST_F(FrameAheadDevice, is_not_taken_before_the_kvm_that_makes_it) {
  if (!kvm_) {
    return;
  }
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        HostKvm host;
        host.start(HostKvm::Purpose::kUse);
        FrameAhead frame = begin(&host);
        OpenKvm opened{.kvm = Kvm::open().value()};
        static_cast<void>(frame.take(opened, nullptr));
      },
      "comes before take");
}

TEST_P(FrameAheadDeviceFor, given_up_while_it_is_made_it_is_waited_for) {
  if (!kvm_) {
    return;
  }
  HostKvm host;
  host.start(GetParam());
  { const FrameAhead frame = begin(&host); }
  const auto held = testing::held();
  EXPECT_EQ(std::ranges::count_if(
                held, [](const std::string& name) { return name.find("memfd:") != std::string::npos; }),
            0);
}

TEST_F(FrameAheadDevice, may_be_given_up_at_any_time) {
  if (!kvm_) {
    return;
  }
  for (const int step : {0, 1, 2, 3, 4, 5}) {
    HostKvm host;
    host.start(step < 3 ? HostKvm::Purpose::kUse : HostKvm::Purpose::kTake);
    const int steps = step % 3;
    FrameAhead frame = begin(&host);
    auto opened = steps > 0 ? frame.take_kvm(nullptr) : std::nullopt;
    if (steps > 1) {
      EXPECT_TRUE(frame.take(*opened, nullptr).has_value()) << "whose timer nobody waits for";
    }
  }
  EXPECT_EQ(testing::held(), before_);
}

}  // namespace
}  // namespace mayfly
