#include "snapshot/describe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/snapshot_states.h"

namespace mayfly {
namespace {

using ::mayfly::testing::sample_state;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

TEST(DescribeSnapshot, says_what_is_in_it) {
  const auto text = describe_snapshot(encode(sample_state(2)).value());
  ASSERT_TRUE(text.has_value()) << text.error().message();
  EXPECT_THAT(*text, StartsWith("v1.0.0\n"));
  EXPECT_THAT(*text, HasSubstr("created     2024-02-29T23:59:59Z\n"));
  EXPECT_THAT(*text, HasSubstr("program     mayfly 0.1.0\n"));
  EXPECT_THAT(*text, HasSubstr("processor   x86-64, AMD, EPYC 9999\\x1b\n"));
  EXPECT_THAT(*text, HasSubstr("vCPUs       2\n"));
  EXPECT_THAT(*text, HasSubstr("memory      3145732 KiB, 2 ranges, transparent huge pages\n"));
  EXPECT_THAT(*text, HasSubstr("kernel      /boot/vmlinux\n"));
  EXPECT_THAT(*text, HasSubstr("drive       rootfs: /images/root\\n.ext4, 1 MiB, root, overlay "
                               "/images/overlay\n"));
  EXPECT_THAT(*text, HasSubstr("network     eth0: tap tap0, 06:00:ac:10:00:02\n"));
  EXPECT_THAT(*text, HasSubstr("network     eth1: passt, 02:00:00:00:00:09\n"));
  EXPECT_THAT(*text, HasSubstr("metadata    version 2 at 169.254.169.254, through eth0\n"));
  EXPECT_THAT(*text, HasSubstr(" vcpu 1: version 1, "));
  EXPECT_THAT(*text, HasSubstr(" boot 0: version 1, 53 bytes, optional\n"));
}

TEST(DescribeSnapshot, whether_it_is_a_diff_and_onto_what) {
  MicroVmState state = sample_state();
  state.mark = SnapshotMark{0x01, 0xab};
  state.base.reset();
  const std::string zeros(28, '0');
  EXPECT_THAT(describe_snapshot(encode(state).value()).value(),
              HasSubstr("snapshot    Full, 01ab" + zeros + "\n"));
  state.base = SnapshotMark{0xff, 0x10};
  EXPECT_THAT(describe_snapshot(encode(state).value()).value(),
              HasSubstr("snapshot    Diff onto ff10" + zeros + ", its own mark is 01ab" + zeros + "\n"));
}

TEST(DescribeSnapshot, what_is_not_there_is_not_spoken_of) {
  MicroVmState state = sample_state();
  state.created_ns = 0;
  state.producer.clear();
  state.boot.reset();
  state.vcpus[0].cpuid.resize(1);
  state.mmds.reset();
  state.machine.smt = true;
  state.machine.huge_pages = SavedPages::k2M;
  state.drives[0].config.overlay->path.reset();
  const std::string text = describe_snapshot(encode(state).value()).value();
  for (const char* word : {"created", "program", "kernel", "metadata  "}) {
    EXPECT_THAT(text, Not(HasSubstr(word)));
  }
  EXPECT_THAT(text, HasSubstr("processor   x86-64, AMD\n"));
  EXPECT_THAT(text, HasSubstr("vCPUs       1, two a core\n"));
  EXPECT_THAT(text, HasSubstr(", 2 MiB pages\n"));
  EXPECT_THAT(text, HasSubstr("overlay in memory"));
}

TEST(DescribeSnapshot, nothing_of_a_file_reaches_a_terminal_as_it_is) {
  MicroVmState state = sample_state();
  state.producer = "\x1b[2J\r\xc2\x9b";
  state.boot->kernel_image_path = "a\nb";
  const std::string text = describe_snapshot(encode(state).value()).value();
  for (const char each : text) {
    EXPECT_TRUE(each == '\n' || (each >= ' ' && each <= '~'));
  }
  EXPECT_THAT(text, HasSubstr("kernel      a\\nb\n"));
}

TEST(DescribeSnapshot, vendors_are_named) {
  MicroVmState state = sample_state();
  for (const auto& [cpuid, name] : {std::pair("GenuineIntel", "Intel"), std::pair("HygonGenuine", "Hygon"),
                                    std::pair("SomebodyElse", "of another vendor")}) {
    state.vcpus[0].cpuid[0] = ::mayfly::testing::cpuid_vendor(cpuid);
    EXPECT_THAT(describe_snapshot(encode(state).value()).value(),
                HasSubstr(std::string("x86-64, ") + name + ", EPYC"));
  }
}

TEST(DescribeSnapshot, what_cannot_be_read_is_an_error) {
  EXPECT_EQ(describe_snapshot({}).error().code(), ErrorCode::kInvalidImage);
  EXPECT_EQ(snapshot_version_text(), "v1.0.0");
}

}  // namespace
}  // namespace mayfly
