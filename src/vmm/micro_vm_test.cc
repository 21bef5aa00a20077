#include "vmm/micro_vm.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <fstream>
#include <string>
#include <utility>

#include "support/fake_event.h"
#include "support/temp_dir.h"

namespace mayfly {
namespace {

// What a microVM does before there is a machine: no KVM is needed.
class MicroVmTest : public ::testing::Test {
 protected:
  MicroVmTest() {
    for (const char* name : {"kernel", "disk", "other"}) {
      std::ofstream(dir_.file(name)) << std::string(4096, 'x');
    }
  }

  BlockDeviceConfig drive(const std::string& id, const std::string& file) const {
    BlockDeviceConfig config;
    config.id = id;
    config.path = dir_.file(file);
    return config;
  }
  BootSourceConfig kernel(const std::string& file) const {
    BootSourceConfig config;
    config.kernel_image_path = dir_.file(file);
    return config;
  }
  static void expect_refused(const Result<void>& result, ErrorCode code, const std::string& text) {
    ASSERT_FALSE(result.has_value());
    EXPECT_EQ(result.error().code(), code) << result.error().message();
    EXPECT_NE(result.error().message().find(text), std::string::npos) << result.error().message();
  }

  testing::TempDir dir_;
  testing::ManualRegistrar registrar_;
  SerialMetrics serial_metrics_;
  MicroVm vm_{{.registrar = registrar_,
               .serial_metrics = serial_metrics_,
               .console = {},
               .on_outcome = [](const Outcome&) {}}};
};

TEST_F(MicroVmTest, a_start_without_a_kernel_is_the_configurations_fault) {
  const auto started = vm_.start();
  ASSERT_FALSE(started.has_value());
  EXPECT_EQ(started.error().fault, BuildError::Fault::kConfiguration);
  EXPECT_EQ(vm_.state(), MicroVm::State::kNotStarted);
}

TEST_F(MicroVmTest, what_needs_a_machine_is_refused_before_there_is_one) {
  expect_refused(vm_.pause(), ErrorCode::kBusy, "has not been started");
  expect_refused(vm_.resume(), ErrorCode::kBusy, "has not been started");
  expect_refused(vm_.send_ctrl_alt_del(), ErrorCode::kBusy, "has not been started");
  expect_refused(vm_.patch_drive({.id = "d", .path = {}, .rate_limiter = {}}), ErrorCode::kBusy,
                 "has not been started");
  expect_refused(vm_.patch_network({.id = "n", .rx_rate_limiter = {}, .tx_rate_limiter = {}}),
                 ErrorCode::kBusy, "has not been started");
  EXPECT_TRUE(vm_.stop().has_value());
}

TEST_F(MicroVmTest, a_boot_source_that_cannot_be_opened_leaves_the_one_there_was) {
  ASSERT_TRUE(vm_.put_boot_source(kernel("kernel")));
  expect_refused(vm_.put_boot_source(kernel("none")), ErrorCode::kNotFound, dir_.file("none"));
  EXPECT_EQ(vm_.config().boot_source.kernel_image_path, dir_.file("kernel"));
}

TEST_F(MicroVmTest, a_device_holds_its_image_from_the_time_it_is_put_until_another_takes_its_place) {
  ASSERT_TRUE(vm_.put_drive(drive("a", "disk")));
  expect_refused(vm_.put_drive(drive("b", "disk")), ErrorCode::kBusy, "drive b");
  ASSERT_TRUE(vm_.put_drive(drive("a", "disk"))) << "its own lock is in nobody's way";
  expect_refused(vm_.put_drive(drive("a", "none")), ErrorCode::kNotFound, "drive a");
  expect_refused(vm_.put_drive(drive("b", "disk")), ErrorCode::kBusy, "drive b");
  ASSERT_TRUE(vm_.put_drive(drive("a", "other")));
  EXPECT_TRUE(vm_.put_drive(drive("b", "disk")));
  ASSERT_EQ(vm_.config().drives.size(), 2U);
  EXPECT_EQ(vm_.config().drives[0].path, dir_.file("other"));
}

TEST_F(MicroVmTest, one_whose_place_another_process_has_taken_meanwhile_stays_as_it_was) {
  ASSERT_TRUE(vm_.put_drive(drive("a", "disk")));
  MicroVm other{{.registrar = registrar_,
                 .serial_metrics = serial_metrics_,
                 .console = {},
                 .on_outcome = [](const Outcome&) {}}};
  ASSERT_TRUE(other.put_drive(drive("a", "other")));
  expect_refused(vm_.put_drive(drive("a", "other")), ErrorCode::kBusy, "drive a");
  EXPECT_EQ(vm_.config().drives[0].path, dir_.file("disk"));
  expect_refused(other.put_drive(drive("b", "disk")), ErrorCode::kBusy, "drive b");
}

// Whoever waits here holds up all that the monitor's thread does: who asks may ask again.
TEST_F(MicroVmTest, an_image_that_another_holds_is_refused_without_waiting) {
  MicroVm other{{.registrar = registrar_,
                 .serial_metrics = serial_metrics_,
                 .console = {},
                 .on_outcome = [](const Outcome&) {}}};
  ASSERT_TRUE(other.put_drive(drive("a", "disk")));
  ASSERT_TRUE(vm_.put_drive(drive("a", "other")));
  rusage before{};
  rusage after{};
  ::getrusage(RUSAGE_THREAD, &before);
  expect_refused(vm_.put_drive(drive("a", "disk")), ErrorCode::kBusy, "drive a");
  ::getrusage(RUSAGE_THREAD, &after);
  EXPECT_LT(after.ru_nvcsw - before.ru_nvcsw, 10) << "how often it slept";
}

TEST_F(MicroVmTest, metadata_is_served_on_interfaces_that_are_there_only) {
  expect_refused(vm_.put_mmds_config({.network_interfaces = {"n"}}), ErrorCode::kInvalidArgument, "n");
  EXPECT_FALSE(vm_.config().mmds.has_value());
}

}  // namespace
}  // namespace mayfly
