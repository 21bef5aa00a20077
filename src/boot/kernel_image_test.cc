#include "boot/kernel_image.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>

#include "boot/image_file.h"
#include "support/image_builder.h"
#include "support/temp_dir.h"

namespace mayfly {
namespace {

using testing::Bytes;
using ::testing::HasSubstr;
using testing::make_file;
using testing::make_memory;
using testing::pattern;
using testing::to_bytes;

std::string refusal(const Bytes& file) {
  GuestMemory memory = make_memory(32 * 1024 * 1024);
  const auto kernel = load_kernel(memory, make_file(file), "/k", BootProtocolChoice::kAuto);
  return kernel ? "was loaded" : kernel.error().message();
}

TEST(KernelImage, files_that_are_no_kernels_are_refused_by_what_they_are) {
  EXPECT_EQ(refusal({}), "kernel image /k: is empty");
  EXPECT_EQ(refusal(to_bytes("\x7f"
                             "ELF")),
            "kernel image /k: ends at 0x4, within the 64 bytes expected at 0x0");
  EXPECT_EQ(refusal(to_bytes("#!/bin/sh")), "kernel image /k: is neither an ELF file nor a bzImage");
  EXPECT_EQ(refusal(Bytes(5000)), "kernel image /k: is neither an ELF file nor a bzImage");
  EXPECT_EQ(refusal(to_bytes("\x1f\x8b.......")), "kernel image /k: is packed with gzip: unpack it first");
  EXPECT_EQ(refusal(to_bytes(std::string_view("\xfd"
                                              "7zXZ\0",
                                              6))),
            "kernel image /k: is packed with xz: unpack it first");
  EXPECT_EQ(refusal(to_bytes("\x28\xb5\x2f\xfd")), "kernel image /k: is packed with zstd: unpack it first");
}

TEST(ImageFile, only_a_regular_file_is_opened) {
  const testing::TempDir directory;
  const auto message = [](const std::string& name) {
    const auto file = open_image_file(name, "initrd");
    return file ? std::string("opened") : file.error().message();
  };
  const std::string folder = directory.file(".");
  EXPECT_EQ(message(folder), "initrd " + folder + ": is a directory, not a regular file");
  EXPECT_EQ(message("/dev/null"), "initrd /dev/null: is a device, not a regular file");
  EXPECT_THAT(message(directory.file("none")), HasSubstr("No such file or directory"));

  // Opening a pipe that nobody writes to must not wait.
  const std::string pipe = directory.fifo("pipe");
  EXPECT_EQ(message(pipe), "initrd " + pipe + ": is a pipe, not a regular file");

  ASSERT_TRUE(open_file(directory.file("file"), O_CREAT | O_WRONLY, "test file"));
  EXPECT_EQ(message(directory.file("file")), "opened");
}

TEST(ImageFile, descriptors_that_cannot_be_read_are_errors) {
  const auto nothing = ImageFile::examine(UniqueFd(), "kernel image", "/k");
  ASSERT_FALSE(nothing);
  EXPECT_EQ(nothing.error().message(), "look at kernel image /k: Bad file descriptor (EBADF)");

  const testing::TempDir directory;
  auto file = open_file(directory.file("file"), O_CREAT | O_WRONLY, "test file");
  ASSERT_TRUE(file);
  ASSERT_EQ(::ftruncate(file->get(), 10), 0);
  const auto image = ImageFile::examine(*file, "kernel image", "/k");
  ASSERT_TRUE(image);
  const auto read = image->read_object<char>(0);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().message(), "read kernel image /k: Bad file descriptor (EBADF)");
}

TEST(ImageFile, descriptors_of_no_file_are_refused) {
  const UniqueFd event = std::move(*make_eventfd());
  const auto image = ImageFile::examine(event, "kernel image", "/k");
  ASSERT_FALSE(image);
  EXPECT_EQ(image.error().message(), "kernel image /k: is a special file, not a regular file");
}

TEST(ImageFile, a_file_that_shrinks_while_it_is_read_is_an_error) {
  const UniqueFd file = make_file(pattern(100));
  const auto image = ImageFile::examine(file, "kernel image", "/k");
  ASSERT_TRUE(image);
  ASSERT_EQ(::ftruncate(file.get(), 50), 0);
  Bytes bytes(100);
  const auto read = image->read(0, bytes);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().message(), "kernel image /k: became shorter while it was read");

  GuestMemory memory = make_memory(32 * 1024 * 1024);
  const auto placed = image->place(memory, GuestAddress(0x100000), 0, 100);
  ASSERT_FALSE(placed);
  EXPECT_EQ(placed.error().code(), ErrorCode::kInvalidImage);
}

}  // namespace
}  // namespace mayfly
