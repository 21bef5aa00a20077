// Writes the ACPI tables of one machine into a directory, one file a table, as they stand in guest memory:
//   acpi_dump_tables VCPUS DEVICES DIRECTORY
// The RSDP goes to rsdp.dat, every other table to <signature in lower case>.dat.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "boot/x86_64/acpi/tables.h"
#include "boot/x86_64/layout.h"

namespace {

namespace layout = mayfly::x86_64::layout;

std::uint64_t integer(std::span<const char> bytes, std::size_t offset, std::size_t size) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < size; ++i) {
    value |= std::uint64_t{static_cast<std::uint8_t>(bytes[offset + i])} << (8 * i);
  }
  return value;
}

bool write_file(const std::filesystem::path& path, std::span<const char> bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file) {
    std::fprintf(stderr, "cannot write %s\n", path.c_str());
  }
  return !file.fail();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s VCPUS DEVICES DIRECTORY\n", argv[0]);
    return 2;
  }
  mayfly::x86_64::AcpiConfig config;
  config.vcpu_count = static_cast<std::uint32_t>(std::atoi(argv[1]));
  config.serial = mayfly::x86_64::AcpiSerial{.port = layout::kSerialPort, .gsi = layout::kSerialIrq};
  config.power = {.port = layout::kPowerPort,
                  .sleep_type_off = 5,
                  .reset_value = 1,
                  .shutdown_gsi = layout::kShutdownRequestGsi};
  config.vm_gen_id =
      mayfly::x86_64::AcpiVmGenId{.address = layout::kVmGenIdPage + 0x100, .gsi = layout::kVmGenIdGsi};
  for (std::uint32_t i = 0; i < static_cast<std::uint32_t>(std::atoi(argv[2])); ++i) {
    config.virtio_mmio.push_back({.base = layout::kVirtioMmioStart + i * layout::kVirtioMmioWindow,
                                  .size = layout::kVirtioMmioWindow,
                                  .gsi = layout::kVirtioFirstGsi + i});
  }
  const auto tables = build_acpi_tables(config, mayfly::GuestAddress(layout::kRsdp));
  if (!tables) {
    std::fprintf(stderr, "%s\n", tables.error().message().c_str());
    return 1;
  }
  std::vector<char> image;
  for (const std::byte byte : *tables) {
    image.push_back(static_cast<char>(byte));
  }
  const std::span<const char> bytes(image);
  const std::filesystem::path directory(argv[3]);

  constexpr std::size_t kRsdpLength = 36;
  constexpr std::size_t kXsdtPointer = 24;
  constexpr std::size_t kHeaderLength = 36;
  constexpr std::size_t kDsdtPointer = 140;
  bool ok = write_file(directory / "rsdp.dat", bytes.first(kRsdpLength));
  const auto write_table = [&](std::uint64_t address) {
    const std::size_t offset = address - layout::kRsdp;
    const auto table = bytes.subspan(offset, integer(bytes, offset + 4, 4));
    std::string name(table.begin(), table.begin() + 4);
    for (char& c : name) {
      c = static_cast<char>(std::tolower(c));
    }
    ok = write_file(directory / (name + ".dat"), table) && ok;
    return table;
  };
  const auto xsdt = write_table(integer(bytes, kXsdtPointer, 8));
  for (std::size_t entry = kHeaderLength; entry < xsdt.size(); entry += 8) {
    const auto table = write_table(integer(xsdt, entry, 8));
    if (table[0] == 'F') {
      write_table(integer(table, kDsdtPointer, 8));
    }
  }
  return ok ? 0 : 1;
}
