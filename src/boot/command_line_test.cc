#include "boot/command_line.h"

#include <gtest/gtest.h>

#include <string>

#include "boot/x86_64/layout.h"
#include "support/image_builder.h"

namespace mayfly {
namespace {

using testing::Bytes;
using testing::make_memory;
using testing::read_memory;
using testing::to_bytes;

std::string appended(std::string_view text, std::string_view parameter) {
  auto line = CommandLine::make(text);
  if (!line) {
    return line.error().message();
  }
  const auto done = line->append(parameter);
  if (!done) {
    EXPECT_EQ(line->text(), text);
    return done.error().message();
  }
  return line->text();
}

TEST(CommandLine, only_printable_ascii_is_taken) {
  for (int c = 0; c < 256; ++c) {
    const std::string text = std::string("ab") + static_cast<char>(c) + "d";
    EXPECT_EQ(CommandLine::make(text).has_value(), c >= 0x20 && c < 0x7f) << c;
  }
  const auto line = CommandLine::make("quiet\n");
  ASSERT_FALSE(line);
  EXPECT_EQ(line.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(line.error().message(),
            "command line: byte 0xa at position 5 is not a printable ASCII character");
}

TEST(CommandLine, holds_2047_bytes_and_a_nul) {
  const auto longest = CommandLine::make(std::string(2047, 'x'));
  ASSERT_TRUE(longest);
  EXPECT_EQ(longest->size(), 2048U);
  const auto longer = CommandLine::make(std::string(2048, 'x'));
  ASSERT_FALSE(longer);
  EXPECT_EQ(longer.error().message(), "command line: 2048 bytes are more than the 2047 allowed");
}

TEST(CommandLine, a_parameter_is_added_before_what_is_for_init) {
  EXPECT_EQ(appended("", "a=1"), "a=1");
  EXPECT_EQ(appended("quiet", "a=1"), "quiet a=1");
  EXPECT_EQ(appended("quiet ", "a=1"), "quiet a=1");
  EXPECT_EQ(appended("quiet -- sh -c x", "a=1"), "quiet a=1 -- sh -c x");
  EXPECT_EQ(appended("quiet   --   x", "a=1"), "quiet   a=1 --   x");
  EXPECT_EQ(appended("-- x", "a=1"), "a=1 -- x");
  EXPECT_EQ(appended("  -- x", "a=1"), "  a=1 -- x");
  EXPECT_EQ(appended("quiet --", "a=1"), "quiet a=1 --");
  EXPECT_EQ(appended("a -- b -- c", "p"), "a p -- b -- c");
}

TEST(CommandLine, dashes_that_are_not_alone_are_parameters) {
  EXPECT_EQ(appended("--x y", "a=1"), "--x y a=1");
  EXPECT_EQ(appended("x-- y", "a=1"), "x-- y a=1");
  EXPECT_EQ(appended("--- y", "a=1"), "--- y a=1");
  EXPECT_EQ(appended("--=", "a=1"), "--= a=1");
}

TEST(CommandLine, quotation_marks_are_read_as_the_kernel_does) {
  EXPECT_EQ(appended("x=\"a -- b\" c", "a=1"), "x=\"a -- b\" c a=1");
  EXPECT_EQ(appended("\"x=a -- b\" -- c", "a=1"), "\"x=a -- b\" a=1 -- c");
  EXPECT_EQ(appended("q \"--\" c", "a=1"), "q a=1 \"--\" c");
  EXPECT_EQ(appended("q \"--", "a=1"), "q a=1 \"--");
}

TEST(CommandLine, nothing_is_added_behind_an_open_quotation) {
  EXPECT_EQ(appended("x=\"a b", "a=1"),
            "command line: a quotation mark is not closed, so that nothing can be added");
}

TEST(CommandLine, what_is_added_is_checked_too) {
  EXPECT_EQ(appended("quiet", "a\tb"),
            "command line: byte 0x9 at position 7 is not a printable ASCII character");
  EXPECT_EQ(appended(std::string(2046, 'x'), "y"), "command line: 2048 bytes are more than the 2047 allowed");
  EXPECT_EQ(appended(std::string(2045, 'x'), "y").size(), 2047U);
}

TEST(CommandLine, is_written_with_its_nul) {
  GuestMemory memory = make_memory(1024 * 1024);
  const GuestAddress address(x86_64::layout::kCommandLine);
  ASSERT_TRUE(memory.fill(address, 16, std::byte{0xff}));
  ASSERT_TRUE(CommandLine::make("quiet")->write(memory, address, 6));
  EXPECT_EQ(read_memory(memory, address.value(), 7), to_bytes(std::string_view("quiet\0\xff", 7)));
}

TEST(CommandLine, longer_than_the_kernel_takes_is_refused) {
  GuestMemory memory = make_memory(1024 * 1024);
  const auto written = CommandLine::make("quiet")->write(memory, GuestAddress(0x20000), 5);
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().message(), "command line: 5 bytes are more than the 4 that this kernel takes");
  EXPECT_EQ(read_memory(memory, 0x20000, 6), Bytes(6));
}

TEST(CommandLine, without_memory_behind_the_address_is_an_error) {
  GuestMemory memory = make_memory(1024 * 1024);
  const auto written = CommandLine::make("quiet")->write(memory, GuestAddress(0xffffc), 2048);
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code(), ErrorCode::kOutOfRange);
}

}  // namespace
}  // namespace mayfly
