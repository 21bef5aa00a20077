#include "devices/virtio/net/net_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace mayfly {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

NetDeviceConfig tap() {
  return {.id = "eth0", .backend = TapConfig{"tap0"}};
}
NetDeviceConfig user(std::vector<PortForward> forwards = {}) {
  return {.id = "eth0", .backend = UserNetConfig{.forwards = std::move(forwards)}};
}

void expect_refused(const NetDeviceConfig& config, const std::string& why) {
  const auto done = config.validate();
  ASSERT_FALSE(done) << why;
  EXPECT_EQ(done.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_THAT(done.error().message(), StartsWith("interface " + config.id + ": "));
  EXPECT_THAT(done.error().message(), HasSubstr(why));
}

TEST(NetDeviceConfig, smallest_is_valid) {
  EXPECT_TRUE(tap().validate());
  EXPECT_TRUE(user().validate());
}

TEST(NetDeviceConfig, id_with_a_dash_is_refused) {
  auto config = tap();
  config.id = "eth-0";
  expect_refused(config, "id");
}

TEST(NetDeviceConfig, name_no_tap_can_have_is_refused) {
  for (const char* const name : {"", ".", "..", "a/b", "tap%d", "a b", "a:b", "sixteencharacter", "t\n"}) {
    auto config = tap();
    config.backend = TapConfig{name};
    expect_refused(config, "host_dev_name");
  }
}

TEST(NetDeviceConfig, mac_of_a_group_or_of_nobody_is_refused) {
  auto config = tap();
  config.mac = MacAddress::parse("01:00:5e:00:00:01");
  expect_refused(config, "01:00:5e:00:00:01 (guest_mac)");
  config.mac = MacAddress{};
  expect_refused(config, "guest_mac");
}

TEST(NetDeviceConfig, mtu_at_its_limits_is_valid_and_beyond_refused) {
  auto config = tap();
  for (const std::uint32_t mtu : {68U, 65535U}) {
    config.mtu = mtu;
    EXPECT_TRUE(config.validate()) << mtu;
  }
  for (const std::uint32_t mtu : {0U, 67U, 65536U, 4294967295U}) {
    config.mtu = mtu;
    expect_refused(config, "mtu " + std::to_string(mtu));
  }
  config = user();
  config.mtu = 65521;
  expect_refused(config, "mtu 65521");
}

TEST(NetDeviceConfig, queue_pairs_beyond_the_limits_are_refused) {
  auto config = tap();
  config.queue_pairs = 8;
  EXPECT_TRUE(config.validate());
  config.queue_pairs = 9;
  expect_refused(config, "queue_pairs 9");
  config.queue_pairs = 0;
  expect_refused(config, "queue_pairs 0");
  config = user();
  config.queue_pairs = 2;
  expect_refused(config, "user networking has one");
}

TEST(NetDeviceConfig, rate_limiter_that_cannot_be_is_refused) {
  auto config = tap();
  config.tx_rate_limiter.ops = TokenBucketConfig{.size = 1, .refill_time_ms = UINT64_MAX};
  expect_refused(config, "tx_rate_limiter");
}

TEST(NetDeviceConfig, forwards_that_clash_are_refused) {
  EXPECT_TRUE(user({{.host_port = 80, .guest_port = 80},
                    {.protocol = PortForward::Protocol::kUdp, .host_port = 80, .guest_port = 80}})
                  .validate());
  EXPECT_TRUE(user({{.host_address = "127.0.0.1", .host_port = 80, .guest_port = 80},
                    {.host_address = "127.0.0.2", .host_port = 80, .guest_port = 80}})
                  .validate());
  expect_refused(user({{.host_port = 80, .guest_port = 80}, {.host_port = 80, .guest_port = 81}}),
                 "forwarded twice");
  expect_refused(
      user({{.host_port = 80, .guest_port = 80}, {.host_address = "::1", .host_port = 80, .guest_port = 81}}),
      "forwarded twice");
  expect_refused(user({{.host_port = 0, .guest_port = 80}}), "port");
  expect_refused(user({{.host_port = 80, .guest_port = 65536}}), "port");
  expect_refused(user({{.host_address = "localhost", .host_port = 80, .guest_port = 80}}), "'localhost'");
}

TEST(NetDeviceConfig, settings_of_user_networking_have_the_largest_mtu) {
  EXPECT_EQ(user().settings().mtu, kMaxUserMtu);
  EXPECT_EQ(tap().settings().mtu, std::nullopt);
  auto config = user();
  config.mtu = 1500;
  config.mac = MacAddress::parse("06:00:ac:10:00:02");
  EXPECT_EQ(config.settings().mtu, 1500);
  EXPECT_EQ(config.settings().mac, *config.mac);
}

TEST(PortForward, forms_are_understood) {
  EXPECT_EQ(parse_port_forward("8080:80").value(), (PortForward{.host_port = 8080, .guest_port = 80}));
  EXPECT_EQ(parse_port_forward("22").value(), (PortForward{.host_port = 22, .guest_port = 22}));
  EXPECT_EQ(parse_port_forward("53:53:udp").value(),
            (PortForward{.protocol = PortForward::Protocol::kUdp, .host_port = 53, .guest_port = 53}));
  EXPECT_EQ(parse_port_forward("127.0.0.1/1:2:tcp").value(),
            (PortForward{.host_address = "127.0.0.1", .host_port = 1, .guest_port = 2}));
  EXPECT_EQ(parse_port_forward("::1/1:2").value(),
            (PortForward{.host_address = "::1", .host_port = 1, .guest_port = 2}));
}

TEST(PortForward, anything_else_is_refused_with_its_text) {
  for (const char* const text : {"", ":", "80:", ":80", "0:80", "80:65536", "80:80:sctp", "host/80:80",
                                 "80:80:80", "-1:80", "/80:80"}) {
    const auto forward = parse_port_forward(text);
    ASSERT_FALSE(forward) << text;
    EXPECT_THAT(forward.error().message(), HasSubstr("'" + std::string(text) + "'"));
  }
}

}  // namespace
}  // namespace mayfly
