// A network namespace of the test's own.
#pragma once

#include <optional>
#include <string>

namespace mayfly::testing {

// Moves this process, which must have one thread only, into a new network namespace (and a new user namespace
// where it is not root). Says why not where the host does not allow it.
std::optional<std::string> enter_private_network();

// Runs `command` by the shell; whether it succeeded.
bool run(const std::string& command);

}  // namespace mayfly::testing
