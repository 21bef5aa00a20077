#include "mmds/mmds_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace mayfly {
namespace {

using ::testing::HasSubstr;

const std::vector<std::string> kExisting = {"eth0", "eth1"};

TEST(Ipv4Address, four_numbers_parse_and_print) {
  for (const char* text : {"0.0.0.0", "169.254.169.254", "255.255.255.255", "10.0.200.3"}) {
    const auto address = Ipv4Address::parse(text);
    ASSERT_TRUE(address) << text;
    EXPECT_EQ(address->to_string(), text);
  }
}

TEST(Ipv4Address, anything_else_is_nothing) {
  for (const char* text :
       {"", ".", "1.2.3", "1.2.3.4.", "1.2.3.4.5", "1..2.3", "256.1.1.1", "1.2.3.-4", "01.2.3.4", "1.2.3.4 ",
        " 1.2.3.4", "1.2.3.0x4", "1.2.3.a", "169.254.169.254:80"}) {
    EXPECT_FALSE(Ipv4Address::parse(text)) << text;
  }
}

TEST(MmdsConfig, defaults_with_an_interface_are_valid) {
  EXPECT_TRUE(MmdsConfig{.network_interfaces = {"eth1"}}.validate(kExisting));
}

TEST(MmdsConfig, no_interface_is_refused) {
  const auto refused = MmdsConfig{}.validate(kExisting);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_THAT(refused.error().message(), HasSubstr("network_interfaces"));
}

TEST(MmdsConfig, unknown_interface_is_refused_by_name) {
  const auto refused = MmdsConfig{.network_interfaces = {"eth0", "wlan0"}}.validate(kExisting);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message(), HasSubstr("\"wlan0\"; there are: eth0, eth1"));
}

TEST(MmdsConfig, only_addresses_that_links_may_use_are_valid) {
  const auto valid = [](const char* address) {
    return MmdsConfig{.network_interfaces = {"eth0"}, .ipv4_address = *Ipv4Address::parse(address)}
        .validate(kExisting)
        .has_value();
  };
  for (const char* address : {"169.254.1.0", "169.254.254.255", "169.254.170.2"}) {
    EXPECT_TRUE(valid(address)) << address;
  }
  for (const char* address : {"169.254.0.255", "169.254.255.0", "169.253.1.1", "168.254.1.1", "10.0.0.1"}) {
    EXPECT_FALSE(valid(address)) << address;
  }
}

}  // namespace
}  // namespace mayfly
