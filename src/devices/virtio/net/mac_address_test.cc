#include "devices/virtio/net/mac_address.h"

#include <gtest/gtest.h>

namespace mayfly {
namespace {

TEST(MacAddress, parsed_and_formatted_is_the_same) {
  const auto address = MacAddress::parse("06:00:aC:10:0f:fE");
  ASSERT_TRUE(address);
  EXPECT_EQ(address->octets, (std::array<std::uint8_t, 6>{6, 0, 0xac, 0x10, 0xf, 0xfe}));
  EXPECT_EQ(address->to_string(), "06:00:ac:10:0f:fe");
}

TEST(MacAddress, anything_else_is_refused) {
  for (const char* const text :
       {"", "06:00:ac:10:00", "06:00:ac:10:00:02:", "06-00-ac-10-00-02", "06:00:ac:10:00:0g",
        "6:00:ac:10:00:002", " 6:00:ac:10:00:02", "06:00:ac:10:00:02 ", "0x:00:ac:10:00:02"}) {
    EXPECT_FALSE(MacAddress::parse(text)) << text;
  }
}

TEST(MacAddress, numbers_fill_the_octets_that_are_left) {
  const auto numbered = [](const char* text, std::uint64_t number) {
    const auto address = MacAddress::parse_numbered(text, number);
    return address ? address->to_string() : "none";
  };
  EXPECT_EQ(numbered("06:00:ac:10:00:02", 7), "06:00:ac:10:00:02");
  EXPECT_EQ(numbered("06:00:ac:10:00:{n}", 255), "06:00:ac:10:00:ff");
  EXPECT_EQ(numbered("06:00:ac:10:00:{n}", 256), "none");
  EXPECT_EQ(numbered("06:00:ac:{n}", 258), "06:00:ac:00:01:02");
  EXPECT_EQ(numbered("06:{n}", 0xffffffffff), "06:ff:ff:ff:ff:ff");
  EXPECT_EQ(numbered("06:{n}", 1ULL << 40), "none");
  for (const char* const text :
       {"{n}", ":{n}", "06{n}", "06:00{n}", "06:0:{n}", "06:00:ac:10:00:02:{n}", "06:00:ac:10:00:02{n}",
        "06:{n}:00:00:00:00", "06:0g:{n}", "06:00:{n}:{n}", "{n}:{n}"}) {
    EXPECT_EQ(numbered(text, 1), "none") << text;
  }
}

TEST(MacAddress, generated_is_local_single_and_another_each_time) {
  const MacAddress first = MacAddress::generate();
  EXPECT_EQ(first.octets[0] & 3, 2);
  EXPECT_FALSE(first.is_multicast());
  EXPECT_NE(first, MacAddress::generate());
}

}  // namespace
}  // namespace mayfly
