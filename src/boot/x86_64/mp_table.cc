#include "boot/x86_64/mp_table.h"

#include <string>
#include <string_view>
#include <utility>

#include "base/check.h"
#include "boot/x86_64/layout.h"

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

// Little-endian fields, in the order of the specification.
class Writer {
 public:
  void u8(std::uint32_t value) { integer(value, 1); }
  void u16(std::uint32_t value) { integer(value, 2); }
  void u32(std::uint64_t value) { integer(value, 4); }
  void text(std::string_view ascii) {
    for (const char character : ascii) {
      bytes_.push_back(static_cast<std::byte>(character));
    }
  }
  void append(const Writer& other) { bytes_.insert(bytes_.end(), other.bytes_.begin(), other.bytes_.end()); }

  std::size_t size() const { return bytes_.size(); }
  std::vector<std::byte> bytes() && { return std::move(bytes_); }

  // Sets the byte at `offset`, 0 so far, to what makes all bytes add up to 0.
  void set_checksum(std::size_t offset) {
    std::uint32_t sum = 0;
    for (const std::byte byte : bytes_) {
      sum += std::to_integer<std::uint32_t>(byte);
    }
    bytes_[offset] = static_cast<std::byte>(0x100 - (sum & 0xff));
  }

 private:
  void integer(std::uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) {
      bytes_.push_back(static_cast<std::byte>(value >> (8 * i)));
    }
  }

  std::vector<std::byte> bytes_;
};

// 4.3.1. What a processor is, its CPUID says.
void add_processor(Writer& table, std::uint32_t index) {
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
void add_interrupt(Writer& table, std::uint8_t entry, std::uint32_t type, std::uint32_t line,
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

Result<std::vector<std::byte>> build_mp_table(std::uint32_t vcpu_count) {
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

  Writer entries;
  for (std::uint32_t index = 0; index < vcpu_count; ++index) {
    add_processor(entries, index);
  }
  entries.u8(kBus);
  entries.u8(kIsaBusId);
  entries.text("ISA   ");
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
  Writer table;                               // 4.2
  table.text("PCMP");
  table.u16(static_cast<std::uint32_t>(kHeaderSize + entries.size()));
  table.u8(kSpecificationRevision);
  table.u8(0);  // checksum, set below
  table.text("MAYFLY  ");
  table.text("MICROVM     ");
  table.u32(0);  // no table of the OEM's
  table.u16(0);
  table.u16(entry_count);
  table.u32(layout::kLocalApic);
  table.u16(0);  // no extended table
  table.u16(0);
  MAYFLY_CHECK(table.size() == kHeaderSize, "the header of an MP table");
  table.append(entries);
  table.set_checksum(kHeaderChecksum);

  constexpr std::size_t kPointerChecksum = 10;  // offset
  Writer whole;                                 // 4.1
  whole.text("_MP_");
  whole.u32(layout::kMpTable + kPointerSize);
  whole.u8(kPointerSize / 16);
  whole.u8(kSpecificationRevision);
  whole.u8(0);   // checksum, set below
  whole.u8(0);   // features 1: there is a configuration table
  whole.u32(0);  // features 2: virtual wire mode, no IMCR; the rest reserved
  MAYFLY_CHECK(whole.size() == kPointerSize, "the floating pointer structure");
  whole.set_checksum(kPointerChecksum);
  whole.append(table);
  MAYFLY_CHECK(whole.size() <= layout::kMpTableMax, "the MP table fits its place");
  return std::move(whole).bytes();
}

Result<void> write_mp_table(std::uint32_t vcpu_count, GuestMemory& memory) {
  MAYFLY_TRY_ASSIGN(const std::vector<std::byte> table, build_mp_table(vcpu_count));
  const auto written = memory.write(GuestAddress(layout::kMpTable), table);
  if (!written) {
    return tl::make_unexpected(written.error().to_error().within("MP table"));
  }
  return {};
}

}  // namespace mayfly::x86_64
