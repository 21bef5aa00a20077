// The life of a process of a template's pool: it waits, and becomes a clone.
#pragma once

#include <string>

#include "base/unique_fd.h"
#include "mayfly/options.h"
#include "vmm/clone_source.h"

namespace mayfly {

// What a template tells each of them. Borrowed.
struct CloneOrigin {
  const Options& options;            // the template's
  const std::string& socket_folder;  // where its clones' sockets are by default; ends in '/', or empty
};

// In a process that has left the template: makes a VM of `source`, waits at `channel` for its order, runs the
// clone to its end, and ends. Nothing of the template's is destroyed in it: its memory is shared until it is
// written. Says at the channel whatever clone_channel.h has a word for; later its log tells.
[[noreturn]] void become_clone(const CloneOrigin& origin, CloneSource&& source, UniqueFd channel);

}  // namespace mayfly
