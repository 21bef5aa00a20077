#include "boot/x86_64/mp_table.h"

#include <span>
#include <string>
#include <utility>

#include "base/check.h"
#include "boot/x86_64/layout.h"
#include "boot/x86_64/table_bytes.h"

// Section numbers are those of the MultiProcessor Specification 1.4.
namespace mayfly::x86_64 {
namespace {

constexpr std::uint8_t kSpecificationRevision = 4;
constexpr std::size_t kPointerSize = 16;
constexpr std::size_t kHeaderSize = 44;

// 4.3: types of entries, which stand in this order.
constexpr std::uint8_t kProcessor = 0;
constexpr std::uint8_t kBus = 1;
constexpr std::uint8_t kIoApic = 2;
constexpr std::uint8_t kIoInterrupt = 3;
constexpr std::uint8_t kLocalInterrupt = 4;

constexpr std::uint8_t kIsaBusId = 0;
constexpr std::uint32_t kPins = 24;

// 4.3.1. What a processor is, its CPUID says.
void add_processor(TableBytes& table, std::uint32_t index) {
  constexpr std::uint32_t kLocalApicVersion = 0x14;  // KVM's
  constexpr std::uint32_t kEnabled = 1;
  constexpr std::uint32_t kBootProcessor = 2;
  table.u8(kProcessor);
  table.u8(index);
  table.u8(kLocalApicVersion);
  table.u8(index == 0 ? kEnabled | kBootProcessor : kEnabled);
  table.u32(0);  // signature
  table.u32(0);  // features
  table.u32(0);
  table.u32(0);
}

// 4.3.4 and 4.3.5, whose entries look alike.
void add_interrupt(TableBytes& table, std::uint8_t entry, std::uint32_t type, std::uint32_t line,
                   std::uint32_t apic, std::uint32_t pin) {
  constexpr std::uint32_t kRisingEdge = 0x05;  // polarity: active high; trigger mode: edge
  table.u8(entry);
  table.u8(type);
  table.u16(kRisingEdge);
  table.u8(kIsaBusId);
  table.u8(line);
  table.u8(apic);
  table.u8(pin);
}

}  // namespace

Result<std::vector<std::uint8_t>> build_mp_table(std::uint32_t vcpu_count) {
  if (vcpu_count < 1 || vcpu_count > layout::kMaxVcpus) {
    return fail(ErrorCode::kInvalidArgument, "MP table: " + std::to_string(vcpu_count) +
                                                 " vCPUs; there can be 1 to " +
                                                 std::to_string(layout::kMaxVcpus));
  }
  constexpr std::uint32_t kIoApicVersion = 0x11;  // KVM's
  constexpr std::uint32_t kEnabled = 1;
  constexpr std::uint32_t kInterrupt = 0;  // 4.3.4, interrupt types
  constexpr std::uint32_t kNmi = 1;
  constexpr std::uint32_t kExtInt = 3;
  constexpr std::uint32_t kAllLocalApics = 0xff;
  const std::uint32_t io_apic_id = vcpu_count;  // 3.6.6: one that no local APIC has

  TableBytes entries;
  for (std::uint32_t index = 0; index < vcpu_count; ++index) {
    add_processor(entries, index);
  }
  entries.u8(kBus);
  entries.u8(kIsaBusId);
  entries.text("ISA   ", 6);
  entries.u8(kIoApic);
  entries.u8(io_apic_id);
  entries.u8(kIoApicVersion);
  entries.u8(kEnabled);
  entries.u32(layout::kIoApic);
  for (std::uint32_t pin = 0; pin < kPins; ++pin) {
    add_interrupt(entries, kIoInterrupt, kInterrupt, pin, io_apic_id, pin);
  }
  // As connect_local_interrupts() of the KVM room has them: "virtual wire mode" (3.6.2.2).
  add_interrupt(entries, kLocalInterrupt, kExtInt, 0, kAllLocalApics, 0);
  add_interrupt(entries, kLocalInterrupt, kNmi, 0, kAllLocalApics, 1);
  const std::uint32_t entry_count = vcpu_count + 2 + kPins + 2;

  constexpr std::size_t kHeaderChecksum = 7;  // offset
  TableBytes table;                           // 4.2
  table.text("PCMP", 4);
  table.u16(kHeaderSize + entries.view().size());
  table.u8(kSpecificationRevision);
  table.u8(0);  // checksum, set below
  table.text("MAYFLY  ", 8);
  table.text("MICROVM     ", 12);
  table.u32(0);  // no table of the OEM's
  table.u16(0);
  table.u16(entry_count);
  table.u32(layout::kLocalApic);
  table.u16(0);  // no extended table
  table.u16(0);
  table.expect_offset(kHeaderSize);
  table.append(entries.view());
  table.set_checksum(kHeaderChecksum);

  constexpr std::size_t kPointerChecksum = 10;  // offset
  TableBytes whole;                             // 4.1
  whole.text("_MP_", 4);
  whole.u32(layout::kMpTable + kPointerSize);
  whole.u8(kPointerSize / 16);
  whole.u8(kSpecificationRevision);
  whole.u8(0);   // checksum, set below
  whole.u8(0);   // features 1: there is a configuration table
  whole.u32(0);  // features 2: virtual wire mode, no IMCR; the rest reserved
  whole.expect_offset(kPointerSize);
  whole.set_checksum(kPointerChecksum);
  whole.append(table.view());
  MAYFLY_CHECK(whole.view().size() <= layout::kMpTableMax, "the MP table fits its place");
  return std::move(whole).take();
}

Result<void> write_mp_table(std::uint32_t vcpu_count, GuestMemory& memory) {
  MAYFLY_TRY_ASSIGN(const std::vector<std::uint8_t> table, build_mp_table(vcpu_count));
  const auto written = memory.write(GuestAddress(layout::kMpTable), std::as_bytes(std::span(table)));
  if (!written) {
    return tl::make_unexpected(written.error().to_error().within("MP table"));
  }
  return {};
}

}  // namespace mayfly::x86_64
