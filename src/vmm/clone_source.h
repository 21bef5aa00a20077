// A snapshot made ready for many clones: read, checked and compared with this host once, by the process that
// they are forked from; then made into the place of one clone, by the process that the clone is to be.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/guest_memory.h"
#include "snapshot/micro_vm_state.h"
#include "vmm/arch.h"
#include "vmm/build_error.h"
#include "vmm/config.h"
#include "vmm/machine.h"

namespace mayfly {

// A state file's bytes. A FIFO or a device, on which the monitor might wait without end, is none.
Result<std::string> read_snapshot_state(const std::string& path);

// The guest memory that `state` was saved with, out of `file`, which `name` names in errors. kInvalidImage
// where the file is of another snapshot than the state.
Result<GuestMemory> load_saved_memory(const MicroVmState& state, HugePages pages, UniqueFd file,
                                      const std::string& name, const std::string& state_path);

// What a clone needs before anybody knows whose it is to be: all of its machine but devices and threads, and
// what is to be put into it.
struct ClonePlace {
  VmConfig config;
  MicroVmState state;  // its vCPUs are in the frame
  MachineFrame frame;
  std::vector<std::string> files;  // that it is from
};

class CloneSource {
 public:
  // Opens both files, for good: what is at their paths later does not matter. Makes no VM. Errors as
  // MicroVm::load_snapshot()'s.
  static tl::expected<CloneSource, BuildError> open(const std::string& state_path,
                                                    const std::string& memory_path);

  // As it was saved.
  const VmConfig& config() const { return config_; }

  // Makes the VM, in the process that is to run it. Once: the copy of the source that this process was forked
  // with becomes the place. Memory is mapped private out of the file. Errors of the host's.
  Result<ClonePlace> make_place() &&;

 private:
  CloneSource(std::vector<std::string> files, VmConfig config, MicroVmState state, UniqueFd memory,
              std::string memory_name, OpenKvm kvm, Processor processor)
      : files_(std::move(files)),
        config_(std::move(config)),
        state_(std::move(state)),
        memory_(std::move(memory)),
        memory_name_(std::move(memory_name)),
        kvm_(std::move(kvm)),
        processor_(std::move(processor)) {}

  std::vector<std::string> files_;
  VmConfig config_;
  MicroVmState state_;
  UniqueFd memory_;
  std::string memory_name_;
  OpenKvm kvm_;
  Processor processor_;
};

}  // namespace mayfly
