#include "vmm/config.h"

#include <gtest/gtest.h>

namespace mayfly {
namespace {

TEST(MachineConfig, the_defaults_are_valid) {
  EXPECT_TRUE(MachineConfig{}.validate());
}

TEST(MachineConfig, every_vcpu_count_outside_1_to_32_is_refused_by_name) {
  for (std::uint32_t count = 0; count < 70; ++count) {
    const auto valid = MachineConfig{.vcpu_count = count}.validate();
    EXPECT_EQ(valid.has_value(), count >= 1 && count <= 32) << count;
    if (!valid) {
      EXPECT_NE(valid.error().message().find("vcpu_count " + std::to_string(count)), std::string::npos);
    }
  }
}

TEST(MachineConfig, with_smt_an_odd_count_above_one_is_refused) {
  for (std::uint32_t count = 1; count <= 32; ++count) {
    const MachineConfig config{.vcpu_count = count, .smt = true};
    EXPECT_EQ(config.validate().has_value(), count == 1 || count % 2 == 0) << count;
  }
}

TEST(MachineConfig, memory_must_be_positive_and_even_for_2m_pages) {
  EXPECT_FALSE(MachineConfig{.mem_size_mib = 0}.validate());
  EXPECT_TRUE(MachineConfig{.mem_size_mib = 1}.validate());
  EXPECT_TRUE(MachineConfig{.mem_size_mib = 64 << 10}.validate());
  EXPECT_FALSE(MachineConfig{.mem_size_mib = std::uint64_t{1} << 40}.validate());
  EXPECT_FALSE((MachineConfig{.mem_size_mib = 129, .huge_pages = HugePages::k2M}.validate()));
  EXPECT_TRUE((MachineConfig{.mem_size_mib = 130, .huge_pages = HugePages::k2M}.validate()));
}

// Whether that much memory fits a processor with so many bits of physical address.
template <unsigned Bits>
Result<void> on_host_of(std::uint64_t mem_size_mib) {
  return MachineConfig{.mem_size_mib = mem_size_mib}.check_address_bits([] { return Bits; });
}

TEST(MachineConfig, memory_up_to_the_last_address_of_the_host_fits_and_no_more) {
  // Memory beyond 3 GiB ends 1 GiB further up, behind the hole.
  constexpr std::uint64_t kGib = 1024;
  EXPECT_TRUE(on_host_of<36>(63 * kGib));
  EXPECT_FALSE(on_host_of<36>(63 * kGib + 1));
  EXPECT_TRUE(on_host_of<39>(511 * kGib));
  EXPECT_FALSE(on_host_of<39>(511 * kGib + 1));
  EXPECT_TRUE(on_host_of<48>(kMaxMemoryMib));
  EXPECT_TRUE(on_host_of<52>(kMaxMemoryMib));
  EXPECT_TRUE(on_host_of<32>(3 * kGib));
  EXPECT_FALSE(on_host_of<32>(3 * kGib + 1));
}

TEST(MachineConfig, memory_beyond_the_host_is_refused_with_the_limit) {
  const auto fits = on_host_of<36>(65536);
  ASSERT_FALSE(fits);
  EXPECT_EQ(fits.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(fits.error().message(),
            "mem_size_mib 65536 (--memory): must be at most 64512 on this host, whose processor has 36 bits "
            "of physical "
            "address");
  EXPECT_NE(on_host_of<20>(4096).error().message().find("at most 3072 "), std::string::npos);
}

TEST(MachineConfig, the_host_is_not_asked_about_memory_that_every_processor_reaches) {
  EXPECT_TRUE(MachineConfig{.mem_size_mib = 3072}.check_address_bits(nullptr));
}

BlockDeviceConfig drive(const std::string& id, bool is_root = false) {
  BlockDeviceConfig config;
  config.id = id;
  config.path = "/img";
  config.is_root = is_root;
  return config;
}

NetDeviceConfig network(const std::string& id, const std::string& tap, const std::string& mac) {
  return {.id = id, .backend = TapConfig{tap}, .mac = MacAddress::parse(mac)};
}

std::string devices_error(const VmConfig& config) {
  const auto valid = config.validate_devices();
  return valid ? "" : valid.error().message();
}

TEST(VmConfigDevices, differ_in_what_tells_them_apart) {
  VmConfig config;
  config.drives = {drive("a", true), drive("b")};
  config.networks = {network("n", "t0", "06:00:ac:10:00:02"), network("m", "t1", "06:00:ac:10:00:03")};
  EXPECT_EQ(devices_error(config), "");

  VmConfig twice = config;
  twice.drives.push_back(drive("a"));
  EXPECT_EQ(devices_error(twice), "drive a: another drive has this id");
  twice = config;
  twice.drives.push_back(drive("c", true));
  EXPECT_EQ(devices_error(twice), "drive c: drive a is the root device already");
  twice = config;
  twice.networks.push_back(network("n", "t2", "06:00:ac:10:00:04"));
  EXPECT_EQ(devices_error(twice), "interface n: another interface has this id");
  twice.networks.back() = network("o", "t1", "06:00:ac:10:00:04");
  EXPECT_EQ(devices_error(twice), "interface o: another interface has the tap t1");
  twice.networks.back() = network("o", "t2", "06:00:AC:10:00:02");
  EXPECT_EQ(devices_error(twice), "interface o: another interface has the MAC address 06:00:ac:10:00:02");
}

TEST(VmConfigDevices, are_no_more_than_there_is_room_for) {
  VmConfig config;
  while (config.drives.size() < kMaxVirtioDevices) {
    config.drives.push_back(drive("d" + std::to_string(config.drives.size())));
  }
  EXPECT_EQ(devices_error(config), "");
  config.networks = {network("n", "t0", "06:00:ac:10:00:02")};
  EXPECT_EQ(devices_error(config), "there are 19 drives and network interfaces: at most 18 find room");
}

}  // namespace
}  // namespace mayfly
