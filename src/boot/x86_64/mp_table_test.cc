#include "boot/x86_64/mp_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <map>
#include <span>
#include <string>

#include "boot/x86_64/layout.h"

namespace mayfly::x86_64 {
namespace {

using ::testing::HasSubstr;
using Bytes = std::vector<std::uint8_t>;

// What a system reads, by the tables of the MultiProcessor Specification 1.4, chapter 4.
struct MpTable {
  std::map<int, std::vector<Bytes>> entries;  // by type
  std::uint64_t local_apic = 0;
};

std::uint64_t integer(const Bytes& bytes, std::size_t offset, std::size_t size) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < size; ++i) {
    value |= std::uint64_t{bytes.at(offset + i)} << (8 * i);
  }
  return value;
}

int sum(const Bytes& bytes) {
  int total = 0;
  for (const std::uint8_t byte : bytes) {
    total += byte;
  }
  return total & 0xff;
}

std::string text(const Bytes& bytes, std::size_t offset, std::size_t size) {
  return {bytes.begin() + static_cast<std::ptrdiff_t>(offset),
          bytes.begin() + static_cast<std::ptrdiff_t>(offset + size)};
}

GuestMemory make_memory(std::uint64_t size) {
  const std::array ranges = {*GuestRange::make(GuestAddress(0), size)};
  return std::move(*GuestMemory::create(ranges, Backing::kAnonymous));
}

Bytes read(const GuestMemory& memory, std::uint64_t address, std::size_t size) {
  Bytes bytes(size);
  EXPECT_TRUE(memory.read(GuestAddress(address), std::as_writable_bytes(std::span(bytes))));
  return bytes;
}

// Follows the pointer from the last KiB of base memory, as a kernel does.
MpTable read_table(const GuestMemory& memory) {
  const Bytes pointer = read(memory, 639 * 1024, 16);
  EXPECT_EQ(text(pointer, 0, 4), "_MP_");
  EXPECT_EQ(integer(pointer, 8, 1), 1U) << "length in paragraphs";
  EXPECT_EQ(integer(pointer, 9, 1), 4U) << "revision 1.4";
  EXPECT_EQ(sum(pointer), 0);
  EXPECT_EQ(integer(pointer, 11, 1), 0U) << "a table of its own, no default configuration";

  const std::uint64_t address = integer(pointer, 4, 4);
  const Bytes header = read(memory, address, 44);
  EXPECT_EQ(text(header, 0, 4), "PCMP");
  EXPECT_EQ(integer(header, 6, 1), 4U);
  const std::uint64_t length = integer(header, 4, 2);
  EXPECT_LE(address + length, 640U * 1024) << "within base memory";
  const Bytes whole = read(memory, address, length);
  EXPECT_EQ(sum(whole), 0);

  MpTable table;
  table.local_apic = integer(header, 36, 4);
  std::size_t offset = 44;
  int last_type = 0;
  for (std::uint64_t left = integer(header, 34, 2); left > 0; --left) {
    const int type = whole.at(offset);
    EXPECT_GE(type, last_type) << "entries stand by type, ascending";
    last_type = type;
    const std::size_t size = type == 0 ? 20 : 8;
    table.entries[type].push_back({whole.begin() + static_cast<std::ptrdiff_t>(offset),
                                   whole.begin() + static_cast<std::ptrdiff_t>(offset + size)});
    offset += size;
  }
  EXPECT_EQ(offset, length) << "the entries are as many as the header says";
  return table;
}

TEST(MpTable, names_every_processor_and_the_first_as_the_one_that_starts) {
  for (const std::uint32_t count : {1U, 2U, 32U}) {
    GuestMemory memory = make_memory(2U << 20);
    ASSERT_TRUE(write_mp_table(count, memory));
    const MpTable table = read_table(memory);
    EXPECT_EQ(table.local_apic, 0xfee00000U);
    const auto& processors = table.entries.at(0);
    ASSERT_EQ(processors.size(), count);
    for (std::uint32_t i = 0; i < count; ++i) {
      EXPECT_EQ(processors[i][1], i) << "APIC id";
      EXPECT_EQ(processors[i][3], i == 0 ? 3 : 1) << "enabled, and the boot processor";
    }
  }
}

TEST(MpTable, gives_every_pin_of_the_io_apic_its_line_as_a_rising_edge) {
  GuestMemory memory = make_memory(2U << 20);
  ASSERT_TRUE(write_mp_table(4, memory));
  const MpTable table = read_table(memory);
  ASSERT_EQ(table.entries.at(1).size(), 1U);
  const Bytes& bus = table.entries.at(1)[0];
  EXPECT_EQ(text(bus, 2, 6), "ISA   ");
  ASSERT_EQ(table.entries.at(2).size(), 1U);
  const Bytes& io_apic = table.entries.at(2)[0];
  EXPECT_EQ(io_apic[1], 4) << "an id that no processor has";
  EXPECT_EQ(io_apic[3], 1) << "enabled";
  EXPECT_EQ(integer(io_apic, 4, 4), 0xfec00000U);
  const auto& interrupts = table.entries.at(3);
  ASSERT_EQ(interrupts.size(), 24U);
  for (std::uint8_t pin = 0; pin < 24; ++pin) {
    EXPECT_EQ(interrupts[pin], (Bytes{3, 0, 5, 0, bus[1], pin, io_apic[1], pin}));
  }
}

TEST(MpTable, connects_the_local_pins_as_firmware_does) {
  GuestMemory memory = make_memory(2U << 20);
  ASSERT_TRUE(write_mp_table(1, memory));
  const auto local = read_table(memory).entries.at(4);
  ASSERT_EQ(local.size(), 2U);
  EXPECT_EQ(local[0][1], 3) << "ExtINT";
  EXPECT_EQ(local[0][7], 0) << "LINT0";
  EXPECT_EQ(local[1][1], 1) << "NMI";
  EXPECT_EQ(local[1][7], 1) << "LINT1";
  EXPECT_EQ(local[0][6], 0xff) << "of all local APICs";
  EXPECT_EQ(local[1][6], 0xff);
}

TEST(MpTable, more_processors_than_it_can_name_are_refused) {
  EXPECT_FALSE(build_mp_table(0));
  const auto refused = build_mp_table(33);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message(), HasSubstr("33 vCPUs"));
}

TEST(MpTable, memory_without_its_place_is_an_error) {
  GuestMemory memory = make_memory(0x90000);
  EXPECT_FALSE(write_mp_table(1, memory));
}

}  // namespace
}  // namespace mayfly::x86_64
