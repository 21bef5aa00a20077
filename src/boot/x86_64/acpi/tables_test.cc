#include "boot/x86_64/acpi/tables.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <span>
#include <stdexcept>
#include <string>

#include "boot/x86_64/layout.h"

namespace mayfly::x86_64 {
namespace {

using Bytes = std::vector<std::uint8_t>;

AcpiConfig config_of(std::uint32_t vcpus, std::uint32_t devices) {
  AcpiConfig config;
  config.vcpu_count = vcpus;
  config.serial = AcpiSerial{.port = 0x3f8, .gsi = 4};
  config.power = {.port = 0x600, .sleep_type_off = 5, .reset_value = 1, .shutdown_gsi = 5};
  config.vm_gen_id = AcpiVmGenId{.address = 0xdf100, .gsi = 3};
  for (std::uint32_t i = 0; i < devices; ++i) {
    config.virtio_mmio.push_back(
        {.base = 0xc0001000 + std::uint64_t{i} * 0x1000, .size = 0x1000, .gsi = 6 + i});
  }
  return config;
}

// Reads tables the way an operating system does, from addresses; knows nothing of how they were written.
// Every check of a read is a test failure with an exception, which ends the case.
class Reader {
 public:
  Reader(const std::vector<std::byte>& image, std::uint64_t base) : base_(base) {
    for (const std::byte byte : image) {
      image_.push_back(static_cast<std::uint8_t>(byte));
    }
  }

  Bytes bytes(std::uint64_t address, std::size_t length) const {
    if (address < base_ || address - base_ > image_.size() || length > image_.size() - (address - base_)) {
      throw std::out_of_range("a pointer leads out of the tables");
    }
    const auto from = image_.begin() + static_cast<std::ptrdiff_t>(address - base_);
    return Bytes(from, from + static_cast<std::ptrdiff_t>(length));
  }

  Bytes table(std::uint64_t address, const std::string& signature) const {
    const Bytes header = bytes(address, 36);
    EXPECT_EQ(std::string(header.begin(), header.begin() + 4), signature);
    const auto length = integer(header, 4, 4);
    EXPECT_GE(length, 36U);
    Bytes whole = bytes(address, length);
    EXPECT_EQ(sum(whole), 0) << signature << ": checksum";
    EXPECT_EQ(std::string(whole.begin() + 10, whole.begin() + 16), "MAYFLY");
    return whole;
  }

  static std::uint64_t integer(const Bytes& bytes, std::size_t offset, std::size_t size) {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < size; ++i) {
      value |= std::uint64_t{bytes.at(offset + i)} << (8 * i);
    }
    return value;
  }
  static std::uint8_t sum(const Bytes& bytes) {
    std::uint32_t total = 0;
    for (const std::uint8_t byte : bytes) {
      total += byte;
    }
    return static_cast<std::uint8_t>(total);
  }

 private:
  std::uint64_t base_;
  Bytes image_;
};

struct Tables {
  Bytes rsdp, xsdt, fadt, madt, dsdt;
};

Tables read_tables(const Reader& reader, std::uint64_t rsdp_address) {
  Tables tables;
  tables.rsdp = reader.bytes(rsdp_address, 36);
  EXPECT_EQ(std::memcmp(tables.rsdp.data(), "RSD PTR ", 8), 0);
  EXPECT_EQ(Reader::sum(Bytes(tables.rsdp.begin(), tables.rsdp.begin() + 20)), 0);
  EXPECT_EQ(Reader::sum(tables.rsdp), 0);
  EXPECT_EQ(tables.rsdp[15], 2) << "revision";
  EXPECT_EQ(Reader::integer(tables.rsdp, 16, 4), 0U) << "there is no RSDT";
  EXPECT_EQ(Reader::integer(tables.rsdp, 20, 4), 36U);
  tables.xsdt = reader.table(Reader::integer(tables.rsdp, 24, 8), "XSDT");
  EXPECT_EQ(tables.xsdt.size(), 36U + 2 * 8);
  tables.fadt = reader.table(Reader::integer(tables.xsdt, 36, 8), "FACP");
  tables.madt = reader.table(Reader::integer(tables.xsdt, 44, 8), "APIC");
  EXPECT_EQ(Reader::integer(tables.fadt, 40, 4), Reader::integer(tables.fadt, 140, 8)) << "DSDT and X_DSDT";
  tables.dsdt = reader.table(Reader::integer(tables.fadt, 140, 8), "DSDT");
  return tables;
}

Tables build(const AcpiConfig& config) {
  const auto image = build_acpi_tables(config, GuestAddress(0xe0000));
  EXPECT_TRUE(image) << image.error().message();
  return read_tables(Reader(*image, 0xe0000), 0xe0000);
}

// A decoder of the AML that such tables hold, from the grammar in ACPI 6.5, 20.2: every package's length must
// end exactly where its terms do.
struct Object {
  std::map<std::string, Bytes> names;  // Name() objects: the encoded value
  std::map<std::string, Bytes> methods;
};

class AmlDecoder {
 public:
  explicit AmlDecoder(Bytes aml) : aml_(std::move(aml)) { terms(0, aml_.size(), ""); }
  std::map<std::string, Object> objects;  // by path: "" is the root

 private:
  std::uint8_t at(std::size_t offset) const { return aml_.at(offset); }

  // The end of the package whose length field is at `offset`, which is moved behind the field.
  std::size_t package_end(std::size_t& offset, std::size_t limit) {
    const std::size_t start = offset;
    const std::size_t following = at(offset) >> 6;
    std::size_t length = following == 0 ? at(offset) & 0x3fU : at(offset) & 0x0fU;
    for (std::size_t i = 1; i <= following; ++i) {
      length |= std::size_t{at(offset + i)} << (8 * i - 4);
    }
    offset += 1 + following;
    if (length < 1 + following || start + length > limit) {
      throw std::out_of_range("a package that does not end within the one around it");
    }
    return start + length;
  }

  std::string name(std::size_t& offset) {
    std::string path;
    if (at(offset) == '\\') {
      path = "\\";
      ++offset;
    }
    for (int i = 0; i < 4; ++i) {
      path += static_cast<char>(at(offset++));
    }
    return path;
  }

  Bytes data(std::size_t& offset, std::size_t limit) {
    const std::size_t start = offset;
    const std::uint8_t opcode = at(offset++);
    switch (opcode) {
      case 0x00:
      case 0x01:
        break;
      case 0x0a:
        offset += 1;
        break;
      case 0x0b:
        offset += 2;
        break;
      case 0x0c:
        offset += 4;
        break;
      case 0x0e:
        offset += 8;
        break;
      case 0x0d:
        while (at(offset++) != 0) {
        }
        break;
      case 0x11:    // buffer
      case 0x12: {  // package
        const std::size_t end = package_end(offset, limit);
        if (opcode == 0x11) {
          const Bytes size = data(offset, end);
          EXPECT_EQ(number(size), end - offset) << "a buffer's size and its bytes";
          offset = end;
        } else {
          for (int left = at(offset++); left > 0; --left) {
            data(offset, end);
          }
        }
        EXPECT_EQ(offset, end);
        break;
      }
      default:
        throw std::runtime_error("an opcode that no data starts with");
    }
    if (offset > limit) {
      throw std::out_of_range("data past the end of its package");
    }
    return Bytes(aml_.begin() + static_cast<std::ptrdiff_t>(start),
                 aml_.begin() + static_cast<std::ptrdiff_t>(offset));
  }

  void terms(std::size_t offset, std::size_t end, const std::string& path) {
    while (offset < end) {
      const std::uint8_t opcode = at(offset++);
      if (opcode == 0x08) {
        const std::string object = name(offset);
        const bool rooted = object[0] == '\\';
        auto& names = objects[rooted ? "" : path].names;
        EXPECT_TRUE(names.emplace(rooted ? object.substr(1) : object, data(offset, end)).second);
      } else if (opcode == 0x10) {
        const std::size_t inner = package_end(offset, end);
        const std::string scope = name(offset);
        terms(offset, inner, scope);
        offset = inner;
      } else if (opcode == 0x14) {
        const std::size_t inner = package_end(offset, end);
        const std::string method = name(offset);
        objects[path].methods[method] = Bytes(aml_.begin() + static_cast<std::ptrdiff_t>(offset),
                                              aml_.begin() + static_cast<std::ptrdiff_t>(inner));
        offset = inner;
      } else if (opcode == 0x5b && at(offset++) == 0x82) {
        const std::size_t inner = package_end(offset, end);
        const std::string device = path + "." + name(offset);
        EXPECT_FALSE(objects.contains(device)) << device << " is there twice";
        objects[device];
        terms(offset, inner, device);
        offset = inner;
      } else {
        throw std::runtime_error("an opcode that no term here starts with");
      }
    }
    EXPECT_EQ(offset, end) << path;
  }

 public:
  static std::uint64_t number(const Bytes& data) {
    return data.at(0) <= 1 ? data[0] : Reader::integer(data, 1, data.size() - 1);
  }

 private:
  Bytes aml_;
};

AmlDecoder decode(const Tables& tables) {
  return AmlDecoder(Bytes(tables.dsdt.begin() + 36, tables.dsdt.end()));
}

Bytes string_data(const std::string& text) {
  const std::string encoded = '\x0d' + text + '\0';
  return Bytes(encoded.begin(), encoded.end());
}

// The resource descriptors in a _CRS buffer: type and contents; the end tag left out.
std::vector<std::pair<int, Bytes>> descriptors(const Bytes& buffer) {
  // BufferOp, a length of one or two bytes, a byte constant, then the descriptors.
  std::size_t offset = 1;
  offset += std::size_t{1} + (buffer.at(offset) >> 6);
  offset += buffer.at(offset) <= 1 ? 1U : 2U;
  std::vector<std::pair<int, Bytes>> found;
  for (;;) {
    const std::uint8_t tag = buffer.at(offset++);
    std::size_t length = tag & 7U;
    if ((tag & 0x80) != 0) {
      length = Reader::integer(buffer, offset, 2);
      offset += 2;
    }
    if (tag == 0x79) {
      EXPECT_EQ(offset + length, buffer.size()) << "the end tag is last";
      return found;
    }
    found.emplace_back(tag, Bytes(buffer.begin() + static_cast<std::ptrdiff_t>(offset),
                                  buffer.begin() + static_cast<std::ptrdiff_t>(offset + length)));
    offset += length;
  }
}

TEST(AcpiTables, every_machine_has_whole_tables_within_the_system_area) {
  for (std::uint32_t vcpus = 1; vcpus <= 32; ++vcpus) {
    for (std::uint32_t devices = 0; devices <= 18; ++devices) {
      const AcpiConfig config = config_of(vcpus, devices);
      const auto image = build_acpi_tables(config, GuestAddress(layout::kRsdp));
      ASSERT_TRUE(image) << image.error().message();
      ASSERT_LE(image->size(), layout::kSystemAreaEnd - layout::kRsdp);
      const Tables tables = read_tables(Reader(*image, layout::kRsdp), layout::kRsdp);
      ASSERT_EQ(tables.madt.size(), 44U + 8 * vcpus + 12);
      const AmlDecoder aml = decode(tables);
      ASSERT_EQ(aml.objects.size(), 1 + vcpus + devices + 3);  // the root; COM1, VGEN, GED_
    }
  }
}

TEST(AcpiTables, tables_do_not_depend_on_where_they_stand_but_for_their_pointers) {
  const Tables low = build(config_of(2, 3));
  const auto image = build_acpi_tables(config_of(2, 3), GuestAddress(0x7f000000));
  ASSERT_TRUE(image);
  const Tables high = read_tables(Reader(*image, 0x7f000000), 0x7f000000);
  EXPECT_EQ(high.dsdt, low.dsdt);
  EXPECT_EQ(high.madt, low.madt);
  EXPECT_NE(high.fadt, low.fadt);
}

TEST(AcpiTables, fadt_describes_a_hardware_reduced_machine_without_legacy_devices) {
  const Tables tables = build(config_of(1, 0));
  const Bytes& fadt = tables.fadt;
  ASSERT_EQ(fadt.size(), 276U);
  EXPECT_EQ(fadt[8], 6) << "revision";
  EXPECT_EQ(Reader::integer(fadt, 36, 4), 0U) << "FIRMWARE_CTRL";
  EXPECT_EQ(Reader::integer(fadt, 132, 8), 0U) << "X_FIRMWARE_CTRL";
  const auto boot_flags = Reader::integer(fadt, 109, 2);
  EXPECT_EQ(boot_flags & 1U << 1, 0U) << "8042";
  EXPECT_NE(boot_flags & 1U << 2, 0U) << "VGA not present";
  EXPECT_NE(boot_flags & 1U << 5, 0U) << "CMOS RTC not present";
  const auto flags = Reader::integer(fadt, 112, 4);
  EXPECT_NE(flags & 1U << 0, 0U) << "WBINVD";
  EXPECT_NE(flags & 1U << 4, 0U) << "no fixed power button";
  EXPECT_NE(flags & 1U << 5, 0U) << "no fixed sleep button";
  EXPECT_NE(flags & 1U << 10, 0U) << "RESET_REG_SUP";
  EXPECT_NE(flags & 1U << 20, 0U) << "HW_REDUCED_ACPI";
  for (std::size_t offset = 46; offset < 109; ++offset) {
    EXPECT_EQ(fadt[offset], 0) << "fixed hardware at " << offset;
  }
  for (std::size_t offset = 148; offset < 244; ++offset) {
    EXPECT_EQ(fadt[offset], 0) << "fixed hardware at " << offset;
  }
}

TEST(AcpiTables, fadt_registers_are_bytes_at_the_power_ports) {
  AcpiConfig config = config_of(1, 0);
  config.power = {.port = 0x1234, .sleep_type_off = 7, .reset_value = 0xab, .shutdown_gsi = 9};
  const Tables tables = build(config);
  struct {
    std::size_t offset;
    std::uint64_t port;
  } const registers[] = {{116, 0x1236}, {244, 0x1234}, {256, 0x1235}};
  for (const auto& gas : registers) {
    const Bytes expected{1, 8, 0, 1};  // I/O space, 8 bits from bit 0 on, byte access
    EXPECT_EQ(Bytes(tables.fadt.begin() + static_cast<std::ptrdiff_t>(gas.offset),
                    tables.fadt.begin() + static_cast<std::ptrdiff_t>(gas.offset + 4)),
              expected);
    EXPECT_EQ(Reader::integer(tables.fadt, gas.offset + 4, 8), gas.port);
  }
  EXPECT_EQ(tables.fadt[128], 0xab) << "RESET_VALUE";
  const Bytes s5{0x12, 0x07, 0x04, 0x0a, 0x07, 0x00, 0x00, 0x00};
  EXPECT_EQ(decode(tables).objects[""].names["_S5_"], s5);
}

TEST(AcpiTables, madt_lists_each_processor_and_one_io_apic) {
  for (const std::uint32_t vcpus : {1U, 2U, 32U}) {
    const Tables tables = build(config_of(vcpus, 1));
    const Bytes& madt = tables.madt;
    EXPECT_EQ(Reader::integer(madt, 36, 4), 0xfee00000U);
    EXPECT_EQ(Reader::integer(madt, 40, 4), 0U) << "no 8259 to look after";
    std::uint32_t processors = 0;
    std::uint32_t io_apics = 0;
    for (std::size_t offset = 44; offset < madt.size(); offset += madt.at(offset + 1)) {
      ASSERT_GE(madt.at(offset + 1), 2);
      if (madt[offset] == 0) {
        EXPECT_EQ(madt[offset + 1], 8);
        EXPECT_EQ(madt[offset + 2], processors) << "processor UID";
        EXPECT_EQ(madt[offset + 3], processors) << "local APIC ID";
        EXPECT_EQ(Reader::integer(madt, offset + 4, 4), 1U) << "enabled";
        ++processors;
      } else {
        EXPECT_EQ(madt[offset], 1);
        EXPECT_EQ(madt[offset + 1], 12);
        EXPECT_EQ(Reader::integer(madt, offset + 4, 4), 0xfec00000U);
        EXPECT_EQ(Reader::integer(madt, offset + 8, 4), 0U) << "first GSI";
        ++io_apics;
      }
    }
    EXPECT_EQ(processors, vcpus);
    EXPECT_EQ(io_apics, 1U);
  }
}

TEST(AcpiTables, dsdt_has_a_device_for_each_processor_of_the_madt) {
  AmlDecoder aml = decode(build(config_of(32, 0)));
  std::vector<std::uint64_t> uids;
  for (auto& [path, object] : aml.objects) {
    if (object.names.contains("_HID") && object.names["_HID"] == string_data("ACPI0007")) {
      uids.push_back(AmlDecoder::number(object.names.at("_UID")));
      EXPECT_TRUE(path.starts_with("\\_SB_.")) << path;
    }
  }
  std::sort(uids.begin(), uids.end());
  ASSERT_EQ(uids.size(), 32U);
  for (std::size_t i = 0; i < uids.size(); ++i) {
    EXPECT_EQ(uids[i], i);
  }
}

TEST(AcpiTables, dsdt_gives_each_virtio_device_its_window_and_interrupt) {
  const AcpiConfig config = config_of(1, 16);
  AmlDecoder aml = decode(build(config));
  std::size_t found = 0;
  for (auto& [path, object] : aml.objects) {
    if (!object.names.contains("_HID") || object.names["_HID"] != string_data("LNRO0005")) {
      continue;
    }
    ++found;
    const AcpiVirtioMmio& device = config.virtio_mmio.at(AmlDecoder::number(object.names.at("_UID")));
    EXPECT_EQ(AmlDecoder::number(object.names.at("_CCA")), 1U);
    const auto resources = descriptors(object.names.at("_CRS"));
    ASSERT_EQ(resources.size(), 2U) << path;
    EXPECT_EQ(resources[0].first, 0x86);
    EXPECT_EQ(resources[0].second.at(0), 1) << "read-write";
    EXPECT_EQ(Reader::integer(resources[0].second, 1, 4), device.base);
    EXPECT_EQ(Reader::integer(resources[0].second, 5, 4), device.size);
    EXPECT_EQ(resources[1].first, 0x89);
    EXPECT_EQ(resources[1].second.at(0), 0x03) << "consumer, edge, active high, exclusive";
    EXPECT_EQ(resources[1].second.at(1), 1) << "one interrupt";
    EXPECT_EQ(Reader::integer(resources[1].second, 2, 4), device.gsi);
  }
  EXPECT_EQ(found, 16U);
}

TEST(AcpiTables, dsdt_has_the_serial_port_only_where_there_is_one) {
  AcpiConfig config = config_of(1, 0);
  AmlDecoder with = decode(build(config));
  const auto resources = descriptors(with.objects.at("\\_SB_.COM1").names.at("_CRS"));
  ASSERT_EQ(resources.size(), 2U);
  EXPECT_EQ(resources[0], (std::pair<int, Bytes>{0x47, {0x01, 0xf8, 0x03, 0xf8, 0x03, 0x01, 0x08}}));
  EXPECT_EQ(Reader::integer(resources[1].second, 2, 4), 4U);
  EXPECT_EQ(with.objects.at("\\_SB_.COM1").names.at("_HID"), (Bytes{0x0c, 0x41, 0xd0, 0x05, 0x01}));
  config.serial.reset();
  EXPECT_FALSE(decode(build(config)).objects.contains("\\_SB_.COM1"));
}

TEST(AcpiTables, a_graceful_shutdown_is_requested_by_its_interrupt_and_no_other) {
  AcpiConfig config = config_of(1, 0);
  config.vm_gen_id.reset();
  AmlDecoder aml = decode(build(config));
  EXPECT_FALSE(aml.objects.contains("\\_SB_.VGEN"));
  const Object& ged = aml.objects.at("\\_SB_.GED_");
  EXPECT_EQ(ged.names.at("_HID"), string_data("ACPI0013"));
  const auto resources = descriptors(ged.names.at("_CRS"));
  ASSERT_EQ(resources.size(), 1U);
  EXPECT_EQ(Reader::integer(resources[0].second, 2, 4), 5U);
  // One argument; If (Arg0 == 5) { Notify (\_SB, 0x81) }
  const Bytes method{1, 0xa0, 0x0d, 0x93, 0x68, 0x0a, 5, 0x86, '\\', '_', 'S', 'B', '_', 0x0a, 0x81};
  EXPECT_EQ(ged.methods.at("_EVT"), method);
}

TEST(AcpiTables, vm_generation_id_is_found_by_its_compatible_id_and_told_of_by_its_interrupt) {
  AcpiConfig config = config_of(1, 0);
  config.vm_gen_id = AcpiVmGenId{.address = 0x123456789abcdef0, .gsi = 9};
  AmlDecoder aml = decode(build(config));
  const Object& device = aml.objects.at("\\_SB_.VGEN");
  EXPECT_EQ(device.names.at("_CID"), string_data("VM_Gen_Counter"));
  EXPECT_EQ(device.names.at("_DDN"), string_data("VM_Gen_Counter"));
  EXPECT_EQ(device.names.at("_HID"), string_data("MFLY0001"));
  // Package (2) { lower half, upper half }
  const Bytes place{0x12, 0x0c, 2, 0x0c, 0xf0, 0xde, 0xbc, 0x9a, 0x0c, 0x78, 0x56, 0x34, 0x12};
  EXPECT_EQ(device.names.at("ADDR"), place);

  const Object& ged = aml.objects.at("\\_SB_.GED_");
  const auto resources = descriptors(ged.names.at("_CRS"));
  ASSERT_EQ(resources.size(), 2U);
  EXPECT_EQ(Reader::integer(resources[0].second, 2, 4), 5U);
  EXPECT_EQ(Reader::integer(resources[1].second, 2, 4), 9U);
  EXPECT_EQ(resources[1].second.at(0), 0x03) << "consumer, edge, active high, exclusive";
  // If (Arg0 == 9) { Notify (VGEN, 0x80) }, behind the shutdown request's
  const Bytes handler{0xa0, 0x0c, 0x93, 0x68, 0x0a, 9, 0x86, 'V', 'G', 'E', 'N', 0x0a, 0x80};
  const Bytes& method = ged.methods.at("_EVT");
  ASSERT_EQ(method.size(), 1 + 14 + handler.size());
  EXPECT_EQ(Bytes(method.begin() + 15, method.end()), handler);
}

TEST(AcpiTables, impossible_machines_are_refused_with_the_reason) {
  const auto refusal = [](const AcpiConfig& config, std::uint64_t rsdp = 0xe0000) -> std::string {
    const auto image = build_acpi_tables(config, GuestAddress(rsdp));
    if (image) {
      return "";
    }
    EXPECT_EQ(image.error().code(), ErrorCode::kInvalidArgument);
    return image.error().message();
  };
  const auto changed = [](auto change) {
    AcpiConfig config = config_of(1, 2);
    change(config);
    return config;
  };
  EXPECT_EQ(refusal(config_of(1, 2)), "");
  EXPECT_THAT(refusal(config_of(0, 0)), ::testing::HasSubstr("0 vCPUs"));
  EXPECT_THAT(refusal(config_of(33, 0)), ::testing::HasSubstr("33 vCPUs"));
  EXPECT_THAT(refusal(config_of(1, 19)), ::testing::HasSubstr("GSI 24"));
  EXPECT_THAT(refusal(changed([](AcpiConfig& c) { c.virtio_mmio[1].gsi = 6; })),
              ::testing::HasSubstr("GSI 6"));
  EXPECT_THAT(refusal(changed([](AcpiConfig& c) { c.serial->gsi = 5; })), ::testing::HasSubstr("GSI 5"));
  EXPECT_THAT(refusal(changed([](AcpiConfig& c) { c.power.shutdown_gsi = 24; })),
              ::testing::HasSubstr("GSI 24"));
  EXPECT_THAT(refusal(changed([](AcpiConfig& c) { c.vm_gen_id->gsi = 5; })), ::testing::HasSubstr("GSI 5"));
  EXPECT_THAT(refusal(changed([](AcpiConfig& c) { c.vm_gen_id->gsi = 24; })),
              ::testing::HasSubstr("VM generation id has GSI 24"));
  EXPECT_THAT(refusal(changed([](AcpiConfig& c) { c.vm_gen_id->address = 0xdf104; })),
              ::testing::HasSubstr("multiple of 8"));
  EXPECT_THAT(refusal(changed([](AcpiConfig& c) { c.power.sleep_type_off = 8; })),
              ::testing::HasSubstr("three bits"));
  EXPECT_THAT(refusal(changed([](AcpiConfig& c) { c.power.port = 0xfffe; })), ::testing::HasSubstr("0xffff"));
  EXPECT_EQ(refusal(changed([](AcpiConfig& c) { c.power.port = 0xfffd; })), "");
  EXPECT_THAT(refusal(changed([](AcpiConfig& c) { c.serial->port = 0xfff9; })),
              ::testing::HasSubstr("0xffff"));
  EXPECT_EQ(refusal(changed([](AcpiConfig& c) { c.serial->port = 0xfff8; })), "");
  EXPECT_THAT(refusal(changed([](AcpiConfig& c) { c.virtio_mmio[0].size = 0; })),
              ::testing::HasSubstr("empty"));
  EXPECT_THAT(refusal(changed([](AcpiConfig& c) { c.virtio_mmio[0].base = 0xfffff001; })),
              ::testing::HasSubstr("4 GiB"));
  EXPECT_EQ(refusal(changed([](AcpiConfig& c) { c.virtio_mmio[0].base = 0xfffff000; })), "");
  EXPECT_THAT(refusal(changed([](AcpiConfig& c) { c.virtio_mmio[0].base = ~std::uint64_t{0}; })),
              ::testing::HasSubstr("4 GiB"));
  EXPECT_THAT(refusal(changed([](AcpiConfig& c) { c.virtio_mmio[1].base -= 1; })),
              ::testing::HasSubstr("overlap"));
  EXPECT_THAT(refusal(config_of(1, 0), 0xe0008), ::testing::HasSubstr("aligned"));
  EXPECT_THAT(refusal(config_of(1, 0), 0x100000000), ::testing::HasSubstr("too high"));
}

TEST(AcpiTables, written_tables_are_found_in_guest_memory) {
  const std::array ranges = {*GuestRange::make(GuestAddress(0), 2U << 20)};
  auto memory = GuestMemory::create(ranges, Backing::kAnonymous);
  ASSERT_TRUE(memory) << memory.error().message();
  const auto rsdp = write_acpi_tables(config_of(4, 5), *memory);
  ASSERT_TRUE(rsdp) << rsdp.error().message();
  EXPECT_EQ(rsdp->value(), 0xe0000U);
  std::vector<std::byte> area(0x100000 - 0xe0000);
  ASSERT_TRUE(memory->read(*rsdp, area));
  const Tables tables = read_tables(Reader(area, 0xe0000), 0xe0000);
  EXPECT_EQ(tables.madt, build(config_of(4, 5)).madt);
}

TEST(AcpiTables, reset_vector_writes_the_reset_register) {
  const std::array ranges = {*GuestRange::make(GuestAddress(0), 2U << 20)};
  auto memory = GuestMemory::create(ranges, Backing::kAnonymous);
  ASSERT_TRUE(memory) << memory.error().message();
  AcpiConfig config = config_of(1, 0);
  config.power.port = 0x1233;
  config.power.reset_value = 0xab;
  ASSERT_TRUE(write_acpi_tables(config, *memory));
  Bytes code(9);
  ASSERT_TRUE(memory->read(GuestAddress(0xffff0), std::as_writable_bytes(std::span(code))));
  // mov dx, 0x1235; mov al, 0xab; out dx, al; hlt; jmp to the hlt
  EXPECT_EQ(code, (Bytes{0xba, 0x35, 0x12, 0xb0, 0xab, 0xee, 0xf4, 0xeb, 0xfd}));
}

TEST(AcpiTables, memory_that_lacks_the_system_area_is_an_error) {
  const std::array ranges = {*GuestRange::make(GuestAddress(0), 0xe0000)};
  auto memory = GuestMemory::create(ranges, Backing::kAnonymous);
  ASSERT_TRUE(memory) << memory.error().message();
  EXPECT_FALSE(write_acpi_tables(config_of(1, 0), *memory));
}

}  // namespace
}  // namespace mayfly::x86_64
