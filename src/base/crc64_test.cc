#include "base/crc64.h"

#include <gtest/gtest.h>

#include <string_view>

namespace mayfly {
namespace {

std::span<const std::byte> bytes(std::string_view text) {
  return std::as_bytes(std::span(text));
}

TEST(Crc64, the_check_value_of_the_catalogue) {
  EXPECT_EQ(crc64(bytes("123456789")), 0x995dc9bbdf1939fa);
  EXPECT_EQ(crc64({}), 0U);
}

TEST(Crc64, of_parts_is_that_of_the_whole) {
  EXPECT_EQ(crc64(bytes("6789"), crc64(bytes("12345"))), crc64(bytes("123456789")));
  EXPECT_EQ(crc64({}, crc64(bytes("12345"))), crc64(bytes("12345")));
}

}  // namespace
}  // namespace mayfly
