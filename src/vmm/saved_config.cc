#include "vmm/saved_config.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "vmm/arch.h"

namespace mayfly {
namespace {

SavedPages saved_pages(HugePages pages) {
  switch (pages) {
    case HugePages::kNone:
      return SavedPages::kNone;
    case HugePages::kTransparent:
      return SavedPages::kTransparent;
    case HugePages::k2M:
      return SavedPages::k2M;
  }
  return SavedPages::kNone;
}

HugePages pages_of(SavedPages pages) {
  switch (pages) {
    case SavedPages::kNone:
      return HugePages::kNone;
    case SavedPages::kTransparent:
      return HugePages::kTransparent;
    case SavedPages::k2M:
      return HugePages::k2M;
  }
  return HugePages::kNone;
}

// The ranges that a machine of this monitor with so much memory has.
Result<std::vector<SavedRange>> ranges_of(std::uint64_t memory_size) {
  MAYFLY_TRY_ASSIGN(const auto ranges, guest_memory_ranges(memory_size));
  std::vector<SavedRange> saved;
  for (const GuestRange& range : ranges) {
    saved.push_back({.address = range.base().value(), .size = range.size()});
  }
  return saved;
}

}  // namespace

Result<std::vector<GuestRange>> memory_ranges_of(const MicroVmState& state) {
  std::vector<GuestRange> ranges;
  for (const SavedRange& range : state.memory) {
    const auto checked = GuestRange::make(GuestAddress(range.address), range.size);
    if (!checked) {
      return fail(ErrorCode::kInvalidImage, "section memory 0: a range wraps");
    }
    ranges.push_back(*checked);
  }
  return ranges;
}

DeviceSlots device_slots(const VmConfig& config) {
  DeviceSlots slots;
  const std::size_t drives = config.drives.size();
  const auto root = static_cast<std::size_t>(
      std::distance(config.drives.begin(), std::ranges::find_if(config.drives, &BlockDeviceConfig::is_root)));
  for (std::size_t index = 0; index < drives; ++index) {
    const std::size_t moved = root < drives && index < root ? index + 1 : index;
    slots.drives.push_back(static_cast<std::uint32_t>(index == root ? 0 : moved));
  }
  for (std::size_t index = 0; index < config.networks.size(); ++index) {
    slots.networks.push_back(static_cast<std::uint32_t>(drives + index));
  }
  return slots;
}

Result<MicroVmState> saved_config(const VmConfig& config) {
  MicroVmState state;
  state.machine = {.vcpu_count = config.machine.vcpu_count,
                   .smt = config.machine.smt,
                   .track_dirty_pages = config.machine.track_dirty_pages,
                   .huge_pages = saved_pages(config.machine.huge_pages)};
  MAYFLY_TRY_ASSIGN(state.memory, ranges_of(config.machine.mem_size_mib << 20));
  state.boot = SavedBoot{.kernel_image_path = config.boot_source.kernel_image_path,
                         .initrd_path = config.boot_source.initrd_path,
                         .boot_args = config.boot_source.boot_args,
                         .protocol = config.boot_source.protocol};
  state.cpu_template = config.cpu_template;
  state.mmds = config.mmds;
  const DeviceSlots slots = device_slots(config);
  for (std::size_t index = 0; index < config.drives.size(); ++index) {
    state.drives.push_back({.slot = slots.drives[index], .config = config.drives[index]});
  }
  for (std::size_t index = 0; index < config.networks.size(); ++index) {
    state.networks.push_back({.slot = slots.networks[index], .config = config.networks[index]});
  }
  return state;
}

Result<VmConfig> config_of(const MicroVmState& state) {
  const auto wrong = [](const std::string& what) { return fail(ErrorCode::kInvalidImage, what); };
  const std::uint64_t memory_size = state.memory_size();
  VmConfig config;
  config.machine = {.vcpu_count = state.machine.vcpu_count,
                    .mem_size_mib = memory_size >> 20,
                    .smt = state.machine.smt,
                    .track_dirty_pages = state.machine.track_dirty_pages,
                    .huge_pages = pages_of(state.machine.huge_pages)};
  if (const auto valid = config.machine.validate(); !valid) {
    return wrong("section machine 0: " + valid.error().message());
  }
  const auto ranges = ranges_of(config.machine.mem_size_mib << 20);
  if (!ranges || *ranges != state.memory) {
    return wrong("section memory 0: memory of a machine of this monitor lies elsewhere");
  }
  if (state.boot) {
    config.boot_source = {.kernel_image_path = state.boot->kernel_image_path,
                          .initrd_path = state.boot->initrd_path,
                          .boot_args = state.boot->boot_args,
                          .protocol = state.boot->protocol};
  }
  config.cpu_template = state.cpu_template;
  config.mmds = state.mmds;
  for (const SavedDrive& drive : state.drives) {
    config.drives.push_back(drive.config);
  }
  for (const SavedNetwork& network : state.networks) {
    config.networks.push_back(network.config);
    config.networks.back().mac = network.state.mac;
  }
  if (const auto valid = config.validate_devices(); !valid) {
    return wrong(valid.error().message());
  }
  // Where a device is says which one the guest takes it for.
  const DeviceSlots slots = device_slots(config);
  for (std::size_t index = 0; index < state.drives.size(); ++index) {
    if (state.drives[index].slot != slots.drives[index]) {
      return wrong("section drive " + std::to_string(index) +
                   ": it is in another slot than it would have been");
    }
  }
  for (std::size_t index = 0; index < state.networks.size(); ++index) {
    if (state.networks[index].slot != slots.networks[index]) {
      return wrong("section network " + std::to_string(index) +
                   ": it is in another slot than it would have been");
    }
  }
  return config;
}

}  // namespace mayfly
