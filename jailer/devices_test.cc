#include "devices.h"

#include <gtest/gtest.h>

namespace mayfly::jail {
namespace {

TEST(Devices, userfaultfd_has_the_minor_that_the_host_gave_it) {
  const auto devices = jail_devices(" 57 vsock\n126 userfaultfd\n232 kvm\n");
  ASSERT_EQ(devices.size(), 4U);
  EXPECT_EQ(devices[0].path, "kvm");
  EXPECT_EQ(devices[0].minor, 232U);
  EXPECT_EQ(devices[1].path, "net/tun");
  EXPECT_EQ(devices[2].path, "urandom");
  EXPECT_EQ(devices[2].major, 1U);
  EXPECT_EQ(devices[3].path, "userfaultfd");
  EXPECT_EQ(devices[3].major, 10U);
  EXPECT_EQ(devices[3].minor, 126U);
}

TEST(Devices, userfaultfd_is_left_out_where_the_host_has_none) {
  for (const char* const misc :
       {"", "\n", "232 kvm\n", "userfaultfd\n", " x userfaultfd\n", "9 userfaultfd2"}) {
    EXPECT_EQ(jail_devices(misc).size(), 3U) << misc;
  }
}

}  // namespace
}  // namespace mayfly::jail
