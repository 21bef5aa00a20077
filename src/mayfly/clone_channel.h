// What a template and a process of its pool say to each other: packets of a socket pair.
//
// The process says that it is ready, hears its order (api/clone_call.h), says which files it has made, and
// that its guest runs or why there is none; then it closes its end. The end of either ends the other's wait.
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mayfly {

// What a message begins with; the rest is its text.
inline constexpr char kReady = 'R';
inline constexpr char kMade = 'M';    // the bytes of a NewOutput
inline constexpr char kBorn = 'B';    // no text
inline constexpr char kFailed = 'F';  // why

// Both ends. Errors: of the host's, where there are no more descriptors.
Result<std::array<UniqueFd, 2>> make_clone_channel();

// One message of at most 4096 bytes; the end of a longer text is cut. Never waits for a reader, nor fails
// where there is none.
void say(const UniqueFd& channel, char what, std::string_view text = {});

// Waits for the other end's next message; empty where it has gone.
std::string hear(const UniqueFd& channel);

}  // namespace mayfly
