// A snapshot on its way to its two files.
//
// Who takes one of a microVM:
//
//   SnapshotJob::create()    any thread        the files, under no name yet
//   MicroVm::begin_live()    the owner's       } of one that goes on meanwhile: what it writes is logged,
//   write_ahead()            any thread        } and nearly all of its memory written
//   MicroVm::capture()       the owner's       it is paused: what there is to write
//   write()                  any thread,       while the owner's waits: devices bring nothing meanwhile
//   commit()                 any thread        both files on the disk, then under their names
//   MicroVm::end_snapshot()  the owner's       whatever came of it
//
// Each file takes the place of its former one at one moment, the memory first. Who is killed between the two
// leaves a state file beside memory that is not its own: a load refuses them, by the mark that both carry.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/atomic_file.h"
#include "base/result.h"
#include "memory/guest_memory.h"
#include "memory/memory_file.h"
#include "memory/page_extents.h"
#include "memory/precopy.h"

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

// The memory of a microVM that runs, and the log of what is written to it. All is borrowed.
struct LiveMemory {
  const GuestMemory* memory = nullptr;
  DirtyPageSource* log = nullptr;
  MemoryFileOptions options{};
};

// A microVM at one moment. Its memory is borrowed, and is of that moment as long as the microVM stands still.
struct CapturedVm {
  struct AllAsDiff {};  // all of its memory onto whatever is there: zeros, too
  struct All {};        // of its memory
  struct OwnPages {};   // those that are no longer the ones of the file that it was loaded from
  struct Rest {         // what is not written ahead
    DirtyPageSource* log;
  };
  struct Pages {
    const PageSet* pages;
  };

  std::vector<std::byte> state;  // the state file
  const GuestMemory* memory = nullptr;
  MemoryFileOptions options{};
  std::variant<All, AllAsDiff, OwnPages, Rest, Pages> content{};
};

class SnapshotJob {
 public:
  // kInvalidArgument where both are one file; else as AtomicFile::create().
  static Result<SnapshotJob> create(const SnapshotRequest& request);

  // Once, before write().
  Result<void> write_ahead(const LiveMemory& live);
  Result<WrittenMemory> write(const CapturedVm& captured);
  // Once, after write(). Errors as AtomicFile::sync_by_pieces() and publish_pair(): the former snapshot is as
  // it was, unless the error says otherwise. `proceed` is asked every now and then while memory goes to the
  // disk: where it says no, the snapshot is given up, with kBusy.
  Result<void> commit(const std::function<bool()>& proceed);

 private:
  SnapshotJob(AtomicFile state, AtomicFile memory) : state_(std::move(state)), memory_(std::move(memory)) {}

  NamedFile memory_file() const { return {memory_.descriptor(), memory_.name()}; }
  Result<WrittenMemory> write_memory(const CapturedVm& captured);
  Result<WrittenMemory> write_pages(const CapturedVm& captured, const PageSet& pages);

  AtomicFile state_;
  AtomicFile memory_;
  PrecopyOutcome ahead_;
};

}  // namespace mayfly
