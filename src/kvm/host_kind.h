// What stands behind this host's KVM: modules and the processor.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mayfly {

enum class HostKind : std::uint8_t {
  kHardware,    // the processor runs guests itself
  kNoHardware,  // a KVM that does without: it interprets or rewrites guest code, slowly
  kNoKvm,       // no KVM module is loaded
  kUnknown,     // the host hides it (no /proc or /sys)
};

struct HostFacts {
  // Of the first processor in /proc/cpuinfo; empty where it cannot be read.
  std::string cpu_model;
  std::string cpu_flags;             // with spaces between them
  std::vector<std::string> modules;  // those of /sys/module whose name starts with "kvm"; sorted
  bool modules_known = false;        // whether /sys/module could be read
};

// Reads the two places, which tests put elsewhere. Never fails: what cannot be read is left out. Takes some
// tens of microseconds, so not on the way to a guest's first instruction.
HostFacts read_host_facts(const std::string& cpuinfo = "/proc/cpuinfo",
                          const std::string& modules = "/sys/module");

// The processor's extension for guests ("Intel VT-x", "AMD-V"), whether it is in use or not; empty where it
// has none.
std::string_view processor_extension(const HostFacts& facts);

// A module alone does not tell (one that is built in is listed although it found no hardware), nor a flag
// alone (the processor could, but another KVM is loaded): both must be there.
HostKind classify_host(const HostFacts& facts);

// Whether the modules that work with the processor's extensions are missing while KVM is there: on a host
// that has made a VM, this is kNoHardware. Only two or three files are looked for, which takes a few
// microseconds.
bool lacks_hardware_modules(const std::string& modules = "/sys/module");

// How many bits of physical address the processor has. Asking it may trap, which takes some microseconds.
unsigned host_address_bits();

}  // namespace mayfly
