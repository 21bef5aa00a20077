// What this process has of the kernel's that a test may look at for leaks.
#pragma once

#include <algorithm>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "support/temp_dir.h"

namespace mayfly::testing {

// What its descriptors and its mappings of memfds and of KVM's are of: sorted, each as often as there are of
// it.
inline std::vector<std::string> held() {
  std::vector<std::string> names;
  for (const auto& descriptor : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    names.push_back(std::filesystem::read_symlink(descriptor, gone).string());
  }
  for (const std::string& mapping : read_lines("/proc/self/maps")) {
    for (const char* const of : {"/memfd:", "anon_inode:kvm"}) {
      if (const auto at = mapping.find(of); at != std::string::npos) {
        names.push_back("mapping of " + mapping.substr(at));
      }
    }
  }
  std::ranges::sort(names);
  return names;
}

}  // namespace mayfly::testing
