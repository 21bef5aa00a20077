// Why a vCPU came back from the guest.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <variant>

namespace mayfly {

// What spans point at is the vCPU's area shared with the kernel, not guest memory: it is valid and steady
// until the next Vcpu::run(). Addresses, ports, sizes, counts and data are the guest's choice.

// `count` reads of `size` bytes (1, 2 or 4) from `port`; the caller fills `data`, size * count bytes.
struct PortRead {
  std::uint16_t port;
  std::uint8_t size;
  std::uint32_t count;
  std::span<std::uint8_t> data;
};
struct PortWrite {
  std::uint16_t port;
  std::uint8_t size;
  std::uint32_t count;
  std::span<const std::uint8_t> data;
};
// 1 to 8 bytes; the caller fills `data`.
struct MmioRead {
  std::uint64_t address;
  std::span<std::uint8_t> data;
};
struct MmioWrite {
  std::uint64_t address;
  std::span<const std::uint8_t> data;
};
// A signal, Vcpu::request_exit(), or a vCPU that was woken without anything to do: run again or look at the
// flags that the caller keeps.
struct Interrupted {};
// The guest halted where no interrupt controller is in the kernel to wake it.
struct Halted {};
// Triple fault.
struct GuestShutdown {};
// The guest asked through the hypervisor's own interface (KVM_SYSTEM_EVENT_*).
struct SystemEvent {
  std::uint32_t type;
};
// KVM could not go on: typically an instruction it cannot emulate (suberror 1), whose bytes `data` may hold.
struct InternalError {
  std::uint32_t suberror;
  std::uint32_t data_count;
  std::array<std::uint64_t, 16> data;  // the first `data_count`
};
// The processor refused to enter the guest.
struct EntryFailed {
  std::uint64_t hardware_reason;
  std::uint32_t cpu;
};
// KVM could not resolve an access to guest memory.
struct MemoryFaulted {
  std::uint64_t flags;
  std::uint64_t address;
  std::uint64_t size;
};
// Anything else: only what was enabled explicitly, or what a later KVM brings.
struct OtherExit {
  std::uint32_t reason;  // KVM_EXIT_*
};

using VcpuExit = std::variant<PortRead, PortWrite, MmioRead, MmioWrite, Interrupted, Halted, GuestShutdown,
                              SystemEvent, InternalError, EntryFailed, MemoryFaulted, OtherExit>;

// "KVM_EXIT_IO", or "KVM_EXIT_?" for a number past those known.
std::string_view exit_reason_name(std::uint32_t reason);
// "KVM_INTERNAL_ERROR_EMULATION" and its kin.
std::string_view internal_error_name(std::uint32_t suberror);

}  // namespace mayfly
