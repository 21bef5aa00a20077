// What `ps` and /proc show as this process's arguments.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace mayfly {

// What set_process_arguments() has to know of this process, and of all that are forked from it. Optional: the
// first call asks otherwise, which takes longer.
void prepare_process_arguments();

// Makes `arguments` those that /proc/self/cmdline shows; to be called again and again, by one thread at a
// time. Where the kernel does not let a process say where its arguments lie (prctl(2), PR_SET_MM_MAP), they
// are written over those it was started with. False where they find no room there: nothing has changed.
bool set_process_arguments(const std::vector<std::string>& arguments);

// How a clone's arguments begin, so that whoever lists microVMs (processes.h) knows it for one; the rest are
// flags of `mayfly run`.
inline constexpr std::string_view kCloneMark = "[clone of ";
// The same for a template's forks that are no clone yet, or never will be one: nobody lists them.
inline constexpr std::string_view kForkMark = "[fork of template ";

}  // namespace mayfly
