// Names that a policy may use for the values of arguments.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace mayfly::seccomp {

// The value of a constant of the kernel's interface by its name there ("KVM_RUN"), or nothing.
std::optional<std::uint64_t> constant(std::string_view name);

// Which bits of an argument the kernel looks at: 32 where it takes an int, what is above them being whatever
// was left in the register.
std::uint64_t argument_bits(std::string_view call, unsigned index);

}  // namespace mayfly::seccomp
