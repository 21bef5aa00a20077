#include "kvm/x86_64/cpuid.h"

#include <cpuid.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <string_view>

namespace mayfly::x86_64 {
namespace {

using Entries = std::vector<kvm_cpuid_entry2>;

// APM volume 3, E.4.13: extended APIC id, compute unit, node.
constexpr std::uint32_t kAmdUnitIds = 0x8000001e;

constexpr std::uint32_t bit(unsigned number) {
  return 1U << number;
}

// Replaces the `width` bits of `word` from `low` on.
void set_field(std::uint32_t& word, unsigned low, unsigned width, std::uint32_t value) {
  const std::uint32_t mask = ((1U << width) - 1) << low;
  word = (word & ~mask) | ((value << low) & mask);
}

void set_bit(std::uint32_t& word, unsigned number, bool on) {
  word = on ? word | bit(number) : word & ~bit(number);
}

kvm_cpuid_entry2* find(std::span<kvm_cpuid_entry2> entries, std::uint32_t function, std::uint32_t index = 0) {
  const auto found = std::find_if(entries.begin(), entries.end(), [=](const kvm_cpuid_entry2& entry) {
    return entry.function == function && entry.index == index;
  });
  return found != entries.end() ? &*found : nullptr;
}

// Every entry of `function`, whatever its index.
template <typename Change>
void for_each_of(std::span<kvm_cpuid_entry2> entries, std::uint32_t function, Change change) {
  for (kvm_cpuid_entry2& entry : entries) {
    if (entry.function == function) {
      change(entry);
    }
  }
}

// What is not listed reads as zeros in the guest.
void drop(Entries& entries, std::uint32_t function) {
  std::erase_if(entries, [=](const kvm_cpuid_entry2& entry) { return entry.function == function; });
}

// How the bits of an APIC id are divided (SDM volume 3, 9.9.1): the lowest `thread_bits` name the thread of a
// core, those up to `package_bits` the core.
struct Topology {
  std::uint32_t vcpus;
  std::uint32_t threads_per_core;
  unsigned thread_bits;
  unsigned package_bits;

  static Topology of(const GuestCpuConfig& config) {
    const std::uint32_t threads = config.smt && config.vcpu_count > 1 ? 2 : 1;
    const std::uint32_t cores = config.vcpu_count / threads;
    const auto thread_bits = static_cast<unsigned>(std::bit_width(threads - 1));
    return {config.vcpu_count, threads, thread_bits,
            thread_bits + static_cast<unsigned>(std::bit_width(cores - 1))};
  }
};

// Leaf 1: features, and the legacy way to say how many there are (SDM; APM E.3.2).
void set_features(kvm_cpuid_entry2& leaf, const GuestCpuConfig& config, const Topology& topology,
                  CpuVendor vendor) {
  // Intel counts the ids that the package could have, AMD the processors that it has.
  const bool is_amd = vendor == CpuVendor::kAmd || vendor == CpuVendor::kHygon;
  set_field(leaf.ebx, 16, 8, is_amd ? topology.vcpus : 1U << topology.package_bits);
  set_bit(leaf.edx, 28, topology.vcpus > 1);  // HTT: that count is valid

  set_bit(leaf.ecx, 31, true);  // running on a hypervisor
  set_bit(leaf.ecx, 24, config.tsc_deadline);
  set_bit(leaf.ecx, 5, false);  // VMX
  if (!config.pmu) {
    leaf.ecx &= ~(bit(2) | bit(4) | bit(15));  // DTES64, DS_CPL, PDCM
    set_bit(leaf.edx, 21, false);              // DS
  }
}

// Leaves 4 and 0x8000001d: caches, and who shares them (SDM; APM E.4.15).
void set_cache_sharing(Entries& entries, const Topology& topology) {
  const auto shared_by = [&topology](const kvm_cpuid_entry2& cache, std::uint32_t package) {
    const std::uint32_t level = (cache.eax >> 5) & 7;
    return level >= 3 ? package : topology.threads_per_core;
  };
  for_each_of(entries, 4, [&](kvm_cpuid_entry2& cache) {
    if ((cache.eax & 0x1f) == 0) {
      return;  // no further cache
    }
    // Both fields count the ids that could be, less one.
    set_field(cache.eax, 14, 12, shared_by(cache, 1U << topology.package_bits) - 1);
    set_field(cache.eax, 26, 6, (1U << (topology.package_bits - topology.thread_bits)) - 1);
  });
  for_each_of(entries, 0x8000001d, [&](kvm_cpuid_entry2& cache) {
    if ((cache.eax & 0x1f) != 0) {
      set_field(cache.eax, 14, 12, shared_by(cache, topology.vcpus) - 1);
    }
  });
}

// Leaves 0xb and 0x1f: the levels above a thread; both vendors (SDM; APM E.3.11). KVM fills the indices past
// the last, and lists at most its own processor's.
void set_extended_topology(Entries& entries, std::uint32_t function, const Topology& topology) {
  constexpr std::uint32_t kSmtLevel = 1;
  constexpr std::uint32_t kCoreLevel = 2;
  drop(entries, function);
  const auto add = [&](std::uint32_t index, unsigned shift, std::uint32_t count, std::uint32_t type) {
    kvm_cpuid_entry2 level{};
    level.function = function;
    level.index = index;
    level.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    level.eax = shift;
    level.ebx = count;
    level.ecx = index | type << 8;
    entries.push_back(level);
  };
  add(0, topology.thread_bits, topology.threads_per_core, kSmtLevel);
  add(1, topology.package_bits, topology.vcpus, kCoreLevel);
  add(2, 0, 0, 0);
}

// What only AMD's leaves say of the topology (APM E.4.2, E.4.7, E.4.16).
void set_amd_topology(Entries& entries, const Topology& topology) {
  auto* features = find(entries, 0x80000001);
  if (features != nullptr) {
    set_bit(features->ecx, 1,
            topology.vcpus > 1);  // CmpLegacy: the count of leaf 1 is not of threads of one core
  }
  if (auto* sizes = find(entries, 0x80000008)) {
    set_field(sizes->ecx, 0, 8, topology.vcpus - 1);
    set_field(sizes->ecx, 12, 4, topology.package_bits);
  }
  // The extended topology leaf is valid with its feature bit only.
  const bool has_topology_extensions = features != nullptr && (features->ecx & bit(22)) != 0;
  if (auto* leaf = find(entries, kAmdUnitIds); leaf != nullptr && has_topology_extensions) {
    leaf->ebx = (topology.threads_per_core - 1) << 8;
    leaf->ecx = 0;  // one node, number 0
    leaf->edx = 0;
  }
  // Complexes and dies: read before leaf 0xb where it is there, and KVM passes on the host's.
  drop(entries, 0x80000026);
}

void remove_what_guests_do_not_get(Entries& entries, const GuestCpuConfig& config, CpuVendor vendor) {
  // Power and thermal management: only that the APIC timer runs in every C-state (ARAT).
  for_each_of(entries, 6, [](kvm_cpuid_entry2& leaf) {
    leaf.eax &= bit(2);
    leaf.ebx = leaf.ecx = leaf.edx = 0;
  });
  if (auto* leaf = find(entries, 7, 0)) {
    leaf->ebx &= ~(bit(2) | bit(25));             // SGX, processor trace
    leaf->ecx &= ~(bit(5) | bit(30));             // WAITPKG, SGX launch control
    leaf->edx &= ~(bit(22) | bit(24) | bit(25));  // AMX-BF16, AMX-TILE, AMX-INT8
    if (vendor == CpuVendor::kAmd || vendor == CpuVendor::kHygon) {
      set_bit(leaf->edx, 29, false);  // IA32_ARCH_CAPABILITIES
    }
    if (!config.pmu) {
      set_bit(leaf->edx, 19, false);  // branch records
    }
  }
  if (auto* leaf = find(entries, 7, 1)) {
    set_bit(leaf->eax, 21, false);  // AMX-FP16
    set_bit(leaf->edx, 8, false);   // AMX-COMPLEX
    if (!config.pmu) {
      set_bit(leaf->eax, 8, false);  // leaf 0x23
    }
  }
  if (auto* leaf = find(entries, 0x80000001)) {
    set_bit(leaf->ecx, 2, false);  // SVM
    if (!config.pmu) {
      // IBS; core, northbridge and last-level-cache counters; PTSC.
      leaf->ecx &= ~(bit(10) | bit(23) | bit(24) | bit(27) | bit(28));
    }
  }
  std::erase_if(entries, [&config](const kvm_cpuid_entry2& entry) {
    return is_withheld_leaf(entry.function, config.pmu);
  });
}

void set_brand(Entries& entries, const GuestCpuConfig& config) {
  constexpr std::uint32_t kFirst = 0x80000002;
  bool blank = true;
  for (std::uint32_t i = 0; i < 3; ++i) {
    const auto* leaf = find(entries, kFirst + i);
    if (leaf == nullptr) {
      return;  // the processor has no brand string
    }
    blank = blank && (leaf->eax | leaf->ebx | leaf->ecx | leaf->edx) == 0;
  }
  if (!blank) {
    return;
  }
  const BrandString brand = config.brand();
  for (std::uint32_t i = 0; i < 3; ++i) {
    auto* leaf = find(entries, kFirst + i);
    leaf->eax = brand[4 * i];
    leaf->ebx = brand[4 * i + 1];
    leaf->ecx = brand[4 * i + 2];
    leaf->edx = brand[4 * i + 3];
  }
}

// The highest leaf of the basic range; 0 without a leaf 0.
std::uint32_t highest_basic_leaf(Entries& entries) {
  const auto* leaf = find(entries, 0);
  return leaf != nullptr ? leaf->eax : 0;
}

}  // namespace

bool is_withheld_leaf(std::uint32_t function, bool pmu) {
  // SGX, processor trace, AMX tiles and multiplication, SVM, memory encryption.
  constexpr std::array<std::uint32_t, 6> kFeatures = {0x12, 0x14, 0x1d, 0x1e, 0x8000000a, 0x8000001f};
  // Intel's counters, branch records and extended counters; AMD's IBS and second version of counters.
  constexpr std::array<std::uint32_t, 5> kCounters = {0xa, 0x1c, 0x23, 0x8000001b, 0x80000022};
  const auto has = [function](const auto& leaves) {
    return std::find(leaves.begin(), leaves.end(), function) != leaves.end();
  };
  return has(kFeatures) || (!pmu && has(kCounters));
}

void drop_blank_entries(std::vector<kvm_cpuid_entry2>& entries) {
  std::erase_if(entries, [](const kvm_cpuid_entry2& entry) {
    // set_vcpu_id() has yet to fill this leaf of AMD's.
    return entry.function != kAmdUnitIds && (entry.eax | entry.ebx | entry.ecx | entry.edx) == 0;
  });
}

CpuVendor vendor_of(std::span<const kvm_cpuid_entry2> entries) {
  const auto leaf = std::find_if(entries.begin(), entries.end(),
                                 [](const kvm_cpuid_entry2& entry) { return entry.function == 0; });
  if (leaf == entries.end()) {
    return CpuVendor::kOther;
  }
  std::array<char, 12> name{};
  std::memcpy(name.data(), &leaf->ebx, 4);
  std::memcpy(name.data() + 4, &leaf->edx, 4);
  std::memcpy(name.data() + 8, &leaf->ecx, 4);
  const std::string_view text(name.data(), name.size());
  if (text == "GenuineIntel") {
    return CpuVendor::kIntel;
  }
  if (text == "AuthenticAMD") {
    return CpuVendor::kAmd;
  }
  return text == "HygonGenuine" ? CpuVendor::kHygon : CpuVendor::kOther;
}

BrandString host_brand() {
  BrandString brand{};
  // Asks for the highest leaf first, as each CPUID instruction may trap.
  if (static_cast<std::uint32_t>(__get_cpuid_max(0x80000000, nullptr)) < 0x80000004) {
    return brand;
  }
  for (unsigned i = 0; i < 3; ++i) {
    unsigned eax = 0;
    unsigned ebx = 0;
    unsigned ecx = 0;
    unsigned edx = 0;
    __cpuid(0x80000002 + i, eax, ebx, ecx, edx);
    brand[4 * i] = eax;
    brand[4 * i + 1] = ebx;
    brand[4 * i + 2] = ecx;
    brand[4 * i + 3] = edx;
  }
  return brand;
}

Result<std::vector<kvm_cpuid_entry2>> make_guest_cpuid(std::span<const kvm_cpuid_entry2> supported,
                                                       const GuestCpuConfig& config) {
  if (config.vcpu_count == 0 || config.vcpu_count > kMaxTopologyVcpus) {
    return fail(ErrorCode::kInvalidArgument, std::to_string(config.vcpu_count) + " vCPUs: 1 to " +
                                                 std::to_string(kMaxTopologyVcpus) + " are possible");
  }
  if (config.smt && config.vcpu_count > 1 && config.vcpu_count % 2 != 0) {
    return fail(ErrorCode::kInvalidArgument,
                std::to_string(config.vcpu_count) + " vCPUs: with SMT their number is 1 or even");
  }
  Entries entries(supported.begin(), supported.end());
  if (find(entries, 0) == nullptr || find(entries, 1) == nullptr) {
    return fail(ErrorCode::kInternal, "KVM names no CPUID leaf 0 or 1 (KVM_GET_SUPPORTED_CPUID)");
  }
  const CpuVendor vendor = vendor_of(entries);
  const Topology topology = Topology::of(config);

  remove_what_guests_do_not_get(entries, config, vendor);
  set_features(*find(entries, 1), config, topology, vendor);
  set_cache_sharing(entries, topology);
  for (const std::uint32_t function : {0xbU, 0x1fU}) {
    if (highest_basic_leaf(entries) >= function) {
      set_extended_topology(entries, function, topology);
    }
  }
  if (vendor == CpuVendor::kAmd || vendor == CpuVendor::kHygon) {
    set_amd_topology(entries, topology);
  }
  set_brand(entries, config);
  drop_blank_entries(entries);
  return entries;
}

void set_vcpu_id(std::span<kvm_cpuid_entry2> guest, std::uint32_t index) {
  for (kvm_cpuid_entry2& entry : guest) {
    switch (entry.function) {
      case 1:
        set_field(entry.ebx, 24, 8, index);
        break;
      case 0xb:
      case 0x1f:
        entry.edx = index;
        break;
      case kAmdUnitIds:
        entry.eax = index;
        set_field(entry.ebx, 0, 8, index / (((entry.ebx >> 8) & 0xff) + 1));
        break;
      default:
        break;
    }
  }
}

}  // namespace mayfly::x86_64
