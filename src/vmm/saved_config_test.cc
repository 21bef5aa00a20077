#include "vmm/saved_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>

namespace mayfly {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

VmConfig sample() {
  VmConfig config;
  config.machine = {.vcpu_count = 2, .mem_size_mib = 4096, .smt = true, .huge_pages = HugePages::k2M};
  config.boot_source = {.kernel_image_path = "/k", .initrd_path = "/i", .boot_args = "quiet"};
  config.drives.resize(2);
  config.drives[0].id = "data";
  config.drives[0].path = "/d";
  config.drives[1].id = "rootfs";
  config.drives[1].path = "/r";
  config.drives[1].is_root = true;
  config.networks = {{.id = "eth0", .backend = TapConfig{.name = "tap0"}}};
  return config;
}

// As a snapshot of it has it: with what devices and vCPUs add, as far as it matters here.
MicroVmState saved_sample() {
  MicroVmState state = saved_config(sample()).value();
  state.networks[0].state.mac = MacAddress{{2, 0, 0, 0, 0, 7}};
  return state;
}

TEST(SavedConfig, comes_back_as_it_was_and_with_the_address_that_the_guest_knows) {
  const auto config = config_of(saved_sample());
  ASSERT_TRUE(config.has_value()) << config.error().message();
  EXPECT_EQ(config->machine.vcpu_count, 2U);
  EXPECT_EQ(config->machine.mem_size_mib, 4096U);
  EXPECT_TRUE(config->machine.smt);
  EXPECT_EQ(config->machine.huge_pages, HugePages::k2M);
  EXPECT_EQ(config->boot_source.kernel_image_path, "/k");
  EXPECT_EQ(config->boot_source.initrd_path, "/i");
  EXPECT_EQ(config->boot_source.boot_args, "quiet");
  ASSERT_EQ(config->drives.size(), 2U);
  EXPECT_EQ(config->drives[0].id, "data");
  EXPECT_EQ(config->drives[1].path, "/r");
  ASSERT_EQ(config->networks.size(), 1U);
  EXPECT_EQ(config->networks[0].mac, (MacAddress{{2, 0, 0, 0, 0, 7}}));
}

TEST(SavedConfig, the_root_drive_has_the_first_slot_and_networks_have_the_last) {
  const DeviceSlots slots = device_slots(sample());
  EXPECT_THAT(slots.drives, ElementsAre(1, 0));
  EXPECT_THAT(slots.networks, ElementsAre(2));
  VmConfig without_root = sample();
  without_root.drives[1].is_root = false;
  EXPECT_THAT(device_slots(without_root).drives, ElementsAre(0, 1));
}

TEST(SavedConfig, memory_that_is_not_where_this_monitor_has_it_is_refused) {
  MicroVmState state = saved_sample();
  ASSERT_EQ(state.memory.size(), 2U);
  state.memory[0].size -= std::uint64_t{1} << 20;
  state.memory[1].size += std::uint64_t{1} << 20;
  const auto config = config_of(state);
  ASSERT_FALSE(config.has_value());
  EXPECT_EQ(config.error().code(), ErrorCode::kInvalidImage);
  EXPECT_THAT(config.error().message(), HasSubstr("section memory 0"));
}

TEST(SavedConfig, a_device_in_another_slot_is_refused_by_its_section) {
  MicroVmState drives = saved_sample();
  std::swap(drives.drives[0].slot, drives.drives[1].slot);
  EXPECT_THAT(config_of(drives).error().message(), HasSubstr("section drive 0"));
  MicroVmState network = saved_sample();
  network.networks[0].slot = 5;
  EXPECT_THAT(config_of(network).error().message(), HasSubstr("section network 0"));
}

TEST(SavedConfig, a_machine_that_cannot_be_is_refused) {
  MicroVmState state = saved_sample();
  state.machine.vcpu_count = 3;  // odd, with threads
  EXPECT_THAT(config_of(state).error().message(), HasSubstr("section machine 0: vcpu_count"));
}

}  // namespace
}  // namespace mayfly
