// A microVM's configuration as a snapshot keeps it, there and back.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "memory/guest_address.h"
#include "snapshot/micro_vm_state.h"
#include "vmm/config.h"

namespace mayfly {

// What of `config` a snapshot keeps: the machine with its memory, what it was booted from, the processor and
// the metadata service. Of drives and networks their configuration, in its order, without what only the
// devices know. Error kInvalidArgument for a size of memory that cannot be.
Result<MicroVmState> saved_config(const VmConfig& config);

// The configuration that a state, which was checked, was saved of. A network's MAC address is the one that
// its guest knows, also where it was made up. kInvalidImage where this monitor has no such machine.
Result<VmConfig> config_of(const MicroVmState& state);

// The guest's memory, of which the memory file holds the bytes. kInvalidImage for a range that wraps.
Result<std::vector<GuestRange>> memory_ranges_of(const MicroVmState& state);

// Which place among the guest's virtio devices each has, by the order of the configuration: the root drive
// comes first, being the guest's /dev/vda, then the other drives, then the networks.
struct DeviceSlots {
  std::vector<std::uint32_t> drives;
  std::vector<std::uint32_t> networks;
};
DeviceSlots device_slots(const VmConfig& config);

}  // namespace mayfly
