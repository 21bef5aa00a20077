#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "boot/kernel_image.h"
#include "support/image_builder.h"

namespace mayfly {
namespace {

using testing::Bytes;
using testing::ElfImage;
using ::testing::HasSubstr;
using testing::kElfDataAddress;
using testing::kElfPvhEntry;
using testing::kElfTextAddress;
using testing::make_file;
using testing::make_memory;
using testing::make_vmlinux;
using testing::Note;
using testing::note_bytes;
using testing::pattern;
using testing::put;
using testing::put_bytes;
using testing::pvh_note;
using testing::read_memory;
using testing::to_bytes;

constexpr std::uint64_t kMiB = 1024 * 1024;

Result<LoadedKernel> load(GuestMemory& memory, const Bytes& file,
                          BootProtocolChoice choice = BootProtocolChoice::kAuto) {
  return load_kernel(memory, make_file(file), "/k", choice);
}

TEST(ElfImage, a_vmlinux_is_placed_by_physical_addresses_and_entered_by_its_pvh_note) {
  GuestMemory memory = make_memory(32 * kMiB);
  ElfImage image = make_vmlinux();
  image.program_headers[0].p_vaddr = 0xffffffff81000000;  // as Linux has it; of no meaning here
  const auto kernel = load(memory, image.bytes());
  ASSERT_TRUE(kernel) << kernel.error().message();
  EXPECT_EQ(kernel->format, KernelFormat::kElf);
  EXPECT_EQ(kernel->entry.protocol, BootProtocol::kPvh);
  EXPECT_EQ(kernel->entry.entry, GuestAddress(kElfPvhEntry));
  EXPECT_EQ(kernel->extent,
            GuestRange::make(GuestAddress(kElfTextAddress), kElfDataAddress + 0x5000 - kElfTextAddress));
  EXPECT_EQ(kernel->command_line_max, 2048U);
  EXPECT_TRUE(kernel->setup_header.empty());
  EXPECT_EQ(read_memory(memory, kElfTextAddress, 0x1800), pattern(0x1800));
  EXPECT_EQ(read_memory(memory, kElfDataAddress, 0x345), pattern(0x345, 9));
}

TEST(ElfImage, bss_is_left_as_it_was) {
  GuestMemory memory = make_memory(32 * kMiB);
  const Bytes mark = pattern(0x10, 77);
  ASSERT_TRUE(memory.write(GuestAddress(kElfDataAddress + 0x345), mark));
  ASSERT_TRUE(load(memory, make_vmlinux().bytes()));
  EXPECT_EQ(read_memory(memory, kElfDataAddress + 0x345, 0x10), mark);
}

TEST(ElfImage, the_64_bit_entry_can_be_asked_for_although_there_is_a_note) {
  GuestMemory memory = make_memory(32 * kMiB);
  const auto kernel = load(memory, make_vmlinux().bytes(), BootProtocolChoice::kLinux64);
  ASSERT_TRUE(kernel) << kernel.error().message();
  EXPECT_EQ(kernel->entry.protocol, BootProtocol::kLinux64);
  EXPECT_EQ(kernel->entry.entry, GuestAddress(kElfTextAddress));
}

TEST(ElfImage, a_bare_program_without_notes_is_entered_by_the_64_bit_protocol) {
  GuestMemory memory = make_memory(32 * kMiB);
  ElfImage image = ElfImage::make(0x1000010);
  image.add_load(0x1000000, 0xb0, pattern(0x123), 0x123);
  for (const auto choice : {BootProtocolChoice::kAuto, BootProtocolChoice::kLinux64}) {
    const auto kernel = load(memory, image.bytes(), choice);
    ASSERT_TRUE(kernel) << kernel.error().message();
    EXPECT_EQ(kernel->entry.protocol, BootProtocol::kLinux64);
    EXPECT_EQ(kernel->entry.entry, GuestAddress(0x1000010));
  }
  EXPECT_EQ(read_memory(memory, 0x1000000, 0x123), pattern(0x123));
}

TEST(ElfImage, a_segment_may_end_with_the_guests_memory_and_no_later) {
  GuestMemory memory = make_memory(32 * kMiB);
  ElfImage image = ElfImage::make(0x1000000);
  image.add_load(0x1000000, 0x1000, pattern(0x100), 16 * kMiB);
  EXPECT_TRUE(load(memory, image.bytes()));
  image.program_headers[0].p_memsz += 1;
  EXPECT_FALSE(load(memory, image.bytes()));
}

TEST(ElfImage, empty_segments_and_other_headers_are_passed_over) {
  GuestMemory memory = make_memory(32 * kMiB);
  ElfImage image = make_vmlinux();
  image.add_load(0, 0, {}, 0);
  Elf64_Phdr stack{};
  stack.p_type = PT_GNU_STACK;
  image.program_headers.push_back(stack);
  image.header.e_phnum = 5;
  EXPECT_TRUE(load(memory, image.bytes()));
}

TEST(ElfImage, the_pvh_note_is_found_behind_other_notes_in_later_segments_and_at_8_byte_alignment) {
  GuestMemory memory = make_memory(32 * kMiB);
  for (const std::uint64_t alignment : {4U, 8U}) {
    ElfImage image = ElfImage::make(0);
    image.add_load(0x1000000, 0x1000, pattern(0x200), 0x200);
    image.add_notes(0x2000, note_bytes({Note{18, to_bytes(std::string_view("Xem\0", 4)), pattern(8)},
                                        Note{17, to_bytes(std::string_view("Xen\0", 4)), pattern(8)},
                                        Note{18, to_bytes("Xenon"), pattern(8)}, Note{18, {}, {}}}));
    image.add_notes(0x3000,
                    note_bytes({Note{5, to_bytes("a name!"), pattern(13)}, pvh_note(0x1000123)}, alignment),
                    alignment);
    const auto kernel = load(memory, image.bytes());
    ASSERT_TRUE(kernel) << kernel.error().message();
    EXPECT_EQ(kernel->entry.protocol, BootProtocol::kPvh);
    EXPECT_EQ(kernel->entry.entry, GuestAddress(0x1000123));
  }
}

TEST(ElfImage, a_pvh_note_of_4_bytes_is_as_good_as_one_of_8) {
  GuestMemory memory = make_memory(32 * kMiB);
  ElfImage image = ElfImage::make(0);
  image.add_load(0x1000000, 0x1000, pattern(0x200), 0x200);
  Note note = pvh_note(0x1000100);
  note.description.resize(4);
  image.add_notes(0x2000, note_bytes({note}), 0);
  const auto kernel = load(memory, image.bytes());
  ASSERT_TRUE(kernel) << kernel.error().message();
  EXPECT_EQ(kernel->entry.entry, GuestAddress(0x1000100));
}

TEST(ElfImage, bytes_behind_the_last_note_that_are_no_header_are_passed_over) {
  GuestMemory memory = make_memory(32 * kMiB);
  ElfImage image = ElfImage::make(0x1000000);
  image.add_load(0x1000000, 0x1000, pattern(0x200), 0x200);
  Bytes notes = note_bytes({Note{3, to_bytes(std::string_view("GNU\0", 4)), pattern(20)}});
  put_bytes(notes, notes.size(), pattern(11));
  image.add_notes(0x2000, notes);
  const auto kernel = load(memory, image.bytes());
  ASSERT_TRUE(kernel) << kernel.error().message();
  EXPECT_EQ(kernel->entry.protocol, BootProtocol::kLinux64);
}

TEST(ElfImage, asking_for_pvh_without_a_note_is_the_callers_error) {
  GuestMemory memory = make_memory(32 * kMiB);
  ElfImage image = ElfImage::make(0x1000000);
  image.add_load(0x1000000, 0x1000, pattern(0x200), 0x200);
  const auto kernel = load(memory, image.bytes(), BootProtocolChoice::kPvh);
  ASSERT_FALSE(kernel);
  EXPECT_EQ(kernel.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(kernel.error().message(),
            "kernel image /k: has no PVH note, so that it cannot be entered by PVH");
}

struct Damage {
  const char* name;
  std::function<void(ElfImage&)> apply;
  const char* message;
  BootProtocolChoice choice = BootProtocolChoice::kAuto;
};

std::ostream& operator<<(std::ostream& stream, const Damage& damage) {
  return stream << damage.name;
}

class DamagedElf : public ::testing::TestWithParam<Damage> {};

TEST_P(DamagedElf, is_refused_with_its_name_and_the_reason_and_nothing_is_placed) {
  GuestMemory memory = make_memory(32 * kMiB);
  ElfImage image = make_vmlinux();
  GetParam().apply(image);
  const auto kernel = load(memory, image.bytes(), GetParam().choice);
  ASSERT_FALSE(kernel);
  EXPECT_EQ(kernel.error().code(), ErrorCode::kInvalidImage);
  EXPECT_THAT(kernel.error().message(), HasSubstr("kernel image /k: "));
  EXPECT_THAT(kernel.error().message(), HasSubstr(GetParam().message));
  EXPECT_EQ(read_memory(memory, kElfTextAddress, 0x1800), Bytes(0x1800));
}

void replace_notes(ElfImage& image, const Note& note) {
  image.contents[2].second = note_bytes({note});
  image.program_headers[2].p_filesz = image.contents[2].second.size();
}

// Program headers: 0 text, 1 data and BSS, 2 notes (a GNU note of 36 bytes, then the PVH note).
constexpr std::uint64_t kHuge = std::uint64_t{1} << 63;
const std::vector<Damage> kDamages = {
    {"class_32", [](ElfImage& i) { i.header.e_ident[EI_CLASS] = ELFCLASS32; }, "is not a 64-bit ELF file"},
    {"big_endian", [](ElfImage& i) { i.header.e_ident[EI_DATA] = ELFDATA2MSB; }, "little-endian"},
    {"ident_version", [](ElfImage& i) { i.header.e_ident[EI_VERSION] = 0; }, "unknown ELF version"},
    {"version", [](ElfImage& i) { i.header.e_version = 2; }, "unknown ELF version (2)"},
    {"machine", [](ElfImage& i) { i.header.e_machine = EM_AARCH64; }, "not for x86-64 (e_machine 183)"},
    {"dynamic", [](ElfImage& i) { i.header.e_type = ET_DYN; }, "position-independent (ET_DYN)"},
    {"relocatable", [](ElfImage& i) { i.header.e_type = ET_REL; }, "is not an executable (e_type 1)"},
    {"phentsize_small", [](ElfImage& i) { i.header.e_phentsize = 32; }, "of 32 bytes instead of 56"},
    {"phentsize_large", [](ElfImage& i) { i.header.e_phentsize = 0xffff; }, "of 65535 bytes instead of 56"},
    {"phnum_none", [](ElfImage& i) { i.header.e_phnum = 0; }, "has no program headers"},
    {"phnum_huge", [](ElfImage& i) { i.header.e_phnum = PN_XNUM; },
     "65535 program headers, more than the 128"},
    {"phnum_over", [](ElfImage& i) { i.header.e_phnum = 129; }, "129 program headers, more than the 128"},
    {"phoff_past_end", [](ElfImage& i) { i.header.e_phoff = 0x100000; }, "end of its program headers"},
    {"phoff_huge", [](ElfImage& i) { i.header.e_phoff = ~std::uint64_t{0} - 8; },
     "end of its program headers"},
    {"no_load", [](ElfImage& i) { i.program_headers[0].p_type = i.program_headers[1].p_type = PT_NULL; },
     "nothing to load"},
    {"filesz_over_memsz", [](ElfImage& i) { i.program_headers[0].p_memsz = 0x17ff; },
     "program header 0 has more bytes in the file (0x1800) than in memory (0x17ff)"},
    {"filesz_without_memsz", [](ElfImage& i) { i.program_headers[1].p_memsz = 0; },
     "program header 1 has more"},
    {"content_past_end", [](ElfImage& i) { i.program_headers[1].p_offset = 0x40000; },
     "program header 1 takes 0x345 bytes at 0x40000 of a file that ends at"},
    {"content_wraps", [](ElfImage& i) { i.program_headers[1].p_offset = ~std::uint64_t{0}; },
     "of a file that"},
    {"content_huge",
     [](ElfImage& i) { i.program_headers[1].p_filesz = i.program_headers[1].p_memsz = kHuge; },
     "takes 0x8000000000000000 bytes"},
    {"memory_huge", [](ElfImage& i) { i.program_headers[1].p_memsz = kHuge; }, "not in the guest's memory"},
    {"memory_wraps", [](ElfImage& i) { i.program_headers[1].p_memsz = ~std::uint64_t{0}; },
     "passes the end of the address space"},
    {"address_huge", [](ElfImage& i) { i.program_headers[1].p_paddr = kHuge; }, "not in the guest's memory"},
    {"address_past_ram", [](ElfImage& i) { i.program_headers[1].p_paddr = 32 * kMiB - 0x4fff; },
     "program header 1 lies at [0x1ffb001, 0x2000000], which is not in the guest's memory"},
    {"address_low", [](ElfImage& i) { i.program_headers[1].p_paddr = 0xfffff; }, "must lie above 0x100000"},
    {"address_zero", [](ElfImage& i) { i.program_headers[1].p_paddr = 0; }, "must lie above 0x100000"},
    {"overlap", [](ElfImage& i) { i.program_headers[1].p_paddr = kElfTextAddress + 0x17ff; },
     "program header 1 at [0x10017ff, 0x10067fe] overlaps program header 0 at [0x1000000, 0x10017ff]"},
    {"overlap_in_bss", [](ElfImage& i) { i.program_headers[1].p_paddr = kElfTextAddress - 0x4fff; },
     "overlaps"},
    {"entry_outside", [](ElfImage& i) { i.header.e_entry = kElfTextAddress + 0x1800; },
     "has its entry at 0x1001800, where it loads nothing", BootProtocolChoice::kLinux64},
    {"entry_below", [](ElfImage& i) { i.header.e_entry = kElfTextAddress - 1; }, "where it loads nothing",
     BootProtocolChoice::kLinux64},
    {"entry_in_bss", [](ElfImage& i) { i.header.e_entry = kElfDataAddress + 0x345; },
     "where it loads nothing", BootProtocolChoice::kLinux64},
    {"entry_huge", [](ElfImage& i) { i.header.e_entry = ~std::uint64_t{0}; }, "where it loads nothing",
     BootProtocolChoice::kLinux64},
    {"pvh_entry_outside", [](ElfImage& i) { replace_notes(i, pvh_note(0x2000)); },
     "has its entry at 0x2000, where it loads nothing"},
    {"pvh_entry_not_32_bit", [](ElfImage& i) { replace_notes(i, pvh_note(0x1000000 + (kHuge >> 31))); },
     "not a 32-bit address"},
    {"pvh_entry_of_2_bytes",
     [](ElfImage& i) {
       Note note = pvh_note(0);
       note.description.resize(2);
       replace_notes(i, note);
     },
     "an entry of 2 bytes instead of 4 or 8"},
    {"pvh_entry_of_9_bytes",
     [](ElfImage& i) {
       Note note = pvh_note(0);
       note.description.resize(9);
       replace_notes(i, note);
     },
     "an entry of 9 bytes instead of 4 or 8"},
    {"note_name_huge", [](ElfImage& i) { put<std::uint32_t>(i.contents[2].second, 0, 0xffffffff); },
     "program header 2 has a note at 0x3800 that passes its end (name 0xffffffff, description 0x14 bytes)"},
    {"note_name_over", [](ElfImage& i) { put<std::uint32_t>(i.contents[2].second, 0, 53); },
     "passes its end"},
    {"note_description_huge", [](ElfImage& i) { put<std::uint32_t>(i.contents[2].second, 4, 0xffffffff); },
     "passes its end"},
    {"note_description_over", [](ElfImage& i) { put<std::uint32_t>(i.contents[2].second, 36 + 4, 9); },
     "has a note at 0x3824 that passes its end"},
    {"notes_many", [](ElfImage& i) { i.program_headers[2].p_filesz = 0x10001; },
     "has 0x10001 bytes of notes, more than the 0x10000 allowed"},
    {"notes_past_end", [](ElfImage& i) { i.program_headers[2].p_offset = 0x10000; },
     "bytes of notes at 0x10000 of a file that ends at"},
    {"notes_wrap", [](ElfImage& i) { i.program_headers[2].p_offset = ~std::uint64_t{3}; },
     "of a file that ends"},
    {"notes_misaligned", [](ElfImage& i) { i.program_headers[2].p_offset -= 2; },
     "misaligned notes at 0x37fe"},
    {"notes_misaligned_8",
     [](ElfImage& i) {
       i.program_headers[2].p_align = 8;
       i.program_headers[2].p_offset = 0x37fc;
     },
     "misaligned notes at 0x37fc"},
    {"notes_alignment_odd", [](ElfImage& i) { i.program_headers[2].p_align = 6; }, "notes aligned to 0x6"},
    {"notes_alignment_huge", [](ElfImage& i) { i.program_headers[2].p_align = kHuge; }, "notes aligned to"},
};

INSTANTIATE_TEST_SUITE_P(ElfImage, DamagedElf, ::testing::ValuesIn(kDamages),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

TEST(ElfImage, a_file_cut_off_anywhere_is_refused) {
  GuestMemory memory = make_memory(32 * kMiB);
  const Bytes whole = make_vmlinux().bytes();
  ASSERT_TRUE(load(memory, whole));
  for (std::size_t size = 0; size < whole.size(); size += size < 300 ? 1 : 97) {
    const auto kernel = load(memory, Bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size)));
    ASSERT_FALSE(kernel) << size;
    EXPECT_EQ(kernel.error().code(), ErrorCode::kInvalidImage);
  }
}

TEST(ElfImage, the_64_bit_entry_needs_the_whole_kernel_below_1_gib_and_pvh_does_not) {
  GuestMemory memory = make_memory(1100 * kMiB);
  ElfImage image = make_vmlinux();
  image.program_headers[1].p_paddr = 1024 * kMiB - 0x5000;
  EXPECT_TRUE(load(memory, image.bytes(), BootProtocolChoice::kLinux64));
  image.program_headers[1].p_memsz += 1;
  const auto kernel = load(memory, image.bytes(), BootProtocolChoice::kLinux64);
  ASSERT_FALSE(kernel);
  EXPECT_THAT(kernel.error().message(), HasSubstr("reaches up to 0x40000000, but the 64-bit entry needs"));
  EXPECT_TRUE(load(memory, image.bytes(), BootProtocolChoice::kPvh));
}

TEST(ElfImage, a_segment_across_two_ranges_of_memory_is_refused) {
  const std::array ranges{*GuestRange::make(GuestAddress(0), 16 * kMiB + 0x1000),
                          *GuestRange::make(GuestAddress(16 * kMiB + 0x1000), kMiB)};
  auto memory = GuestMemory::create(ranges, Backing::kAnonymous);
  ASSERT_TRUE(memory) << memory.error().message();
  const auto kernel = load(*memory, make_vmlinux().bytes());
  ASSERT_FALSE(kernel);
  EXPECT_THAT(kernel.error().message(), HasSubstr("not in the guest's memory"));
}

}  // namespace
}  // namespace mayfly
