// All of a microVM that goes into a snapshot, but for its memory: plain data, to bytes and back.
#pragma once

#include <linux/kvm.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "boot/boot.h"
#include "devices/power/power.h"
#include "devices/serial/serial.h"
#include "devices/virtio/block/block_config.h"
#include "devices/virtio/block/block_device.h"
#include "devices/virtio/net/net_config.h"
#include "devices/virtio/net/net_device.h"
#include "devices/virtio/transport/mmio_transport.h"
#include "kvm/arch.h"
#include "mmds/mmds_config.h"
#include "snapshot/container.h"

namespace mayfly {

// Backing of guest memory as the dialect names it.
enum class SavedPages : std::uint8_t { kNone, kTransparent, k2M };

// What the machine is, beside its devices.
struct SavedMachine {
  std::uint32_t vcpu_count = 0;
  bool smt = false;
  bool track_dirty_pages = false;
  SavedPages huge_pages = SavedPages::kNone;
};

// A piece of guest memory: of whole 4 KiB pages.
struct SavedRange {
  std::uint64_t address = 0;  // the guest's
  std::uint64_t size = 0;     // bytes

  friend bool operator==(const SavedRange&, const SavedRange&) = default;
};

// What it was booted from. A restored guest needs none of it; who asks for its configuration is told.
struct SavedBoot {
  std::string kernel_image_path;
  std::optional<std::string> initrd_path;
  std::optional<std::string> boot_args;
  BootProtocolChoice protocol = BootProtocolChoice::kAuto;
};

struct SavedDrive {
  std::uint32_t slot = 0;     // which of the virtio windows, and so which line and address
  std::uint64_t sectors = 0;  // what the guest was told of the size; an image of another size is another disk
  BlockDeviceConfig config{};
  MmioTransportState registers{};
  BlockDeviceState state{};
};

struct SavedNetwork {
  std::uint32_t slot = 0;
  NetDeviceConfig config{};
  MmioTransportState registers{};
  NetDeviceState state{};
};

// A random number that is in guest memory, too, at a place that no guest uses: so that a state file is not
// taken for one of another memory file.
using SnapshotMark = std::array<std::uint8_t, 16>;

struct MicroVmState {
  static constexpr std::uint32_t kMaxVcpus = 32;
  static constexpr std::size_t kMaxDevices = 18;  // drives and network interfaces together
  static constexpr std::size_t kMaxRanges = 16;

  std::uint64_t created_ns = 0;  // since 1970, UTC; 0: not said
  std::string producer{};        // the program that wrote it: "mayfly 0.1.0"; may be empty
  SavedMachine machine{};
  // In the order in which the memory file has them: ascending, without overlap.
  std::vector<SavedRange> memory{};
  std::optional<SavedBoot> boot{};
  std::optional<arch::CpuTemplate> cpu_template{};
  std::vector<arch::VcpuState> vcpus{};  // by id, from 0 on
  arch::PlatformState platform{};
  kvm_clock_data clock{};  // KVM_GET_CLOCK (api.rst 4.29)
  SerialState serial{};
  PowerState power{};
  // In the order of the configuration.
  std::vector<SavedDrive> drives{};
  std::vector<SavedNetwork> networks{};
  std::optional<MmdsConfig> mmds{};
  std::optional<SnapshotMark> mark{};
  std::optional<SnapshotMark> base{};  // of a Diff: the mark of the snapshot that it is onto

  std::uint64_t memory_size() const;  // bytes of all ranges

  // What cannot be of a state that was decoded or is to be encoded, whatever the host: counts, duplicates,
  // ranges, configurations that contradict themselves. kInvalidImage, naming the section. What only a device
  // can tell of its own state is said by its restore().
  Result<void> check() const;
};

// The file. A broken invariant of ours (a state that does not check()): kInternal.
Result<std::vector<std::byte>> encode(const MicroVmState& state);

// The state that `bytes`, of anyone's making, hold. Nothing is allocated that the bytes do not account for.
// Errors, each naming the section and the cause: kInvalidImage for what is no snapshot, is damaged, cut off,
// lacks a section or contradicts itself; kUnsupported for another architecture, another version of the format
// or of a section, and a section that is unknown and not optional. Whether it fits this host is another
// question: arch::check_cpuid_fits().
Result<MicroVmState> decode(std::span<const std::byte> bytes);

}  // namespace mayfly
