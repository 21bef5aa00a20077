#include "boot/x86_64/prepare_boot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <optional>
#include <tuple>

#include "boot/x86_64/layout.h"
#include "boot/x86_64/memory_map.h"
#include "boot/x86_64/pvh.h"
#include "boot/x86_64/zero_page.h"
#include "support/image_builder.h"

namespace mayfly::x86_64 {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::make_bzimage;
using testing::make_file;
using testing::make_memory;
using testing::read_memory;
using testing::to_bytes;

constexpr std::uint64_t kMiB = 1024 * 1024;
constexpr std::uint64_t kGiB = 1024 * kMiB;

template <typename T>
T at(const GuestMemory& memory, std::uint64_t address) {
  return memory.read_object<T>(GuestAddress(address)).value();
}

BootPlan make_plan(BootProtocol protocol) {
  return {LoadedKernel{KernelFormat::kElf,
                       {protocol, GuestAddress(0x1000040)},
                       *GuestRange::make(GuestAddress(0x1000000), kMiB),
                       2048,
                       GuestAddress(0xffffffff),
                       {}},
          std::nullopt, *CommandLine::make("console=ttyS0 quiet"), std::nullopt};
}

GuestMemory make_memory_of(std::span<const GuestRange> ranges) {
  return std::move(*GuestMemory::create(ranges, Backing::kAnonymous));
}

using Entry = std::tuple<std::uint64_t, std::uint64_t, std::uint32_t>;  // address, size, type

std::vector<Entry> map_of(std::span<const GuestRange> ranges) {
  std::vector<Entry> map;
  for (const MemoryMapEntry& entry : make_memory_map(make_memory_of(ranges))) {
    map.emplace_back(entry.range.base().value(), entry.range.size(), static_cast<std::uint32_t>(entry.type));
  }
  return map;
}

TEST(MemoryMap, is_all_memory_with_the_system_area_reserved) {
  const std::array ranges{*GuestRange::make(GuestAddress(0), 3 * kGiB),
                          *GuestRange::make(GuestAddress(4 * kGiB), kGiB)};
  EXPECT_THAT(map_of(ranges), ElementsAre(Entry(0, 0x9fc00, 1), Entry(0x9fc00, 0x60400, 2),
                                          Entry(0x100000, 3 * kGiB - kMiB, 1), Entry(4 * kGiB, kGiB, 1)));
}

TEST(MemoryMap, names_no_more_than_there_is) {
  const std::array one_mib{*GuestRange::make(GuestAddress(0), kMiB)};
  EXPECT_THAT(map_of(one_mib), ElementsAre(Entry(0, 0x9fc00, 1), Entry(0x9fc00, 0x60400, 2)));
  const std::array less{*GuestRange::make(GuestAddress(0), 0xa0000)};
  EXPECT_THAT(map_of(less), ElementsAre(Entry(0, 0x9fc00, 1), Entry(0x9fc00, 0x400, 2)));
  const std::array low{*GuestRange::make(GuestAddress(0), 0x1000)};
  EXPECT_THAT(map_of(low), ElementsAre(Entry(0, 0x1000, 1)));
}

// Offsets: the zero page's table in the kernel's Documentation/arch/x86/zero-page.rst and boot.rst.
TEST(ZeroPage, of_an_elf_kernel_has_what_the_64_bit_entry_reads) {
  GuestMemory memory = make_memory(64 * kMiB);
  BootPlan plan = make_plan(BootProtocol::kLinux64);
  plan.initrd = GuestRange::make(GuestAddress(0x3ff0000), 0xabcd);
  plan.rsdp = GuestAddress(0xe0000);
  ASSERT_TRUE(write_zero_page(memory, plan));
  constexpr std::uint64_t kPage = layout::kZeroPage;
  EXPECT_EQ(at<std::uint64_t>(memory, kPage + 0x070), 0xe0000U);     // acpi_rsdp_addr
  EXPECT_EQ(at<std::uint8_t>(memory, kPage + 0x1ef), 0U);            // sentinel
  EXPECT_EQ(at<std::uint16_t>(memory, kPage + 0x1fe), 0xaa55U);      // boot_flag
  EXPECT_EQ(at<std::uint32_t>(memory, kPage + 0x202), 0x53726448U);  // "HdrS"
  EXPECT_GE(at<std::uint16_t>(memory, kPage + 0x206), 0x20cU);       // version
  EXPECT_EQ(at<std::uint8_t>(memory, kPage + 0x210), 0xffU);         // type_of_loader
  EXPECT_EQ(at<std::uint8_t>(memory, kPage + 0x211), 0x01U);         // loadflags
  EXPECT_EQ(at<std::uint32_t>(memory, kPage + 0x218), 0x3ff0000U);   // ramdisk_image
  EXPECT_EQ(at<std::uint32_t>(memory, kPage + 0x21c), 0xabcdU);      // ramdisk_size
  EXPECT_EQ(at<std::uint32_t>(memory, kPage + 0x228), 0x20000U);     // cmd_line_ptr
  EXPECT_EQ(at<std::uint32_t>(memory, kPage + 0x238), 2047U);        // cmdline_size
  EXPECT_EQ(at<std::uint32_t>(memory, kPage + 0x0c0), 0U);           // ext_ramdisk_image
  ASSERT_EQ(at<std::uint8_t>(memory, kPage + 0x1e8), 3U);            // e820_entries
  EXPECT_EQ(at<std::uint64_t>(memory, kPage + 0x2d0), 0U);
  EXPECT_EQ(at<std::uint64_t>(memory, kPage + 0x2d8), 0x9fc00U);
  EXPECT_EQ(at<std::uint32_t>(memory, kPage + 0x2e0), 1U);
  EXPECT_EQ(at<std::uint64_t>(memory, kPage + 0x2d0 + 20), 0x9fc00U);
  EXPECT_EQ(at<std::uint32_t>(memory, kPage + 0x2e0 + 20), 2U);
  EXPECT_EQ(at<std::uint64_t>(memory, kPage + 0x2d0 + 40), 0x100000U);
  EXPECT_EQ(at<std::uint64_t>(memory, kPage + 0x2d8 + 40), 63 * kMiB);
}

TEST(ZeroPage, without_initrd_and_acpi_says_so) {
  GuestMemory memory = make_memory(64 * kMiB);
  ASSERT_TRUE(write_zero_page(memory, make_plan(BootProtocol::kLinux64)));
  EXPECT_EQ(at<std::uint64_t>(memory, layout::kZeroPage + 0x070), 0U);
  EXPECT_EQ(at<std::uint64_t>(memory, layout::kZeroPage + 0x218), 0U);
}

TEST(ZeroPage, splits_addresses_beyond_4_gib) {
  GuestMemory memory = make_memory(64 * kMiB);
  BootPlan plan = make_plan(BootProtocol::kLinux64);
  plan.initrd = GuestRange::make(GuestAddress(0x512345000), 0x100000002);
  ASSERT_TRUE(write_zero_page(memory, plan));
  EXPECT_EQ(at<std::uint32_t>(memory, layout::kZeroPage + 0x218), 0x12345000U);
  EXPECT_EQ(at<std::uint32_t>(memory, layout::kZeroPage + 0x0c0), 5U);
  EXPECT_EQ(at<std::uint32_t>(memory, layout::kZeroPage + 0x21c), 2U);
  EXPECT_EQ(at<std::uint32_t>(memory, layout::kZeroPage + 0x0c4), 1U);
}

TEST(ZeroPage, of_a_bzimage_keeps_the_images_own_header) {
  GuestMemory memory = make_memory(64 * kMiB);
  auto image = make_bzimage();
  image.set<std::uint8_t>(0x201, 0x8e);  // up to 0x290: newer fields than anyone knows
  image.set<std::uint8_t>(0x28f, 0x5a);
  image.set<std::uint8_t>(0x290, 0xff);
  image.set<std::uint8_t>(0x1f0, 0xff);
  auto kernel = load_kernel(memory, make_file(image.file), "/k", BootProtocolChoice::kAuto);
  ASSERT_TRUE(kernel) << kernel.error().message();
  BootPlan plan{std::move(*kernel), std::nullopt, *CommandLine::make("quiet"), std::nullopt};
  ASSERT_TRUE(write_zero_page(memory, plan));
  constexpr std::uint64_t kPage = layout::kZeroPage;
  EXPECT_EQ(at<std::uint8_t>(memory, kPage + 0x1f0), 0U);
  EXPECT_EQ(at<std::uint8_t>(memory, kPage + 0x1f1), 4U);           // setup_sects, copied
  EXPECT_EQ(at<std::uint16_t>(memory, kPage + 0x206), 0x20fU);      // version, copied
  EXPECT_EQ(at<std::uint8_t>(memory, kPage + 0x210), 0xffU);        // type_of_loader, ours
  EXPECT_EQ(at<std::uint32_t>(memory, kPage + 0x214), 0x1000000U);  // code32_start, where it lies
  EXPECT_EQ(at<std::uint32_t>(memory, kPage + 0x260), 0x800000U);   // init_size, copied
  EXPECT_EQ(at<std::uint8_t>(memory, kPage + 0x28f), 0x5aU);
  EXPECT_EQ(at<std::uint8_t>(memory, kPage + 0x290), 0U);
}

TEST(ZeroPage, cannot_list_memory_in_more_than_128_pieces) {
  std::vector<GuestRange> ranges{*GuestRange::make(GuestAddress(0), kMiB)};
  while (ranges.size() < 128) {
    ranges.push_back(*GuestRange::make(GuestAddress(ranges.size() * 2 * kMiB), 0x1000));
  }
  GuestMemory memory = make_memory_of(ranges);  // 127 pieces and the two of the first range
  const auto written = write_zero_page(memory, make_plan(BootProtocol::kLinux64));
  ASSERT_FALSE(written);
  EXPECT_THAT(written.error().message(), HasSubstr("129 pieces is more than the 128"));
  ranges.pop_back();
  memory = make_memory_of(ranges);
  EXPECT_TRUE(write_zero_page(memory, make_plan(BootProtocol::kLinux64)));
}

// Offsets: xen/include/public/arch-x86/hvm/start_info.h.
TEST(Pvh, start_info_has_modules_command_line_memory_map_and_rsdp) {
  GuestMemory memory = make_memory(64 * kMiB);
  BootPlan plan = make_plan(BootProtocol::kPvh);
  plan.initrd = GuestRange::make(GuestAddress(0x3ff0000), 0xabcd);
  plan.rsdp = GuestAddress(0xe0000);
  ASSERT_TRUE(write_pvh_start_info(memory, plan));
  constexpr std::uint64_t kInfo = layout::kPvhStartInfo;
  EXPECT_EQ(at<std::uint32_t>(memory, kInfo + 0), 0x336ec578U);  // magic
  EXPECT_EQ(at<std::uint32_t>(memory, kInfo + 4), 1U);           // version
  EXPECT_EQ(at<std::uint32_t>(memory, kInfo + 8), 0U);           // flags
  ASSERT_EQ(at<std::uint32_t>(memory, kInfo + 12), 1U);          // nr_modules
  const auto modules = at<std::uint64_t>(memory, kInfo + 16);
  EXPECT_EQ(at<std::uint64_t>(memory, modules), 0x3ff0000U);
  EXPECT_EQ(at<std::uint64_t>(memory, modules + 8), 0xabcdU);
  EXPECT_EQ(at<std::uint64_t>(memory, modules + 16), 0U);
  EXPECT_EQ(at<std::uint64_t>(memory, kInfo + 24), 0x20000U);  // cmdline_paddr
  EXPECT_EQ(at<std::uint64_t>(memory, kInfo + 32), 0xe0000U);  // rsdp_paddr
  const auto map = at<std::uint64_t>(memory, kInfo + 40);
  ASSERT_EQ(at<std::uint32_t>(memory, kInfo + 48), 3U);  // memmap_entries
  EXPECT_EQ(at<std::uint64_t>(memory, map + 0), 0U);
  EXPECT_EQ(at<std::uint64_t>(memory, map + 8), 0x9fc00U);
  EXPECT_EQ(at<std::uint32_t>(memory, map + 16), 1U);
  EXPECT_EQ(at<std::uint64_t>(memory, map + 24), 0x9fc00U);
  EXPECT_EQ(at<std::uint32_t>(memory, map + 40), 2U);
  EXPECT_EQ(at<std::uint64_t>(memory, map + 48), 0x100000U);
  EXPECT_EQ(at<std::uint64_t>(memory, map + 56), 63 * kMiB);
  EXPECT_EQ(at<std::uint32_t>(memory, map + 64), 1U);
}

TEST(Pvh, start_info_without_initrd_and_acpi_says_so) {
  GuestMemory memory = make_memory(64 * kMiB);
  ASSERT_TRUE(write_pvh_start_info(memory, make_plan(BootProtocol::kPvh)));
  EXPECT_EQ(at<std::uint32_t>(memory, layout::kPvhStartInfo + 12), 0U);
  EXPECT_EQ(at<std::uint64_t>(memory, layout::kPvhStartInfo + 16), 0U);
  EXPECT_EQ(at<std::uint64_t>(memory, layout::kPvhStartInfo + 32), 0U);
}

TEST(Pvh, start_info_cannot_list_more_memory_than_its_page_holds) {
  std::vector<GuestRange> ranges{*GuestRange::make(GuestAddress(0), kMiB)};
  while (ranges.size() < 170) {
    ranges.push_back(*GuestRange::make(GuestAddress(ranges.size() * 2 * kMiB), 0x1000));
  }
  GuestMemory memory = make_memory_of(ranges);
  const auto written = write_pvh_start_info(memory, make_plan(BootProtocol::kPvh));
  ASSERT_FALSE(written);
  EXPECT_THAT(written.error().message(), HasSubstr("171 pieces"));
}

void expect_same(const SegmentState& segment, std::uint64_t descriptor) {
  EXPECT_EQ(descriptor_of(segment), descriptor);
}

// Descriptors as the processor reads them, put together by hand from the SDM's figure.
TEST(CpuState, descriptors_are_encoded_as_the_processor_reads_them) {
  SegmentState segment;
  segment.base = 0x89abcdef;
  segment.limit = 0x12345fff;
  segment.g = true;
  segment.type = 0x2;
  segment.dpl = 3;
  expect_same(segment, 0x8981'62ab'cdef'2345);
  segment.g = false;
  segment.limit = 0x54321;
  segment.present = segment.s = segment.avl = segment.l = segment.db = true;
  expect_same(segment, 0x8975'f2ab'cdef'4321);
}

TEST(CpuState, pvh_is_entered_in_flat_protected_mode_without_paging) {
  GuestMemory memory = make_memory(64 * kMiB);
  const auto state = prepare_boot(memory, make_plan(BootProtocol::kPvh));
  ASSERT_TRUE(state) << state.error().message();
  EXPECT_EQ(state->rip, 0x1000040U);
  EXPECT_EQ(state->rbx, layout::kPvhStartInfo);
  EXPECT_EQ(state->rflags, 2U);
  EXPECT_EQ(state->cr0, 0x11U);
  EXPECT_EQ(state->cr3, 0U);
  EXPECT_EQ(state->cr4, 0U);
  EXPECT_EQ(state->efer, 0U);
  EXPECT_TRUE(state->cs.db);
  EXPECT_FALSE(state->cs.l);
  for (const SegmentState* segment :
       {&state->cs, &state->ds, &state->es, &state->fs, &state->gs, &state->ss}) {
    EXPECT_EQ(segment->base, 0U);
    EXPECT_EQ(segment->limit, 0xffffffffU);
    EXPECT_TRUE(segment->present && segment->s && segment->g);
    // The register and the table it would be loaded from agree.
    EXPECT_EQ(at<std::uint64_t>(memory, state->gdt.base + segment->selector), descriptor_of(*segment));
  }
  EXPECT_EQ(state->cs.type & 0xa, 0xa);  // code, readable
  EXPECT_EQ(state->ds.type & 0xa, 0x2);  // data, writable
  EXPECT_EQ(state->tr.limit, 0x67U);
  EXPECT_EQ(state->tr.type, 0xbU);
  EXPECT_TRUE(state->tr.present && !state->tr.s);
  EXPECT_FALSE(state->ldt.present);
  EXPECT_EQ(at<std::uint64_t>(memory, layout::kGdt), 0U);
  EXPECT_EQ(at<std::uint64_t>(memory, layout::kGdt + 0x10), 0x00cf'9b00'0000'ffffU);
  EXPECT_EQ(at<std::uint64_t>(memory, layout::kGdt + 0x18), 0x00cf'9300'0000'ffffU);
  // Page tables are not needed and cost nothing.
  EXPECT_EQ(at<std::uint64_t>(memory, layout::kPml4), 0U);
  EXPECT_EQ(read_memory(memory, layout::kCommandLine, 20),
            to_bytes(std::string_view("console=ttyS0 quiet\0", 20)));
  EXPECT_EQ(at<std::uint32_t>(memory, layout::kPvhStartInfo), kPvhMagic);
}

// Walks the page tables as the SDM describes it for 4-level paging.
std::optional<std::uint64_t> translate(const GuestMemory& memory, std::uint64_t cr3, std::uint64_t address) {
  std::uint64_t table = cr3;
  for (const unsigned shift : {39U, 30U, 21U, 12U}) {
    const auto entry = at<std::uint64_t>(memory, table + (address >> shift & 511) * 8);
    if ((entry & 3) != 3) {
      return std::nullopt;
    }
    const std::uint64_t frame = entry & 0x000ffffffffff000;
    if (shift == 12 || (entry & 0x80) != 0) {
      return frame | (address & ((std::uint64_t{1} << shift) - 1));
    }
    table = frame;
  }
  return std::nullopt;
}

TEST(CpuState, linux_is_entered_in_long_mode_with_its_memory_mapped_one_to_one) {
  GuestMemory memory = make_memory(64 * kMiB);
  const auto state = prepare_boot(memory, make_plan(BootProtocol::kLinux64));
  ASSERT_TRUE(state) << state.error().message();
  EXPECT_EQ(state->rip, 0x1000040U);
  EXPECT_EQ(state->rsi, layout::kZeroPage);
  EXPECT_EQ(state->rflags, 2U);
  EXPECT_EQ(state->cr0, 0x80000011U);
  EXPECT_EQ(state->cr4, 0x20U);
  EXPECT_EQ(state->efer, 0x500U);
  EXPECT_EQ(state->cs.selector, 0x10U);  // __BOOT_CS
  EXPECT_EQ(state->ds.selector, 0x18U);  // __BOOT_DS
  EXPECT_EQ(state->es.selector, 0x18U);
  EXPECT_EQ(state->ss.selector, 0x18U);
  EXPECT_TRUE(state->cs.l);
  EXPECT_FALSE(state->cs.db);
  EXPECT_EQ(state->gdt.base, layout::kGdt);
  EXPECT_EQ(state->gdt.limit, 0x2fU);
  EXPECT_EQ(state->idt.limit, 0U);
  EXPECT_EQ(at<std::uint64_t>(memory, layout::kGdt + 0x10), 0x00af'9b00'0000'ffffU);
  EXPECT_EQ(at<std::uint64_t>(memory, layout::kGdt + 0x18), 0x00cf'9300'0000'ffffU);
  for (std::uint64_t address = 0x123; address < kGiB; address += 0x1ff000) {
    ASSERT_EQ(translate(memory, state->cr3, address), address);
  }
  EXPECT_EQ(translate(memory, state->cr3, kGiB - 1), kGiB - 1);
  EXPECT_EQ(translate(memory, state->cr3, kGiB), std::nullopt);
  EXPECT_EQ(translate(memory, state->cr3, std::uint64_t{1} << 39), std::nullopt);
  EXPECT_EQ(at<std::uint8_t>(memory, layout::kZeroPage + 0x210), 0xffU);
  EXPECT_EQ(read_memory(memory, layout::kCommandLine, 8), to_bytes("console="));
}

TEST(PrepareBoot, a_command_line_longer_than_the_kernel_takes_is_refused) {
  GuestMemory memory = make_memory(64 * kMiB);
  BootPlan plan = make_plan(BootProtocol::kPvh);
  plan.kernel.command_line_max = 10;
  const auto state = prepare_boot(memory, plan);
  ASSERT_FALSE(state);
  EXPECT_EQ(state.error().code(), ErrorCode::kInvalidArgument);
}

TEST(PrepareBoot, memory_that_lacks_the_low_addresses_is_an_error_at_every_step) {
  for (const std::uint64_t size : {0x1000U, 0x7000U, 0x8000U, 0x9000U, 0xa000U, 0xb000U}) {
    GuestMemory memory = make_memory(size);
    for (const auto protocol : {BootProtocol::kPvh, BootProtocol::kLinux64}) {
      const auto state = prepare_boot(memory, make_plan(protocol));
      ASSERT_FALSE(state);
      EXPECT_EQ(state.error().code(), ErrorCode::kOutOfRange);
      const BootPlan plan = make_plan(protocol);
      EXPECT_EQ(write_pvh_start_info(memory, plan).has_value(), size >= 0x7000);
      EXPECT_EQ(write_zero_page(memory, plan).has_value(), size >= 0x8000);
      EXPECT_FALSE(make_linux64_state(memory, GuestAddress(0)).has_value());
    }
  }
  const std::array high{*GuestRange::make(GuestAddress(0x1000), kMiB)};
  GuestMemory memory = make_memory_of(high);
  EXPECT_FALSE(make_pvh_state(memory, GuestAddress(0)).has_value());
  EXPECT_FALSE(make_linux64_state(memory, GuestAddress(0)).has_value());
}

}  // namespace
}  // namespace mayfly::x86_64
