// The device nodes of a jail.
#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>
#include <vector>

namespace mayfly::jail {

struct Device {
  std::string path;  // in /dev, here and there: "net/tun"
  unsigned major;
  unsigned minor;
};

// What a monitor needs and nothing else: KVM, taps, random numbers, and userfaultfd where the host has it.
// Numbers are those of the kernel's list (Documentation/admin-guide/devices.txt), but for userfaultfd, whose
// minor is handed out at boot: `misc` is the text of /proc/misc.
std::vector<Device> jail_devices(std::string_view misc);

}  // namespace mayfly::jail
