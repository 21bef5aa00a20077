// The file of compiled filters, which mayfly-seccomp writes and Filters::parse() reads, without gaps and in
// the byte order of the processor that it is for:
//
//   kMagic
//   std::uint32_t kVersion
//   std::uint32_t kArchitecture
//   then for each thread, in the order of FilteredThread:
//     std::uint32_t  how many instructions its program has; 0 only where may_lack() the thread, which then
//                    gets the filter that is built into the monitor (Filters::complete())
//     sock_filter    each of these
#pragma once

#include <linux/audit.h>

#include <cstdint>
#include <string_view>

namespace mayfly::seccomp_format {

inline constexpr std::string_view kMagic = "MAYFLYSC";
inline constexpr std::uint32_t kVersion = 3;

#if defined(__x86_64__)
inline constexpr std::uint32_t kArchitecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
inline constexpr std::uint32_t kArchitecture = AUDIT_ARCH_AARCH64;
#endif

// Stands in a program for the id of the monitor's process, which is known only when the program is loaded.
// More than any process id (PID_MAX_LIMIT is 2^22), and no other number of a policy's.
inline constexpr std::uint32_t kOwnProcess = 0x6d61'7966;

}  // namespace mayfly::seccomp_format
