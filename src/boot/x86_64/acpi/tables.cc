#include "boot/x86_64/acpi/tables.h"

#include <algorithm>
#include <array>
#include <bitset>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "base/check.h"
#include "boot/x86_64/acpi/aml.h"
#include "boot/x86_64/layout.h"
#include "boot/x86_64/table_bytes.h"

// Section numbers are those of the ACPI specification 6.5.
namespace mayfly::x86_64 {
namespace {

constexpr std::string_view kOemId = "MAYFLY";         // six characters
constexpr std::string_view kOemTableId = "MAYFLYVM";  // eight
constexpr std::string_view kCreatorId = "MFLY";       // four
constexpr std::uint32_t kOemRevision = 1;
constexpr std::uint32_t kCreatorRevision = 1;
constexpr std::uint64_t kTableAlignment = 16;

// 5.2.3.2, Generic Address Structure: the address spaces.
constexpr std::uint8_t kSystemIo = 1;

class TableWriter : public TableBytes {
 public:
  // 5.2.6: the header that every table but the RSDP starts with.
  TableWriter(std::string_view signature, std::uint8_t revision) {
    text(signature, 4);
    u32(0);  // length, set by finish()
    u8(revision);
    u8(0);  // checksum, set by finish()
    text(kOemId, 6);
    text(kOemTableId, 8);
    u32(kOemRevision);
    text(kCreatorId, 4);
    u32(kCreatorRevision);
  }

  // A register of one byte in I/O space (5.2.3.2).
  void byte_register(std::uint16_t port) {
    constexpr std::uint8_t kByteAccess = 1;
    u8(kSystemIo);
    u8(8);  // bits
    u8(0);  // bit offset
    u8(kByteAccess);
    u64(port);
  }

  aml::Bytes finish() && {
    constexpr std::size_t kLengthOffset = 4;
    constexpr std::size_t kChecksumOffset = 9;
    set_u32(kLengthOffset, view().size());
    set_checksum(kChecksumOffset);
    return std::move(*this).take();
  }
};

std::string two_digits(std::string_view prefix, std::size_t number) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  MAYFLY_CHECK(number <= 0xff, "a number of two hexadecimal digits");
  return std::string(prefix) + kDigits[number >> 4] + kDigits[number & 0xf];
}

Result<void> check(const AcpiConfig& config) {
  const auto refuse = [](const std::string& why) {
    return fail(ErrorCode::kInvalidArgument, "ACPI tables: " + why);
  };
  if (config.vcpu_count < 1 || config.vcpu_count > layout::kMaxVcpus) {
    return refuse(std::to_string(config.vcpu_count) + " vCPUs; there can be 1 to " +
                  std::to_string(layout::kMaxVcpus));
  }
  if (config.power.sleep_type_off > 7) {
    return refuse("a sleep type has three bits");
  }
  if (config.power.port > 0x10000 - 3 || (config.serial && config.serial->port > 0x10000 - 8)) {
    return refuse("ports beyond 0xffff");
  }
  std::bitset<kAcpiGsiCount> taken;
  const auto take = [&](std::uint32_t gsi, const std::string& by) -> Result<void> {
    if (gsi >= kAcpiGsiCount) {
      return refuse(by + " has GSI " + std::to_string(gsi) + "; the last one is " +
                    std::to_string(kAcpiGsiCount - 1));
    }
    if (taken[gsi]) {
      return refuse(by + " has GSI " + std::to_string(gsi) + ", which another device has");
    }
    taken.set(gsi);
    return {};
  };
  MAYFLY_TRY(take(config.power.shutdown_gsi, "the shutdown request"));
  if (config.serial) {
    MAYFLY_TRY(take(config.serial->gsi, "the serial port"));
  }
  if (config.vm_gen_id) {
    MAYFLY_TRY(take(config.vm_gen_id->gsi, "the VM generation id"));
    if (!GuestAddress(config.vm_gen_id->address).is_aligned(8)) {
      return refuse("the VM generation id's address is no multiple of 8");
    }
  }
  std::vector<GuestRange> windows;
  for (const AcpiVirtioMmio& device : config.virtio_mmio) {
    MAYFLY_TRY(take(device.gsi, "a virtio device"));
    const auto window = GuestRange::make(GuestAddress(device.base), device.size);
    if (!window || window->last().value() > 0xffffffff) {
      return refuse("a virtio device's window is empty or does not end below 4 GiB");
    }
    if (std::any_of(windows.begin(), windows.end(),
                    [&](const GuestRange& other) { return other.overlaps(*window); })) {
      return refuse("the windows of two virtio devices overlap");
    }
    windows.push_back(*window);
  }
  return {};
}

constexpr std::string_view kVmGenId = "VGEN";  // in \_SB

// Microsoft, "Virtual Machine Generation ID": the device is found by _CID and _DDN, its _HID is the
// platform's own; ADDR gives the lower and the upper half of the id's address.
aml::Bytes make_vm_gen_id(std::uint64_t address) {
  constexpr std::string_view kCompatible = "VM_Gen_Counter";
  return aml::device(kVmGenId, aml::join({
                                   aml::name("_HID", aml::string("MFLY0001")),
                                   aml::name("_CID", aml::string(kCompatible)),
                                   aml::name("_DDN", aml::string(kCompatible)),
                                   aml::name("ADDR", aml::package({
                                                         aml::integer(address & 0xffffffff),
                                                         aml::integer(address >> 32),
                                                     })),
                               }));
}

// 5.2.11.1, Differentiated System Description Table: the devices.
aml::Bytes make_dsdt(const AcpiConfig& config) {
  aml::Bytes devices;
  const auto add = [&](const aml::Bytes& term) { devices.insert(devices.end(), term.begin(), term.end()); };

  // 8.4: a processor is a device whose _UID is the processor UID of its local APIC in the MADT.
  for (std::uint32_t cpu = 0; cpu < config.vcpu_count; ++cpu) {
    add(aml::device(two_digits("CP", cpu), aml::join({
                                               aml::name("_HID", aml::string("ACPI0007")),
                                               aml::name("_UID", aml::integer(cpu)),
                                           })));
  }
  if (config.serial) {
    // An extended interrupt, not the IRQ of an ISA device: there are no ISA interrupts without a PIC, and a
    // GSI needs no override to be found.
    add(aml::device("COM1", aml::join({
                                aml::name("_HID", aml::eisa_id("PNP0501")),
                                aml::name("_UID", aml::integer(0)),
                                aml::name("_CRS", aml::resource_template({
                                                      aml::io_ports(config.serial->port, 8),
                                                      aml::edge_interrupt(config.serial->gsi),
                                                  })),
                            })));
  }
  for (std::size_t i = 0; i < config.virtio_mmio.size(); ++i) {
    const AcpiVirtioMmio& device = config.virtio_mmio[i];
    add(aml::device(two_digits("VM", i),
                    aml::join({
                        aml::name("_HID", aml::string("LNRO0005")),
                        aml::name("_UID", aml::integer(i)),
                        // 6.2.17: what the device reads and writes is coherent with the processors' caches.
                        aml::name("_CCA", aml::integer(1)),
                        // Both halves fit: the window ends below 4 GiB.
                        aml::name("_CRS", aml::resource_template({
                                              aml::memory32_fixed(static_cast<std::uint32_t>(device.base),
                                                                  static_cast<std::uint32_t>(device.size)),
                                              aml::edge_interrupt(device.gsi),
                                          })),
                    })));
  }
  // A generic event device (5.6.9): each of its interrupts is an event, and _EVT's argument says which.
  // 6.3.5.1: a request to shut down gracefully. No power button beside it: a guest that heard of both would
  // be told twice, and what it makes of a button is not always its end.
  constexpr std::uint64_t kShutdownRequest = 0x81;
  aml::Bytes events = aml::edge_interrupt(config.power.shutdown_gsi);
  aml::Bytes handlers = aml::if_equal(aml::argument(0), aml::integer(config.power.shutdown_gsi),
                                      aml::notify("\\_SB_", kShutdownRequest));
  if (config.vm_gen_id) {
    add(make_vm_gen_id(config.vm_gen_id->address));
    constexpr std::uint64_t kGenerationChanged = 0x80;
    events = aml::join({events, aml::edge_interrupt(config.vm_gen_id->gsi)});
    handlers = aml::join({handlers, aml::if_equal(aml::argument(0), aml::integer(config.vm_gen_id->gsi),
                                                  aml::notify(kVmGenId, kGenerationChanged))});
  }
  add(aml::device("GED_", aml::join({
                              aml::name("_HID", aml::string("ACPI0013")),
                              aml::name("_UID", aml::integer(0)),
                              aml::name("_CRS", aml::resource_template({events})),
                              aml::method("_EVT", 1, handlers),
                          })));

  // Revision 2: integers have 64 bits.
  TableWriter table("DSDT", 2);
  // 7.4.2: of the package's integers a hardware-reduced machine has use for the first: SLP_TYP.
  table.append(aml::name("\\_S5_", aml::package({aml::integer(config.power.sleep_type_off), aml::integer(0),
                                                 aml::integer(0), aml::integer(0)})));
  table.append(aml::scope("\\_SB_", devices));
  return std::move(table).finish();
}

// 5.2.9, Fixed ACPI Description Table. The fields of fixed hardware (SCI, PM1, timer, GPE blocks) are 0: a
// hardware-reduced machine has none, and an operating system ignores them (4.1, 5.2.9).
aml::Bytes make_fadt(const AcpiConfig& config, std::uint32_t dsdt) {
  // 5.2.9.3, IA-PC boot architecture flags. Bit 1 (8042) and bit 0 (legacy devices) stay clear.
  constexpr std::uint16_t kVgaNotPresent = 1U << 2;
  constexpr std::uint16_t kCmosRtcNotPresent = 1U << 5;
  // Table 5.10, fixed feature flags.
  constexpr std::uint32_t kWbinvd = 1U << 0;
  constexpr std::uint32_t kProcC1 = 1U << 2;
  constexpr std::uint32_t kPwrButton = 1U << 4;  // no fixed power button
  constexpr std::uint32_t kSlpButton = 1U << 5;  // no fixed sleep button either
  constexpr std::uint32_t kFixRtc = 1U << 6;     // no fixed RTC wake status
  constexpr std::uint32_t kResetRegSup = 1U << 10;
  constexpr std::uint32_t kHeadless = 1U << 12;
  constexpr std::uint32_t kHwReducedAcpi = 1U << 20;
  constexpr std::uint8_t kEnterpriseServer = 4;
  constexpr std::uint8_t kMajorVersion = 6;
  constexpr std::uint8_t kMinorVersion = 5;

  TableWriter table("FACP", kMajorVersion);
  table.u32(0);  // FIRMWARE_CTRL: with X_FIRMWARE_CTRL 0 as well, a hardware-reduced machine has no FACS
  table.u32(dsdt);
  table.u8(0);
  table.u8(kEnterpriseServer);  // Preferred_PM_Profile
  table.zeros(109 - 46);        // SCI_INT to CENTURY
  table.expect_offset(109);
  table.u16(kVgaNotPresent | kCmosRtcNotPresent);
  table.u8(0);
  table.u32(kWbinvd | kProcC1 | kPwrButton | kSlpButton | kFixRtc | kResetRegSup | kHeadless |
            kHwReducedAcpi);
  table.expect_offset(116);
  table.byte_register(static_cast<std::uint16_t>(config.power.port + 2));  // RESET_REG
  table.u8(config.power.reset_value);
  table.u16(0);  // ARM_BOOT_ARCH
  table.u8(kMinorVersion);
  table.u64(0);  // X_FIRMWARE_CTRL
  table.u64(dsdt);
  table.zeros(244 - 148);  // X_PM1a_EVT_BLK to X_GPE1_BLK
  table.expect_offset(244);
  table.byte_register(config.power.port);                                  // SLEEP_CONTROL_REG
  table.byte_register(static_cast<std::uint16_t>(config.power.port + 1));  // SLEEP_STATUS_REG
  table.text("MAYFLY", 8);                                                 // hypervisor vendor identity
  table.expect_offset(276);
  return std::move(table).finish();
}

// 5.2.12, Multiple APIC Description Table. No interrupt source overrides: GSI n is pin n of the I/O APIC,
// also for n below 16, and no device here is described by an ISA interrupt. No PCAT_COMPAT: the guest is to
// take its interrupts from the I/O APIC alone.
aml::Bytes make_madt(const AcpiConfig& config) {
  constexpr std::uint8_t kRevision = 6;
  constexpr std::uint8_t kProcessorLocalApic = 0;  // 5.2.12.2
  constexpr std::uint8_t kIoApic = 1;              // 5.2.12.3
  constexpr std::uint32_t kEnabled = 1;
  constexpr std::uint8_t kIoApicId = 0;  // what KVM's I/O APIC has in its ID register

  TableWriter table("APIC", kRevision);
  table.u32(static_cast<std::uint32_t>(layout::kLocalApic));
  table.u32(0);  // flags
  for (std::uint32_t cpu = 0; cpu < config.vcpu_count; ++cpu) {
    table.u8(kProcessorLocalApic);
    table.u8(8);                               // length
    table.u8(static_cast<std::uint8_t>(cpu));  // processor UID, as in the DSDT
    table.u8(static_cast<std::uint8_t>(cpu));  // local APIC ID
    table.u32(kEnabled);
  }
  table.u8(kIoApic);
  table.u8(12);  // length
  table.u8(kIoApicId);
  table.u8(0);
  table.u32(static_cast<std::uint32_t>(layout::kIoApic));
  table.u32(0);  // first GSI
  return std::move(table).finish();
}

// 5.2.8, Extended System Description Table.
aml::Bytes make_xsdt(std::span<const std::uint64_t> tables) {
  TableWriter table("XSDT", 1);
  for (const std::uint64_t address : tables) {
    table.u64(address);
  }
  return std::move(table).finish();
}

// 5.2.5.3, Root System Description Pointer, with a checksum over its first part, as ACPI 1.0 knew it, and one
// over all of it.
constexpr std::size_t kRsdpLength = 36;

aml::Bytes make_rsdp(std::uint64_t xsdt) {
  constexpr std::string_view kSignature = "RSD PTR ";
  constexpr std::size_t kChecksumOffset = 8;
  constexpr std::size_t kOemIdOffset = 9;
  constexpr std::size_t kRevisionOffset = 15;
  constexpr std::size_t kFirstPartLength = 20;
  constexpr std::size_t kLengthOffset = 20;
  constexpr std::size_t kXsdtOffset = 24;
  constexpr std::size_t kExtendedChecksumOffset = 32;

  aml::Bytes rsdp(kRsdpLength);
  const auto at = [&](std::size_t offset) { return rsdp.begin() + static_cast<std::ptrdiff_t>(offset); };
  std::copy(kSignature.begin(), kSignature.end(), at(0));
  std::copy(kOemId.begin(), kOemId.end(), at(kOemIdOffset));
  rsdp[kRevisionOffset] = 2;
  rsdp[kLengthOffset] = kRsdpLength;
  for (std::size_t i = 0; i < 8; ++i) {
    rsdp[kXsdtOffset + i] = static_cast<std::uint8_t>(xsdt >> (8 * i));
  }
  rsdp[kChecksumOffset] = TableBytes::checksum(std::span(rsdp).first(kFirstPartLength));
  rsdp[kExtendedChecksumOffset] = TableBytes::checksum(rsdp);
  return rsdp;
}

// Real-mode code: write the reset register, and wait for what comes of it.
std::array<std::byte, 9> reset_code(const AcpiPower& power) {
  const auto port = static_cast<std::uint16_t>(power.port + 2);
  return {
      std::byte{0xba},      std::byte(port & 0xff),
      std::byte(port >> 8),                                // mov dx, port
      std::byte{0xb0},      std::byte{power.reset_value},  // mov al, value
      std::byte{0xee},                                     // out dx, al
      std::byte{0xf4},                                     // halt: hlt
      std::byte{0xeb},      std::byte{0xfd},               // jmp halt
  };
}

}  // namespace

Result<std::vector<std::byte>> build_acpi_tables(const AcpiConfig& config, GuestAddress rsdp) {
  MAYFLY_TRY(check(config));
  // Well below 4 GiB, so that none of the sums below can wrap or pass it: all tables together have some
  // kilobytes.
  constexpr std::uint64_t kHighestBase = 0xff000000;
  if (!rsdp.is_aligned(kTableAlignment) || rsdp.value() > kHighestBase) {
    return fail(ErrorCode::kInvalidArgument, "ACPI tables: the RSDP's address is not aligned or too high");
  }
  aml::Bytes image(kRsdpLength);  // set last
  const auto place = [&](const aml::Bytes& table) {
    image.resize((image.size() + kTableAlignment - 1) & ~(kTableAlignment - 1));
    const std::uint64_t address = rsdp.value() + image.size();
    image.insert(image.end(), table.begin(), table.end());
    return address;
  };
  const std::uint64_t dsdt = place(make_dsdt(config));
  const std::array<std::uint64_t, 2> listed = {
      place(make_fadt(config, static_cast<std::uint32_t>(dsdt))),
      place(make_madt(config)),
  };
  const aml::Bytes pointer = make_rsdp(place(make_xsdt(listed)));
  std::copy(pointer.begin(), pointer.end(), image.begin());

  std::vector<std::byte> bytes(image.size());
  std::transform(image.begin(), image.end(), bytes.begin(),
                 [](std::uint8_t byte) { return std::byte{byte}; });
  return bytes;
}

Result<GuestAddress> write_acpi_tables(const AcpiConfig& config, GuestMemory& memory) {
  constexpr GuestAddress kRsdp(layout::kRsdp);
  MAYFLY_TRY_ASSIGN(const std::vector<std::byte> tables, build_acpi_tables(config, kRsdp));
  if (tables.size() > kResetVector - layout::kRsdp) {
    return fail(ErrorCode::kOutOfRange,
                "ACPI tables: " + std::to_string(tables.size()) + " bytes do not fit the system area");
  }
  auto written = memory.write(kRsdp, tables);
  if (written) {
    written = memory.write(GuestAddress(kResetVector), reset_code(config.power));
  }
  if (!written) {
    return tl::make_unexpected(written.error().to_error().within("ACPI tables"));
  }
  return kRsdp;
}

}  // namespace mayfly::x86_64
