// What the process says by its exit status. Callers of the monitor read these numbers: they never change.
#pragma once

#include <cstdint>

namespace mayfly {

// 128 + n, with n from 20 on, so that none is mistaken for a death by signal as a shell reports it.
enum class ExitCode : std::uint8_t {
  kOk = 0,                    // the guest reset or powered off, or the monitor was asked to stop
  kError = 1,                 // anything that has no number of its own
  kForbiddenSyscall = 148,    // SIGSYS: a system call that the seccomp filter does not allow
  kBusError = 149,            // SIGBUS: a mapped file shrank, or memory failed
  kSegmentationFault = 150,   // SIGSEGV
  kFileSizeLimit = 151,       // not used: at SIGXFSZ the write fails and the monitor goes on. Kept reserved
  kBadConfiguration = 152,    // the configuration (file or start-up request) cannot be used
  kBadArguments = 153,        // the command line cannot be used
  kCpuTimeLimit = 154,        // SIGXCPU
  kHangUp = 156,              // SIGHUP
  kIllegalInstruction = 157,  // SIGILL
};

}  // namespace mayfly
