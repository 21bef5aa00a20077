// What a microVM is to be: plain data, filled by the API, the configuration file or the command line.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "boot/boot.h"
#include "devices/virtio/block/block_config.h"
#include "devices/virtio/net/net_config.h"
#include "kvm/arch.h"

namespace mayfly {

// Backing of guest memory as the dialect names it.
enum class HugePages : std::uint8_t { kNone, kTransparent, k2M };

// 4 TiB. What the host's processor can address may be less: check_address_bits().
inline constexpr std::uint64_t kMaxMemoryMib = std::uint64_t{4} << 20;

inline constexpr std::uint32_t kMaxVcpus = 32;
inline constexpr std::size_t kMaxVirtioDevices = 18;  // drives and network interfaces together

struct MachineConfig {
  std::uint32_t vcpu_count = 1;  // 1..kMaxVcpus; with smt 1 or even
  std::uint64_t mem_size_mib = 128;
  bool smt = false;
  bool track_dirty_pages = false;
  HugePages huge_pages = HugePages::kNone;

  // kInvalidArgument naming the field and its limits.
  Result<void> validate() const;

  // kInvalidArgument naming mem_size_mib and its limit where guest memory ends beyond what so many bits of
  // physical address reach. For a valid configuration. `bits` is asked only where memory goes beyond 4 GiB,
  // which every processor reaches: the CPUID instruction may trap.
  Result<void> check_address_bits(unsigned (*bits)()) const;
};

struct BootSourceConfig {
  std::string kernel_image_path;
  std::optional<std::string> initrd_path;
  std::optional<std::string> boot_args;  // absent: kDefaultBootArgs
  BootProtocolChoice protocol = BootProtocolChoice::kAuto;
};

// The kernel command line where the caller gives none: console on the serial port, reboot by the i8042 (the
// quickest that every kernel knows), and a panic ends the microVM after a second.
inline constexpr const char* kDefaultBootArgs = "console=ttyS0 reboot=k panic=1";

struct VmConfig {
  MachineConfig machine;
  BootSourceConfig boot_source;
  std::vector<BlockDeviceConfig> drives;
  std::vector<NetDeviceConfig> networks;
  std::optional<arch::CpuTemplate> cpu_template;  // absent: the host's processor, as far as guests get it

  // Checks what the drives and networks are as a whole: that ids, MAC addresses and taps differ, that there
  // is at most one root drive, and that they find room. kInvalidArgument, naming the drive or the interface.
  Result<void> validate_devices() const;
};

}  // namespace mayfly
