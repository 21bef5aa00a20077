// The ACPI tables by which a guest finds its processors, interrupts and devices.
//
// A hardware-reduced machine (ACPI 6.5, 4.1): RSDP, XSDT, FADT, MADT and DSDT, nothing else. Data in, bytes
// out: no KVM and no device is known here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/result.h"
#include "memory/guest_address.h"
#include "memory/guest_memory.h"

namespace mayfly::x86_64 {

// A virtio device on a window of its own, found by the guest as LNRO0005.
struct AcpiVirtioMmio {
  std::uint64_t base;  // below 4 GiB, as is the window's end
  std::uint64_t size;  // bytes
  std::uint32_t gsi;   // one rising edge an interrupt
};

// A 16550A with its eight ports.
struct AcpiSerial {
  std::uint16_t port;
  std::uint32_t gsi;
};

// The registers that end the guest (three byte-wide ports from `port` on: sleep control, sleep status,
// reset), the values that mean it, and the interrupt that asks the guest to do so.
struct AcpiPower {
  std::uint16_t port;
  std::uint8_t sleep_type_off;  // SLP_TYP of S5, 0..7
  std::uint8_t reset_value;
  std::uint32_t shutdown_gsi;
};

// The VM generation id: 16 bytes of RAM that the guest's memory map reserves, and the interrupt that tells of
// a change.
struct AcpiVmGenId {
  std::uint64_t address;  // a multiple of 8
  std::uint32_t gsi;
};

struct AcpiConfig {
  std::uint32_t vcpu_count = 1;  // 1..32; the local APIC of vCPU n has the ID n
  std::vector<AcpiVirtioMmio> virtio_mmio;
  std::optional<AcpiSerial> serial;
  AcpiPower power;
  std::optional<AcpiVmGenId> vm_gen_id;
};

// How many interrupts there are: the pins of the one I/O APIC, GSI n at pin n.
inline constexpr std::uint32_t kAcpiGsiCount = 24;

// The tables as one piece that is to stand at `rsdp` (16-byte aligned, its end below 4 GiB), the RSDP first.
// Errors: kInvalidArgument for a configuration that no tables can describe: it says which part of it.
Result<std::vector<std::byte>> build_acpi_tables(const AcpiConfig& config, GuestAddress rsdp);

// Where a processor of a PC in real mode finds its firmware's entry.
inline constexpr std::uint64_t kResetVector = 0xffff0;

// Builds the tables and writes them into the guest's system area (layout.h). The address of the RSDP is what
// a boot protocol hands to the guest.
//
// Puts a few instructions at kResetVector as well that write the reset register: on a hardware-reduced
// machine, a Linux that was built with EFI support resets by EFI instead of by the FADT's register, and where
// there is no EFI, by going to real mode and jumping there.
//
// Errors: as above; kOutOfRange where the area does not hold all of it or is not RAM.
Result<GuestAddress> write_acpi_tables(const AcpiConfig& config, GuestMemory& memory);

}  // namespace mayfly::x86_64
