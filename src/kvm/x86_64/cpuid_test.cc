#include "kvm/x86_64/cpuid.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <set>
#include <string>

#include "support/cpuid_entries.h"

namespace mayfly::x86_64 {
namespace {

using testing::leaf;
using testing::sub;
using Entries = std::vector<kvm_cpuid_entry2>;

std::uint32_t word(const char* four) {
  std::uint32_t value = 0;
  std::memcpy(&value, four, sizeof value);
  return value;
}

kvm_cpuid_entry2 vendor_leaf(std::uint32_t highest, const std::string& name) {
  return leaf(0, highest, word(&name[0]), word(&name[8]), word(&name[4]));
}

void add_hypervisor(Entries& entries) {
  entries.push_back(leaf(0x40000000, 0x40000001, word("KVMK"), word("VMKV"), word("M\0\0\0")));
  entries.push_back(leaf(0x40000001, 0x01007efb, 0, 0, 0));
}

// A server processor of Intel's, as KVM reports it on a host with counters, SGX and AMX: apart from what this
// policy changes, everything is set.
Entries intel_table(std::uint32_t highest = 0x20) {
  Entries entries = {
      vendor_leaf(highest, "GenuineIntel"),
      leaf(1, 0x000806f8, 0x2a400800, 0xffffffff, 0xffffffff),
      leaf(2, 0x00feff01, 0xf0, 0, 0),
      sub(4, 0, 0x7c004121, 0x02c0003f, 0x3f, 0),
      sub(4, 1, 0x7c004122, 0x01c0003f, 0x3f, 0),
      sub(4, 2, 0x7c004143, 0x03c0003f, 0x7ff, 0),
      sub(4, 3, 0x7c0fc163, 0x0380003f, 0x1bfff, 4),
      sub(4, 4, 0, 0, 0, 0),
      leaf(6, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff),
      sub(7, 0, 1, 0xffffffff, 0xffffffff, 0xffffffff),
      sub(7, 1, 0xffffffff, 0, 0, 0xffffffff),
      leaf(0xa, 0x08300802, 0, 0, 0x00008604),
      sub(0xb, 0, 0, 2, 0x100, 0x2a),
      sub(0xb, 1, 7, 64, 0x201, 0x2a),
      sub(0xd, 0, 0xe7, 0x988, 0x988, 0),
      sub(0xd, 1, 0xf, 0, 0, 0),
      sub(0x12, 0, 1, 0, 0, 0),
      sub(0x14, 0, 1, 0xf, 0, 0),
      leaf(0x1c, 0x4000000b, 7, 7, 0),
      sub(0x1d, 0, 1, 0, 0, 0),
      sub(0x1d, 1, 0x04002000, 0x00080040, 0x10, 0),
      sub(0x1e, 0, 0, 0x4010, 0, 0),
      sub(0x1f, 0, 1, 2, 0x100, 0x2a),
      sub(0x1f, 1, 7, 64, 0x201, 0x2a),
      sub(0x1f, 2, 9, 128, 0x502, 0x2a),
  };
  std::erase_if(entries, [highest](const kvm_cpuid_entry2& entry) { return entry.function > highest; });
  add_hypervisor(entries);
  entries.push_back(leaf(0x80000000, 0x80000008, 0, 0, 0));
  entries.push_back(leaf(0x80000001, 0, 0, 0x121, 0x2c100800));
  entries.push_back(leaf(0x80000002, word("Inte"), word("l Xe"), word("on  "), word("8481")));
  entries.push_back(leaf(0x80000003, word("C   "), 0, 0, 0));
  entries.push_back(leaf(0x80000004, 0, 0, 0, 0));
  entries.push_back(leaf(0x80000008, 0x3934, 0, 0, 0));
  return entries;
}

// A server processor of AMD's with 64 threads, all features set, and a blank brand string.
Entries amd_table(const std::string& vendor = "AuthenticAMD", std::uint32_t highest = 0x10) {
  Entries entries = {
      vendor_leaf(highest, vendor),
      leaf(1, 0x00a10f11, 0x05400800, 0xffffffff, 0xffffffff),
      leaf(6, 4, 0, 1, 0),
      sub(7, 0, 1, 0xffffffff, 0xffffffff, 0xffffffff),
      sub(7, 1, 0xffffffff, 0, 0, 0xffffffff),
      sub(0xb, 0, 1, 2, 0x100, 5),
      sub(0xb, 1, 7, 64, 0x201, 5),
      sub(0xd, 0, 0xe7, 0x980, 0x980, 0),
  };
  std::erase_if(entries, [highest](const kvm_cpuid_entry2& entry) { return entry.function > highest; });
  add_hypervisor(entries);
  const Entries extended = {
      leaf(0x80000000, 0x80000028, 0, 0, 0),
      leaf(0x80000001, 0x00a10f11, 0x40000000, 0xffffffff, 0xffffffff),
      leaf(0x80000002, 0, 0, 0, 0),
      leaf(0x80000003, 0, 0, 0, 0),
      leaf(0x80000004, 0, 0, 0, 0),
      leaf(0x80000008, 0x3030, 0x1000, 0x703f, 0),
      leaf(0x8000000a, 1, 8, 0, 0x1f),
      leaf(0x8000001b, 0x3ff, 0, 0, 0),
      sub(0x8000001d, 0, 0x00004121, 0x01c0003f, 0x3f, 0),
      sub(0x8000001d, 1, 0x00004122, 0x01c0003f, 0x3f, 0),
      sub(0x8000001d, 2, 0x00004143, 0x01c0003f, 0x7ff, 2),
      sub(0x8000001d, 3, 0x0003c163, 0x03c0003f, 0x7fff, 1),
      sub(0x8000001d, 4, 0, 0, 0, 0),
      leaf(0x8000001e, 0, 0, 0, 0),  // as KVM gives it
      leaf(0x8000001f, 0x1f, 0x173, 0, 0),
      leaf(0x80000022, 7, 6, 0, 0),
      sub(0x80000026, 0, 1, 2, 0x100, 5),
      sub(0x80000026, 1, 4, 16, 0x201, 5),
  };
  entries.insert(entries.end(), extended.begin(), extended.end());
  return entries;
}

BrandString test_brand() {
  BrandString brand{};
  std::memcpy(brand.data(), "Brand of the host", 18);
  return brand;
}

BrandString no_brand_must_be_asked() {
  ADD_FAILURE() << "the host's brand string was asked for";
  return {};
}

GuestCpuConfig config_of(std::uint32_t vcpus, bool smt = false) {
  GuestCpuConfig config;
  config.vcpu_count = vcpus;
  config.smt = smt;
  config.brand = &test_brand;
  return config;
}

kvm_cpuid_entry2 at(const Entries& entries, std::uint32_t function, std::uint32_t index = 0) {
  for (const kvm_cpuid_entry2& entry : entries) {
    if (entry.function == function && entry.index == index) {
      return entry;
    }
  }
  return {};  // what a guest reads for a leaf that is not listed
}

bool has(const Entries& entries, std::uint32_t function) {
  return std::any_of(entries.begin(), entries.end(),
                     [=](const kvm_cpuid_entry2& entry) { return entry.function == function; });
}

std::uint32_t bits(std::uint32_t value, unsigned high, unsigned low) {
  return (value >> low) & ((1U << (high - low + 1)) - 1);
}

unsigned width_for(std::uint32_t count) {
  return static_cast<unsigned>(std::bit_width(count - 1));
}

// What an operating system makes of one vCPU's CPUID, read as the manuals say and independent of how it was
// written.
struct Place {
  std::uint32_t apic_id;
  std::uint32_t package;
  std::uint32_t core;
  std::uint32_t thread;
  std::uint32_t threads_per_core;
  std::uint32_t processors;
  friend bool operator==(const Place&, const Place&) = default;
};

// SDM volume 3, example 9-18: leaf 0xb or 0x1f.
Place read_extended_topology(const Entries& cpu, std::uint32_t function) {
  const auto smt = at(cpu, function, 0);
  const auto core = at(cpu, function, 1);
  EXPECT_EQ(bits(smt.ecx, 15, 8), 1U);
  EXPECT_EQ(bits(core.ecx, 15, 8), 2U);
  EXPECT_EQ(bits(smt.ecx, 7, 0), 0U);
  EXPECT_EQ(bits(core.ecx, 7, 0), 1U);
  EXPECT_EQ(bits(at(cpu, function, 2).ecx, 15, 8), 0U);
  EXPECT_EQ(bits(at(cpu, function, 2).ebx, 15, 0), 0U);
  EXPECT_EQ(smt.edx, core.edx);
  const std::uint32_t id = smt.edx;
  const std::uint32_t thread_bits = bits(smt.eax, 4, 0);
  const std::uint32_t package_bits = bits(core.eax, 4, 0);
  return {id,
          id >> package_bits,
          (id & ((1U << package_bits) - 1)) >> thread_bits,
          id & ((1U << thread_bits) - 1),
          bits(smt.ebx, 15, 0),
          bits(core.ebx, 15, 0)};
}

// SDM volume 3, 9.9.3.1 before leaf 0xb: leaves 1 and 4.
Place read_legacy_intel(const Entries& cpu, std::uint32_t processors) {
  const auto one = at(cpu, 1);
  const std::uint32_t id = bits(one.ebx, 31, 24);
  const std::uint32_t ids = bits(one.edx, 28, 28) != 0 ? bits(one.ebx, 23, 16) : 1;
  const std::uint32_t cores = bits(at(cpu, 4, 0).eax, 31, 26) + 1;
  const unsigned thread_bits = width_for(ids / cores);
  const unsigned package_bits = width_for(ids);
  return {id,
          id >> package_bits,
          (id & ((1U << package_bits) - 1)) >> thread_bits,
          id & ((1U << thread_bits) - 1),
          ids / cores,
          processors};
}

TEST(GuestCpuid, leaves_of_zeros_are_left_out_but_for_the_one_that_each_vcpu_fills) {
  for (const std::uint32_t vcpus : {1U, 4U}) {
    const auto guest = make_guest_cpuid(amd_table(), config_of(vcpus));
    ASSERT_TRUE(guest.has_value()) << guest.error().message();
    std::size_t units = 0;
    for (const kvm_cpuid_entry2& entry : *guest) {
      units += entry.function == 0x8000001e ? 1U : 0U;
      EXPECT_TRUE(entry.function == 0x8000001e || (entry.eax | entry.ebx | entry.ecx | entry.edx) != 0)
          << std::hex << entry.function << '.' << entry.index;
    }
    EXPECT_EQ(units, 1U);
  }
}

// APM volume 3, E.5: leaves 0x80000008 and 0x8000001e.
Place read_amd(const Entries& cpu) {
  const auto sizes = at(cpu, 0x80000008);
  const auto unit = at(cpu, 0x8000001e);
  const std::uint32_t id = unit.eax;
  const std::uint32_t package_bits = bits(sizes.ecx, 15, 12);
  const std::uint32_t threads = bits(unit.ebx, 15, 8) + 1;
  return {id, id >> package_bits, bits(unit.ebx, 7, 0), id % threads, threads, bits(sizes.ecx, 7, 0) + 1};
}

struct Shape {
  std::uint32_t vcpus;
  bool smt;
};

std::vector<Shape> all_shapes() {
  std::vector<Shape> shapes;
  for (std::uint32_t count = 1; count <= kMaxTopologyVcpus; ++count) {
    shapes.push_back({count, false});
    if (count == 1 || count % 2 == 0) {
      shapes.push_back({count, true});
    }
  }
  return shapes;
}

TEST(GuestCpuid, every_intel_topology_reads_the_same_from_each_leaf_and_names_each_vcpu_once) {
  for (const Shape& shape : all_shapes()) {
    SCOPED_TRACE(std::to_string(shape.vcpus) + (shape.smt ? " vCPUs with SMT" : " vCPUs"));
    auto guest = make_guest_cpuid(intel_table(), config_of(shape.vcpus, shape.smt)).value();
    const std::uint32_t threads = shape.smt && shape.vcpus > 1 ? 2 : 1;
    std::set<std::uint32_t> ids;
    std::set<std::pair<std::uint32_t, std::uint32_t>> places;
    for (std::uint32_t index = 0; index < shape.vcpus; ++index) {
      set_vcpu_id(guest, index);
      const Place place = read_extended_topology(guest, 0xb);
      ASSERT_EQ(place, read_extended_topology(guest, 0x1f));
      ASSERT_EQ(place, read_legacy_intel(guest, shape.vcpus));
      ASSERT_EQ(place.apic_id, index);
      ASSERT_EQ(place.package, 0U);
      ASSERT_EQ(place.threads_per_core, threads);
      ASSERT_EQ(place.processors, shape.vcpus);
      ASSERT_LT(place.core, shape.vcpus / threads);
      ASSERT_LT(place.thread, threads);
      ids.insert(place.apic_id);
      places.insert({place.core, place.thread});
    }
    ASSERT_EQ(ids.size(), shape.vcpus);
    ASSERT_EQ(places.size(), shape.vcpus);
    ASSERT_EQ(bits(at(guest, 1).edx, 28, 28), shape.vcpus > 1 ? 1U : 0U);
  }
}

TEST(GuestCpuid, every_amd_topology_reads_the_same_from_each_leaf_and_names_each_vcpu_once) {
  for (const std::string vendor : {"AuthenticAMD", "HygonGenuine"}) {
    for (const Shape& shape : all_shapes()) {
      SCOPED_TRACE(vendor + " " + std::to_string(shape.vcpus) + (shape.smt ? " vCPUs with SMT" : " vCPUs"));
      auto guest = make_guest_cpuid(amd_table(vendor), config_of(shape.vcpus, shape.smt)).value();
      std::set<std::pair<std::uint32_t, std::uint32_t>> places;
      for (std::uint32_t index = 0; index < shape.vcpus; ++index) {
        set_vcpu_id(guest, index);
        const Place place = read_amd(guest);
        ASSERT_EQ(place, read_extended_topology(guest, 0xb));
        ASSERT_EQ(place.apic_id, index);
        ASSERT_EQ(bits(at(guest, 1).ebx, 31, 24), index);
        ASSERT_EQ(place.package, 0U);
        ASSERT_EQ(place.threads_per_core, shape.smt && shape.vcpus > 1 ? 2U : 1U);
        ASSERT_EQ(place.processors, shape.vcpus);
        places.insert({place.core, place.thread});
      }
      ASSERT_EQ(places.size(), shape.vcpus);
      // The ids that the field's width allows hold all that there are.
      ASSERT_GE(1U << bits(at(guest, 0x80000008).ecx, 15, 12), shape.vcpus);
      ASSERT_EQ(at(guest, 0x8000001e).ecx, 0U) << "one node";
      ASSERT_EQ(bits(at(guest, 1).ebx, 23, 16), shape.vcpus);
      ASSERT_EQ(bits(at(guest, 1).edx, 28, 28), shape.vcpus > 1 ? 1U : 0U);
      ASSERT_EQ(bits(at(guest, 0x80000001).ecx, 1, 1), shape.vcpus > 1 ? 1U : 0U) << "CmpLegacy";
    }
  }
}

TEST(GuestCpuid, caches_below_the_last_level_are_a_cores_own_and_the_last_is_everyones) {
  for (const Shape& shape : all_shapes()) {
    SCOPED_TRACE(std::to_string(shape.vcpus) + (shape.smt ? " vCPUs with SMT" : " vCPUs"));
    const std::uint32_t threads = shape.smt && shape.vcpus > 1 ? 2 : 1;
    const auto intel = make_guest_cpuid(intel_table(), config_of(shape.vcpus, shape.smt)).value();
    const auto amd = make_guest_cpuid(amd_table(), config_of(shape.vcpus, shape.smt)).value();
    for (std::uint32_t index = 0; index < 4; ++index) {
      const std::uint32_t sharing = index < 3 ? threads : shape.vcpus;
      // The fields may count ids or processors; what software derives is the width.
      ASSERT_EQ(width_for(bits(at(intel, 4, index).eax, 25, 14) + 1), width_for(sharing));
      ASSERT_EQ(bits(at(amd, 0x8000001d, index).eax, 25, 14) + 1, sharing);
    }
    ASSERT_EQ(at(intel, 4, 4).eax, 0U);
    ASSERT_EQ(at(amd, 0x8000001d, 4).eax, 0U);
  }
}

TEST(GuestCpuid, cache_geometry_stays_the_hosts) {
  const auto guest = make_guest_cpuid(intel_table(), config_of(4)).value();
  for (std::uint32_t index = 0; index < 4; ++index) {
    const auto before = at(intel_table(), 4, index);
    const auto after = at(guest, 4, index);
    EXPECT_EQ(bits(after.eax, 13, 0), bits(before.eax, 13, 0));
    EXPECT_EQ(after.ebx, before.ebx);
    EXPECT_EQ(after.ecx, before.ecx);
    EXPECT_EQ(after.edx, before.edx);
  }
}

TEST(GuestCpuid, topology_leaves_past_the_processors_highest_are_not_invented) {
  EXPECT_FALSE(has(make_guest_cpuid(intel_table(0xa), config_of(2)).value(), 0xb));
  const auto up_to_b = make_guest_cpuid(intel_table(0xb), config_of(2)).value();
  EXPECT_TRUE(has(up_to_b, 0xb));
  EXPECT_FALSE(has(up_to_b, 0x1f));
  EXPECT_FALSE(has(make_guest_cpuid(amd_table("AuthenticAMD", 0x10), config_of(2)).value(), 0x1f));
}

TEST(GuestCpuid, a_host_level_that_guests_do_not_have_is_not_left_behind) {
  const auto intel = make_guest_cpuid(intel_table(), config_of(4)).value();
  EXPECT_EQ(
      std::count_if(intel.begin(), intel.end(), [](const auto& entry) { return entry.function == 0x1f; }), 3);
  EXPECT_EQ(at(intel, 0x1f, 2).ecx >> 8, 0U) << "the host's die level";
  EXPECT_FALSE(has(make_guest_cpuid(amd_table(), config_of(4)).value(), 0x80000026));
}

TEST(GuestCpuid, indexed_leaves_say_that_their_index_counts) {
  const auto guest = make_guest_cpuid(intel_table(), config_of(4)).value();
  for (const auto& entry : guest) {
    if (entry.function == 0xb || entry.function == 0x1f) {
      EXPECT_EQ(entry.flags, std::uint32_t{KVM_CPUID_FLAG_SIGNIFCANT_INDEX});
    }
  }
}

TEST(GuestCpuid, amd_without_topology_extensions_gets_no_extended_ids) {
  auto table = amd_table();
  for (auto& entry : table) {
    if (entry.function == 0x80000001) {
      entry.ecx &= ~(1U << 22);
    }
    if (entry.function == 0x8000001e) {
      entry.eax = entry.ebx = entry.ecx = entry.edx = 0;
    }
  }
  const auto guest = make_guest_cpuid(table, config_of(4, true)).value();
  EXPECT_EQ(bits(at(guest, 0x80000001).ecx, 22, 22), 0U);
  EXPECT_EQ(at(guest, 0x8000001e).ebx, 0U);
}

TEST(GuestCpuid, the_guest_is_told_that_it_is_one_and_by_whom) {
  for (const auto& table : {intel_table(), amd_table()}) {
    auto quiet = table;
    for (auto& entry : quiet) {
      if (entry.function == 1) {
        entry.ecx = 0;
      }
    }
    const auto guest = make_guest_cpuid(quiet, config_of(1)).value();
    EXPECT_EQ(bits(at(guest, 1).ecx, 31, 31), 1U);
    EXPECT_EQ(at(guest, 0x40000000).ebx, word("KVMK"));
    EXPECT_EQ(at(guest, 0x40000001).eax, 0x01007efbU) << "paravirtual features stay as KVM offers them";
  }
}

TEST(GuestCpuid, the_tsc_deadline_bit_follows_the_capability_not_the_table) {
  for (const auto& table : {intel_table(), amd_table()}) {
    for (const bool reported : {false, true}) {
      auto input = table;
      for (auto& entry : input) {
        if (entry.function == 1 && !reported) {
          entry.ecx &= ~(1U << 24);
        }
      }
      for (const bool capable : {false, true}) {
        auto config = config_of(1);
        config.tsc_deadline = capable;
        EXPECT_EQ(bits(at(make_guest_cpuid(input, config).value(), 1).ecx, 24, 24), capable ? 1U : 0U);
      }
    }
  }
}

// Where a bit must be clear although KVM's table has it set.
struct Cleared {
  std::uint32_t function;
  std::uint32_t index;
  std::uint32_t kvm_cpuid_entry2::*reg;
  unsigned number;
  const char* what;
};
constexpr auto kEcx = &kvm_cpuid_entry2::ecx;
constexpr auto kEdx = &kvm_cpuid_entry2::edx;
constexpr auto kEbx = &kvm_cpuid_entry2::ebx;
constexpr auto kEax = &kvm_cpuid_entry2::eax;

void expect_only_cleared(const Entries& before, const Entries& after, const kvm_cpuid_entry2& where,
                         std::span<const Cleared> cleared, std::uint32_t kvm_cpuid_entry2::*reg,
                         std::uint32_t ignored) {
  std::uint32_t mask = 0;
  for (const Cleared& one : cleared) {
    if (one.function == where.function && one.index == where.index && one.reg == reg) {
      mask |= 1U << one.number;
    }
  }
  const std::uint32_t want = at(before, where.function, where.index).*reg & ~mask;
  EXPECT_EQ(at(after, where.function, where.index).*reg & ~ignored, want & ~ignored)
      << std::hex << "leaf " << where.function << " index " << where.index;
}

void expect_features(const Entries& before, const GuestCpuConfig& config, std::span<const Cleared> cleared) {
  const auto after = make_guest_cpuid(before, config).value();
  for (const Cleared& one : cleared) {
    EXPECT_EQ((at(after, one.function, one.index).*one.reg >> one.number) & 1, 0U) << one.what;
  }
  for (const auto& where : {sub(1, 0, 0, 0, 0, 0), sub(7, 0, 0, 0, 0, 0), sub(7, 1, 0, 0, 0, 0)}) {
    const bool is_one = where.function == 1;
    expect_only_cleared(before, after, where, cleared, kEcx, 0);
    expect_only_cleared(before, after, where, cleared, kEdx, is_one ? 1U << 28 : 0);
    expect_only_cleared(before, after, where, cleared, kEax, 0);
    expect_only_cleared(before, after, where, cleared, kEbx, is_one ? 0xffff0000 : 0);
  }
  // CmpLegacy is topology.
  expect_only_cleared(before, after, sub(0x80000001, 0, 0, 0, 0, 0), cleared, kEcx, 2);
}

constexpr std::array kAlwaysCleared = {
    Cleared{1, 0, kEcx, 5, "VMX"},
    Cleared{7, 0, kEbx, 2, "SGX"},
    Cleared{7, 0, kEbx, 25, "processor trace"},
    Cleared{7, 0, kEcx, 5, "WAITPKG"},
    Cleared{7, 0, kEcx, 30, "SGX launch control"},
    Cleared{7, 0, kEdx, 22, "AMX-BF16"},
    Cleared{7, 0, kEdx, 24, "AMX-TILE"},
    Cleared{7, 0, kEdx, 25, "AMX-INT8"},
    Cleared{7, 1, kEax, 21, "AMX-FP16"},
    Cleared{7, 1, kEdx, 8, "AMX-COMPLEX"},
    Cleared{0x80000001, 0, kEcx, 2, "SVM"},
};
constexpr std::array kClearedWithoutPmu = {
    Cleared{1, 0, kEcx, 2, "DTES64"},
    Cleared{1, 0, kEcx, 4, "DS_CPL"},
    Cleared{1, 0, kEcx, 15, "PDCM"},
    Cleared{1, 0, kEdx, 21, "DS"},
    Cleared{7, 0, kEdx, 19, "branch records"},
    Cleared{7, 1, kEax, 8, "leaf 0x23"},
    Cleared{0x80000001, 0, kEcx, 10, "IBS"},
    Cleared{0x80000001, 0, kEcx, 23, "core counters"},
    Cleared{0x80000001, 0, kEcx, 24, "northbridge counters"},
    Cleared{0x80000001, 0, kEcx, 27, "PTSC"},
    Cleared{0x80000001, 0, kEcx, 28, "last-level-cache counters"},
};
constexpr Cleared kArchCapabilities = {7, 0, kEdx, 29, "IA32_ARCH_CAPABILITIES"};

TEST(GuestCpuid, just_the_listed_features_are_withheld) {
  std::vector<Cleared> cleared(kAlwaysCleared.begin(), kAlwaysCleared.end());
  auto config = config_of(2);
  config.pmu = true;
  expect_features(intel_table(), config, cleared);
  cleared.push_back(kArchCapabilities);
  expect_features(amd_table(), config, cleared);
  expect_features(amd_table("HygonGenuine"), config, cleared);
  cleared.pop_back();

  cleared.insert(cleared.end(), kClearedWithoutPmu.begin(), kClearedWithoutPmu.end());
  config.pmu = false;
  expect_features(intel_table(), config, cleared);
  cleared.push_back(kArchCapabilities);
  expect_features(amd_table(), config, cleared);
}

TEST(GuestCpuid, leaves_of_withheld_features_read_as_zeros) {
  const auto intel = make_guest_cpuid(intel_table(), config_of(2)).value();
  for (const std::uint32_t function : {0xaU, 0x12U, 0x14U, 0x1cU, 0x1dU, 0x1eU}) {
    EXPECT_FALSE(has(intel, function)) << function;
  }
  const auto amd = make_guest_cpuid(amd_table(), config_of(2)).value();
  for (const std::uint32_t function : {0x8000000aU, 0x8000001bU, 0x8000001fU, 0x80000022U}) {
    EXPECT_FALSE(has(amd, function)) << function;
  }
}

TEST(GuestCpuid, counters_that_are_asked_for_stay) {
  auto config = config_of(2);
  config.pmu = true;
  const auto intel = make_guest_cpuid(intel_table(), config).value();
  EXPECT_EQ(at(intel, 0xa).eax, at(intel_table(), 0xa).eax);
  EXPECT_TRUE(has(intel, 0x1c));
  const auto amd = make_guest_cpuid(amd_table(), config).value();
  EXPECT_EQ(at(amd, 0x80000022).eax, 7U);
  EXPECT_TRUE(has(amd, 0x8000001b));
}

TEST(GuestCpuid, of_power_management_only_the_always_running_timer_is_left) {
  for (const auto& table : {intel_table(), amd_table()}) {
    const auto power = at(make_guest_cpuid(table, config_of(1)).value(), 6);
    EXPECT_EQ(power.eax, 4U);
    EXPECT_EQ(power.ebx | power.ecx | power.edx, 0U);
  }
}

TEST(GuestCpuid, a_brand_string_that_kvm_gives_stays_and_the_host_is_not_asked) {
  auto config = config_of(1);
  config.brand = &no_brand_must_be_asked;
  const auto guest = make_guest_cpuid(intel_table(), config).value();
  EXPECT_EQ(at(guest, 0x80000002).eax, word("Inte"));
  EXPECT_EQ(at(guest, 0x80000003).eax, word("C   "));
}

TEST(GuestCpuid, a_blank_brand_string_is_the_hosts) {
  const auto guest = make_guest_cpuid(amd_table(), config_of(1)).value();
  std::string text;
  for (std::uint32_t function = 0x80000002; function <= 0x80000004; ++function) {
    const auto part = at(guest, function);
    for (const std::uint32_t value : {part.eax, part.ebx, part.ecx, part.edx}) {
      for (unsigned i = 0; i < 4; ++i) {
        text.push_back(static_cast<char>(value >> (8 * i)));
      }
    }
  }
  EXPECT_STREQ(text.c_str(), "Brand of the host");
}

TEST(GuestCpuid, a_processor_without_a_brand_string_gets_none) {
  auto table = amd_table();
  std::erase_if(table, [](const auto& entry) { return entry.function == 0x80000004; });
  auto config = config_of(1);
  config.brand = &no_brand_must_be_asked;
  EXPECT_EQ(at(make_guest_cpuid(table, config).value(), 0x80000002).eax, 0U);
}

TEST(GuestCpuid, leaves_of_no_concern_here_pass_unchanged) {
  const auto same = [](const kvm_cpuid_entry2& a, const kvm_cpuid_entry2& b) {
    return std::memcmp(&a, &b, sizeof a) == 0;
  };
  const auto guest = make_guest_cpuid(intel_table(), config_of(8)).value();
  for (const auto& entry : intel_table()) {
    for (const std::uint32_t function : {0U, 2U, 0xdU, 0x40000000U, 0x40000001U, 0x80000000U, 0x80000008U}) {
      if (entry.function == function) {
        EXPECT_TRUE(same(entry, at(guest, function, entry.index))) << function;
      }
    }
  }
}

TEST(GuestCpuid, no_entry_is_there_twice) {
  for (const auto& table : {intel_table(), amd_table()}) {
    std::set<std::pair<std::uint32_t, std::uint32_t>> seen;
    const auto guest = make_guest_cpuid(table, config_of(6, true)).value();
    for (const auto& entry : guest) {
      EXPECT_TRUE(seen.insert({entry.function, entry.index}).second) << entry.function;
    }
  }
}

TEST(GuestCpuid, changing_the_id_leaves_everything_else_alone) {
  for (const auto& table : {intel_table(), amd_table()}) {
    auto one = make_guest_cpuid(table, config_of(32, true)).value();
    auto other = one;
    set_vcpu_id(one, 7);
    for (const std::uint32_t index : {31U, 0U, 7U}) {
      set_vcpu_id(other, index);
    }
    ASSERT_EQ(one.size(), other.size());
    EXPECT_EQ(std::memcmp(one.data(), other.data(), one.size() * sizeof one[0]), 0);
  }
}

TEST(GuestCpuid, a_count_or_smt_that_cannot_be_is_refused) {
  EXPECT_EQ(make_guest_cpuid(intel_table(), config_of(0)).error().code(), ErrorCode::kInvalidArgument);
  EXPECT_TRUE(make_guest_cpuid(intel_table(), config_of(kMaxTopologyVcpus)).has_value());
  EXPECT_EQ(make_guest_cpuid(intel_table(), config_of(kMaxTopologyVcpus + 1)).error().code(),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(make_guest_cpuid(intel_table(), config_of(3, true)).error().message(),
            "3 vCPUs: with SMT their number is 1 or even");
}

TEST(GuestCpuid, a_table_without_its_first_leaves_is_refused) {
  for (const std::uint32_t missing : {0U, 1U}) {
    auto table = intel_table();
    std::erase_if(table, [missing](const auto& entry) { return entry.function == missing; });
    EXPECT_EQ(make_guest_cpuid(table, config_of(1)).error().code(), ErrorCode::kInternal);
  }
  EXPECT_FALSE(make_guest_cpuid({}, config_of(1)).has_value());
}

TEST(GuestCpuid, a_bare_table_of_an_unknown_vendor_is_enough) {
  const Entries table = {vendor_leaf(1, "CentaurHauls"), leaf(1, 0x6f0, 0, 0, 0x1)};
  auto guest = make_guest_cpuid(table, config_of(2)).value();
  set_vcpu_id(guest, 1);
  EXPECT_EQ(guest.size(), 2U);
  EXPECT_EQ(bits(at(guest, 1).ebx, 31, 24), 1U);
}

TEST(CpuVendor, is_read_from_leaf_0) {
  EXPECT_EQ(vendor_of(intel_table()), CpuVendor::kIntel);
  EXPECT_EQ(vendor_of(amd_table()), CpuVendor::kAmd);
  EXPECT_EQ(vendor_of(amd_table("HygonGenuine")), CpuVendor::kHygon);
  EXPECT_EQ(vendor_of(amd_table("CentaurHauls")), CpuVendor::kOther);
  EXPECT_EQ(vendor_of({}), CpuVendor::kOther);
}

}  // namespace
}  // namespace mayfly::x86_64
