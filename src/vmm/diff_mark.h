// What a memory file says of itself, in the page of the VM generation id (devices/vmgenid/vmgenid.h).
//
// RAM, and so every memory file, begins at address 0 and has that page; of a file that ends before it all is
// zeros. The guest may have written there: what is read is as untrusted as the rest of the file.
#pragma once

#include "base/result.h"
#include "devices/vmgenid/vmgenid.h"
#include "memory/memory_file.h"

namespace mayfly {

struct MemoryMarks {
  RandomId mark{};    // of its snapshot
  RandomId base{};    // of a diff: that of what it is a diff to; else, or where that had none, zeros
  DiffPages pages{};  // of a diff: which it has; count 0: it is none, or an earlier version wrote it
};

// Errors, of all: the host's, with the file's name.
Result<MemoryMarks> read_memory_marks(const NamedFile& file);

// Notes in a file that is a diff, and has that page, which pages it has.
Result<void> note_diff_pages(const NamedFile& file);
// Writes `base`, and that the file has no pages of a diff.
Result<void> write_base_mark(const NamedFile& file, const RandomId& base);

}  // namespace mayfly
