#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "boot/kernel_image.h"
#include "support/image_builder.h"

namespace mayfly::x86_64 {
namespace {

using testing::Bytes;
using testing::BzImage;
using ::testing::HasSubstr;
using testing::make_bzimage;
using testing::make_file;
using testing::make_memory;
using testing::pattern;
using testing::put_bytes;
using testing::read_memory;

constexpr std::uint64_t kMiB = 1024 * 1024;

Result<LoadedKernel> load(GuestMemory& memory, const BzImage& image,
                          BootProtocolChoice choice = BootProtocolChoice::kAuto) {
  return load_kernel(memory, make_file(image.file), "/k", choice);
}

TEST(BzImage, is_placed_at_its_preferred_address_and_entered_512_bytes_on) {
  GuestMemory memory = make_memory(32 * kMiB);
  const BzImage image = make_bzimage();
  const auto kernel = load(memory, image);
  ASSERT_TRUE(kernel) << kernel.error().message();
  EXPECT_EQ(kernel->format, KernelFormat::kBzImage);
  EXPECT_EQ(kernel->entry.protocol, BootProtocol::kLinux64);
  EXPECT_EQ(kernel->entry.entry, GuestAddress(0x1000200));
  EXPECT_EQ(kernel->extent, GuestRange::make(GuestAddress(0x1000000), 0x800000));
  EXPECT_EQ(kernel->command_line_max, 2048U);
  EXPECT_EQ(kernel->initrd_last, GuestAddress(0x7fffffff));
  EXPECT_EQ(kernel->setup_header, Bytes(image.file.begin() + 0x1f1, image.file.begin() + 0x26c));
  EXPECT_EQ(read_memory(memory, 0x1000000, BzImage::kCodeSize), pattern(BzImage::kCodeSize));
}

TEST(BzImage, bytes_behind_the_kernel_are_left_out) {
  GuestMemory memory = make_memory(32 * kMiB);
  BzImage image = make_bzimage();
  put_bytes(image.file, image.file.size(), pattern(100));  // a signature, say
  ASSERT_TRUE(load(memory, image));
  EXPECT_EQ(read_memory(memory, 0x1000000 + BzImage::kCodeSize, 100), Bytes(100));
}

TEST(BzImage, no_setup_sectors_mean_four) {
  GuestMemory memory = make_memory(32 * kMiB);
  BzImage image = make_bzimage();
  image.set<std::uint8_t>(0x1f1, 0);
  ASSERT_TRUE(load(memory, image));
  EXPECT_EQ(read_memory(memory, 0x1000000, 0x100), pattern(0x100));
}

TEST(BzImage, a_relocatable_kernel_goes_to_the_next_aligned_address) {
  GuestMemory memory = make_memory(32 * kMiB);
  BzImage image = make_bzimage();
  image.set<std::uint64_t>(0x258, 0x1000001);
  auto kernel = load(memory, image);
  ASSERT_TRUE(kernel) << kernel.error().message();
  EXPECT_EQ(kernel->extent.base(), GuestAddress(0x1200000));

  image.set<std::uint64_t>(0x258, 0);  // prefers nothing
  kernel = load(memory, image);
  ASSERT_TRUE(kernel) << kernel.error().message();
  EXPECT_EQ(kernel->extent.base(), GuestAddress(0x200000));

  image.set<std::uint32_t>(0x230, 0x1000);
  kernel = load(memory, image);
  ASSERT_TRUE(kernel) << kernel.error().message();
  EXPECT_EQ(kernel->extent.base(), GuestAddress(0x100000));
}

TEST(BzImage, a_kernel_that_is_not_relocatable_goes_where_it_says) {
  GuestMemory memory = make_memory(32 * kMiB);
  BzImage image = make_bzimage();
  image.set<std::uint8_t>(0x234, 0);
  image.set<std::uint64_t>(0x258, 0x123000);
  const auto kernel = load(memory, image);
  ASSERT_TRUE(kernel) << kernel.error().message();
  EXPECT_EQ(kernel->extent.base(), GuestAddress(0x123000));
}

TEST(BzImage, the_room_it_needs_is_at_least_its_own_size) {
  GuestMemory memory = make_memory(32 * kMiB);
  BzImage image = make_bzimage();
  image.set<std::uint32_t>(0x260, 0);
  const auto kernel = load(memory, image);
  ASSERT_TRUE(kernel) << kernel.error().message();
  EXPECT_EQ(kernel->extent.size(), BzImage::kCodeSize);
}

TEST(BzImage, may_fill_the_guests_memory_to_its_end) {
  GuestMemory memory = make_memory(32 * kMiB);
  BzImage image = make_bzimage();
  image.set<std::uint32_t>(0x260, 0x1000000);
  EXPECT_TRUE(load(memory, image));
}

TEST(BzImage, asking_for_pvh_is_the_callers_error) {
  GuestMemory memory = make_memory(32 * kMiB);
  const auto kernel = load(memory, make_bzimage(), BootProtocolChoice::kPvh);
  ASSERT_FALSE(kernel);
  EXPECT_EQ(kernel.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_THAT(kernel.error().message(), HasSubstr("cannot be entered by PVH; use the ELF file"));
}

struct Damage {
  const char* name;
  std::function<void(BzImage&)> apply;
  const char* message;
};

std::ostream& operator<<(std::ostream& stream, const Damage& damage) {
  return stream << damage.name;
}

class DamagedBzImage : public ::testing::TestWithParam<Damage> {};

TEST_P(DamagedBzImage, is_refused_with_its_name_and_the_reason_and_nothing_is_placed) {
  GuestMemory memory = make_memory(32 * kMiB);
  auto image = make_bzimage();
  GetParam().apply(image);
  const auto kernel = load(memory, image);
  ASSERT_FALSE(kernel);
  EXPECT_EQ(kernel.error().code(), ErrorCode::kInvalidImage);
  EXPECT_THAT(kernel.error().message(), HasSubstr("kernel image /k: "));
  EXPECT_THAT(kernel.error().message(), HasSubstr(GetParam().message));
  EXPECT_EQ(read_memory(memory, 0x1000000, 0x1000), Bytes(0x1000));
}

const std::vector<Damage> kDamages = {
    {"no_magic", [](BzImage& i) { i.set<std::uint32_t>(0x202, 0x53726449); },
     "neither an ELF file nor a bzImage"},
    {"boot_flag", [](BzImage& i) { i.set<std::uint16_t>(0x1fe, 0x55aa); },
     "boot flag 0x55aa instead of 0xaa55"},
    {"version", [](BzImage& i) { i.set<std::uint16_t>(0x206, 0x020b); }, "version 0x20b, older than 0x20c"},
    {"header_short", [](BzImage& i) { i.set<std::uint8_t>(0x201, 0x61); }, "setup header that ends at 0x263"},
    {"header_long", [](BzImage& i) { i.set<std::uint8_t>(0x201, 0x8f); }, "setup header that ends at 0x291"},
    {"loaded_low", [](BzImage& i) { i.set<std::uint8_t>(0x211, 0); }, "a zImage"},
    {"no_64_bit_entry", [](BzImage& i) { i.set<std::uint16_t>(0x236, 0x2); }, "no 64-bit entry"},
    {"alignment_none", [](BzImage& i) { i.set<std::uint32_t>(0x230, 0); }, "alignment of 0x0"},
    {"alignment_odd", [](BzImage& i) { i.set<std::uint32_t>(0x230, 0x300000); }, "not a power of two"},
    {"no_code", [](BzImage& i) { i.set<std::uint32_t>(0x1f4, 0); }, "only 0 bytes of kernel"},
    {"no_code_at_the_entry", [](BzImage& i) { i.set<std::uint32_t>(0x1f4, 0x20); },
     "only 512 bytes of kernel"},
    {"cut_off", [](BzImage& i) { i.file.pop_back(); }, "before its 0x1230 bytes of kernel at 0xa00 do"},
    {"code_huge", [](BzImage& i) { i.set<std::uint32_t>(0x1f4, 0xffffffff); }, "0xffffffff0 bytes of kernel"},
    {"setup_huge", [](BzImage& i) { i.set<std::uint8_t>(0x1f1, 255); }, "bytes of kernel at 0x20000"},
    {"payload_outside", [](BzImage& i) { i.set<std::uint32_t>(0x24c, 0xf31); },
     "payload of 0xf31 bytes at 0x300"},
    {"payload_wraps", [](BzImage& i) { i.set<std::uint32_t>(0x248, 0xffffff00); }, "payload of 0x400 bytes"},
    {"init_size_over", [](BzImage& i) { i.set<std::uint32_t>(0x260, 0x1000001); },
     "needs 16777217 bytes of memory at 0x1000000 to start"},
    {"init_size_huge", [](BzImage& i) { i.set<std::uint32_t>(0x260, 0xffffffff); }, "give it more memory"},
    {"address_huge", [](BzImage& i) { i.set<std::uint64_t>(0x258, 0x8000000000000000); },
     "give it more memory"},
    {"address_cannot_be_aligned", [](BzImage& i) { i.set<std::uint64_t>(0x258, ~std::uint64_t{0}); },
     "past the end of the address space"},
    {"fixed_address_wraps",
     [](BzImage& i) {
       i.set<std::uint8_t>(0x234, 0);
       i.set<std::uint64_t>(0x258, ~std::uint64_t{0});
     },
     "give it more memory"},
    {"fixed_address_low",
     [](BzImage& i) {
       i.set<std::uint8_t>(0x234, 0);
       i.set<std::uint64_t>(0x258, 0xff000);
     },
     "cannot be moved from 0xff000"},
};

INSTANTIATE_TEST_SUITE_P(BzImage, DamagedBzImage, ::testing::ValuesIn(kDamages),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

TEST(BzImage, a_file_cut_off_anywhere_is_refused) {
  GuestMemory memory = make_memory(32 * kMiB);
  BzImage image = make_bzimage();
  const Bytes whole = image.file;
  for (std::size_t size = 0; size < whole.size(); size += size < 0x1f0 || size > 0x280 ? 61 : 1) {
    image.file = Bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    const auto kernel = load(memory, image);
    ASSERT_FALSE(kernel) << size;
    EXPECT_EQ(kernel.error().code(), ErrorCode::kInvalidImage);
  }
}

TEST(BzImage, must_lie_below_1_gib_whole) {
  GuestMemory memory = make_memory(1100 * kMiB);
  BzImage image = make_bzimage();
  image.set<std::uint64_t>(0x258, 1024 * kMiB - 0x800000);
  EXPECT_TRUE(load(memory, image));
  image.set<std::uint32_t>(0x260, 0x800001);
  const auto kernel = load(memory, image);
  ASSERT_FALSE(kernel);
  EXPECT_THAT(kernel.error().message(), HasSubstr("reaches up to 0x40000000"));
}

}  // namespace
}  // namespace mayfly::x86_64
