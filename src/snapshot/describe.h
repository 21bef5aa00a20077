// A snapshot's state for people.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "base/result.h"

namespace mayfly {

// Lines `what  value`, the first of which is the format's version alone ("v1.0.0", as programs ask for it):
// when and by what it was written, processor, memory, devices, sections. Printable ASCII. Errors: those of
// decode().
Result<std::string> describe_snapshot(std::span<const std::byte> bytes);

// "v1.0.0": what this program writes.
std::string snapshot_version_text();

}  // namespace mayfly
