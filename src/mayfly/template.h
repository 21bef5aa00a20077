// The template: a process that has read a snapshot and keeps processes ready, each with a VM made and its
// memory mapped, that become clones of it.
#pragma once

#include "mayfly/failure.h"
#include "mayfly/options.h"

namespace mayfly {

// Serves POST /clone at `options.api_socket` until SIGTERM or SIGINT; clones that were born live on. The log
// is open, the crash handlers are installed, and there is one thread, this one. Also returns, by _exit(), in
// every clone. Failures: what stands against the snapshot, the host, the socket.
OrFailure<void> run_template(const Options& options);

}  // namespace mayfly
