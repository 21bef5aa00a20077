// A snapshot on its way to its two files.
//
// Who takes one of a microVM that is paused:
//
//   SnapshotJob::create()    any thread        the files, under no name yet
//   MicroVm::capture()       the owner's       what there is to write
//   write()                  any thread,       while the owner's waits: devices bring nothing meanwhile
//   commit()                 any thread        both files on the disk, then under their names
//
// Each file takes the place of its former one at one moment, the memory first. Who is killed between the two
// leaves a state file beside memory that is not its own: a load refuses them, by the mark that both carry.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/atomic_file.h"
#include "base/result.h"
#include "memory/guest_memory.h"
#include "memory/memory_file.h"

namespace mayfly {

enum class SnapshotKind : std::uint8_t {
  kFull,  // all of memory
  kDiff,  // what has changed since the snapshot before
};

// What a snapshot is to be, and where it is to go.
struct SnapshotRequest {
  std::string state_path;
  std::string memory_path;
  SnapshotKind kind = SnapshotKind::kFull;
  bool live = false;  // the guest runs while most of its memory is written
};

// A microVM at one moment. Its memory is borrowed, and is of that moment as long as the microVM stands still.
struct CapturedVm {
  std::vector<std::byte> state;  // the state file
  const GuestMemory* memory = nullptr;
  MemoryFileOptions options{};
};

class SnapshotJob {
 public:
  // kInvalidArgument where both are one file; else as AtomicFile::create().
  static Result<SnapshotJob> create(const SnapshotRequest& request);

  Result<WrittenMemory> write(const CapturedVm& captured);
  // Once, after write(). Errors as AtomicFile::commit(): the former snapshot is as it was, unless the error
  // says otherwise.
  Result<void> commit();

 private:
  SnapshotJob(AtomicFile state, AtomicFile memory) : state_(std::move(state)), memory_(std::move(memory)) {}

  AtomicFile state_;
  AtomicFile memory_;
};

}  // namespace mayfly
