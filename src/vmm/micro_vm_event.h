// What happens to a microVM over its life, as told to whoever follows it: plain data.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "vmm/outcome.h"

namespace mayfly {

struct MicroVmEvent {
  enum class Kind : std::uint8_t {
    kStarting,     // the machine is about to be made
    kStartFailed,  // nothing runs, and nothing has changed; may be tried again
    kRunning,      // the guest's first instruction is on its way
    kBootMark,     // the guest considers itself booted
    kPaused,
    kResumed,
    kDeviceError,  // a device works no more until its driver resets it, or its link is down for good
    kEnded,        // the last one
  };

  Kind kind;
  std::uint64_t time_us;             // since 1970-01-01 UTC
  std::string detail{};              // kStartFailed, kDeviceError: what is wrong
  std::string device{};              // kDeviceError: its name, "drive rootfs"
  std::optional<Outcome> outcome{};  // kEnded
};

}  // namespace mayfly
