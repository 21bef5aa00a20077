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

}  // namespace
}  // namespace mayfly
