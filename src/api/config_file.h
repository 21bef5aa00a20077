// The dialect's configuration file: one JSON object with the keys of GET /vm/config.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/log_sections.h"
#include "base/result.h"
#include "devices/virtio/block/block_config.h"
#include "devices/virtio/net/net_config.h"
#include "kvm/arch.h"
#include "vmm/config.h"

namespace mayfly::api {

struct ConfigFile {
  MachineConfig machine;
  BootSourceConfig boot_source;
  std::vector<BlockDeviceConfig> drives;
  std::vector<NetDeviceConfig> networks;
  std::optional<arch::CpuTemplate> cpu_template;
  std::optional<std::string> cpu_config_path;  // of a file that holds it
  std::optional<LoggerSection> logger;
  std::optional<MetricsSection> metrics;
};

// Parses the text of a configuration file; `name` is what errors call it. `drives` and `boot-source` must be
// there. Refused with the section's and the field's name: unknown keys, wrong types, values out of range, and
// sections that need a device this monitor does not have.
Result<ConfigFile> parse_config_file(std::string_view text, std::string_view name);

// Reads and parses the file at `path`: a regular file or a FIFO of at most 1 MiB; also that of the CPU
// template, where the section names one.
Result<ConfigFile> read_config_file(const std::string& path);

}  // namespace mayfly::api
