// KVM asked ahead, on the host's own /dev/kvm. Where there is no such device, or it may not be opened, every
// case is skipped and says why.
#include <gtest/gtest.h>
#include <sys/syscall.h>

#include <cerrno>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "kvm/kvm.h"
#include "support/held.h"
#include "support/host_kvm_purposes.h"
#include "support/poor_host.h"
#include "support/real_mode_guest.h"
#include "support/temp_dir.h"
#include "vmm/host_kvm.h"

namespace mayfly {
namespace {

class HostKvmDevice : public ::testing::Test {
 protected:
  void SetUp() override { kvm_ = testing::open_kvm_or_skip(); }

  std::optional<Kvm> kvm_;
};

TEST_F(HostKvmDevice, an_empty_vm_and_the_processor_are_there_once) {
  if (!kvm_) {
    return;
  }
  HostKvm host;
  host.start();
  const auto opened = host.take(nullptr);
  ASSERT_TRUE(opened.has_value());
  ASSERT_TRUE(opened->vm.has_value());
  EXPECT_TRUE(opened->vm->create_vcpu(0).has_value());
  EXPECT_TRUE(host.take_supported(nullptr).has_value());
  host.start();
  EXPECT_FALSE(host.take(nullptr).has_value());
  EXPECT_FALSE(host.take_supported(nullptr).has_value());
}

class HostKvmDeviceFor : public HostKvmDevice, public ::testing::WithParamInterface<HostKvm::Purpose> {};

INSTANTIATE_TEST_SUITE_P(Purposes, HostKvmDeviceFor, testing::both_purposes(), testing::purpose_name);

TEST_P(HostKvmDeviceFor, a_job_has_what_was_opened_and_who_takes_it_nothing) {
  if (!kvm_) {
    return;
  }
  HostKvm host;
  host.start(GetParam());
  std::optional<OpenKvm> opened;
  std::thread::id where;
  EXPECT_TRUE(host.use([&](std::optional<OpenKvm> ahead, auto&) {
    opened = std::move(ahead);
    where = std::this_thread::get_id();
  }));
  EXPECT_FALSE(host.use([&](auto&&...) { where = {}; }));
  EXPECT_FALSE(host.take(nullptr).has_value());
  host.end();
  ASSERT_TRUE(opened.has_value());
  ASSERT_TRUE(opened->vm.has_value());
  EXPECT_TRUE(opened->vm->create_vcpu(0).has_value());
  EXPECT_NE(where, std::thread::id());
  EXPECT_NE(where, std::this_thread::get_id());
  EXPECT_FALSE(host.take_supported(nullptr).has_value()) << "after the end there is nothing";
}

TEST_P(HostKvmDeviceFor, a_job_after_all_was_taken_is_not_done) {
  if (!kvm_) {
    return;
  }
  HostKvm host;
  host.start(GetParam());
  ASSERT_TRUE(host.take(nullptr).has_value());
  bool done = false;
  EXPECT_FALSE(host.use([&](auto&&...) { done = true; }));
  EXPECT_TRUE(host.take_supported(nullptr).has_value());
  EXPECT_FALSE(done);
}

TEST_F(HostKvmDevice, where_no_thread_is_to_be_had_a_job_is_not_done_and_who_takes_it_has_it) {
  if (!kvm_) {
    return;
  }
  HostKvm host;
  host.start();
  bool done = false;
  testing::where_refused(SYS_clone3, EAGAIN, [&] {
    EXPECT_FALSE(host.use([&](auto&&...) { done = true; }));
    EXPECT_TRUE(host.take(nullptr).has_value());
  });
  EXPECT_FALSE(done);
}

TEST_P(HostKvmDeviceFor, a_job_ends_before_its_host) {
  if (!kvm_) {
    return;
  }
  bool done = false;
  {
    HostKvm host;
    host.start(GetParam());
    host.use([&](auto&&...) { done = true; });
  }
  EXPECT_TRUE(done);
}

TEST_P(HostKvmDeviceFor, its_end_lets_go_of_what_nobody_took) {
  if (!kvm_) {
    return;
  }
  const auto before = testing::held();
  HostKvm host;
  host.start(GetParam());
  host.end();
  EXPECT_EQ(testing::held(), before);
  EXPECT_FALSE(host.take(nullptr).has_value());
  EXPECT_FALSE(host.take_supported(nullptr).has_value());
}

TEST_F(HostKvmDevice, a_trace_has_what_was_taken) {
  if (!kvm_) {
    return;
  }
  const testing::TempDir dir;
  const auto trace = BootTrace::create(dir.file("trace"), BootTrace::Clock::now()).value();
  HostKvm host;
  host.start();
  ASSERT_TRUE(host.take(trace.get()).has_value());
  ASSERT_TRUE(host.take_supported(trace.get()).has_value());
  ASSERT_TRUE(trace->write());
  const std::string text = testing::read_file(dir.file("trace"));
  EXPECT_NE(text.find("make a VM ahead"), std::string::npos) << text;
  EXPECT_NE(text.find("ask for CPUID"), std::string::npos) << text;
}

}  // namespace
}  // namespace mayfly
