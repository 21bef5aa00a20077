// What this program calls itself.
#pragma once

#include <string>

namespace mayfly {

// "mayfly 0.1.0 (Firecracker API dialect 1.17)"
std::string version_text();

// "0.1.0"
std::string monitor_version();

}  // namespace mayfly
