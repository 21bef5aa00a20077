#include "api/config_file.h"

#include <nlohmann/json.hpp>

#include "api/json_object.h"
#include "api/sections.h"
#include "base/file.h"

namespace mayfly::api {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxFileSize = std::size_t{1} << 20;

// The elements of a list, each read by `read_one` and called "key[index]" in errors.
template <typename Element, typename Read>
Result<std::vector<Element>> read_list(const json& list, std::string_view key, Read read_one) {
  if (!list.is_array()) {
    return fail(ErrorCode::kInvalidArgument, "field \"" + std::string(key) + "\" must be a list");
  }
  std::vector<Element> elements;
  for (const json& value : list) {
    MAYFLY_TRY_ASSIGN(auto element,
                      read_one(value, std::string(key) + "[" + std::to_string(elements.size()) + "]"));
    elements.push_back(std::move(element));
  }
  return elements;
}

// A section this build has nothing to do with: absent, null and an empty list are fine.
void refuse_section(JsonObject& file, std::string_view key, std::string_view why) {
  const json* value = file.value(key);
  if (value != nullptr && !(value->is_array() && value->empty())) {
    file.refuse(key, why);
  }
}

}  // namespace

Result<ConfigFile> parse_config_file(std::string_view text, std::string_view name) {
  MAYFLY_TRY_ASSIGN(const json value, parse_json(text, name));
  JsonObject file(value, std::string(name));
  ConfigFile config;
  file.require("boot-source");
  file.require("drives");

  constexpr std::string_view kNoDevice = "this monitor has no such device, on purpose; leave it out";
  refuse_section(file, "mmds-config", "the metadata service is not supported yet; leave it out");
  for (const std::string_view key : {"balloon", "vsock", "entropy", "pmem", "memory-hotplug"}) {
    refuse_section(file, key, kNoDevice);
  }

  const auto in_file = [&](const Error& error) { return tl::make_unexpected(error.within(name)); };
  if (const json* section = file.value("machine-config")) {
    auto machine = read_machine_config(*section, "machine-config");
    if (!machine) {
      return in_file(machine.error());
    }
    config.machine = machine->machine;
  }
  if (const json* section = file.value("cpu-config")) {
    if (section->is_string()) {
      config.cpu_config_path = file.string("cpu-config");
    } else if (auto cpu_template = read_cpu_config(*section, "cpu-config")) {
      config.cpu_template = std::move(*cpu_template);
    } else {
      return in_file(cpu_template.error());
    }
  }
  if (const json* section = file.value("boot-source")) {
    auto boot_source = read_boot_source(*section, "boot-source");
    if (!boot_source) {
      return in_file(boot_source.error());
    }
    config.boot_source = std::move(*boot_source);
  }
  if (const json* section = file.value("drives")) {
    auto drives = read_list<BlockDeviceConfig>(*section, "drives", read_drive);
    if (!drives) {
      return in_file(drives.error());
    }
    config.drives = std::move(*drives);
  }
  if (const json* section = file.value("network-interfaces")) {
    auto networks = read_list<NetDeviceConfig>(*section, "network-interfaces", read_network);
    if (!networks) {
      return in_file(networks.error());
    }
    config.networks = std::move(*networks);
  }
  if (const json* section = file.value("logger")) {
    auto logger = read_logger(*section, "logger");
    if (!logger) {
      return in_file(logger.error());
    }
    config.logger = std::move(*logger);
  }
  if (const json* section = file.value("metrics")) {
    auto metrics = read_metrics(*section, "metrics");
    if (!metrics) {
      return in_file(metrics.error());
    }
    config.metrics = std::move(*metrics);
  }
  MAYFLY_TRY(file.finish());
  return config;
}

Result<ConfigFile> read_config_file(const std::string& path) {
  MAYFLY_TRY_ASSIGN(const std::string text, read_file(path, "configuration file", kMaxFileSize));
  MAYFLY_TRY_ASSIGN(ConfigFile config, parse_config_file(text, "configuration file " + path));
  if (config.cpu_config_path) {
    const std::string name = "CPU template " + *config.cpu_config_path;
    MAYFLY_TRY_ASSIGN(const std::string content,
                      read_file(*config.cpu_config_path, "CPU template", kMaxFileSize));
    MAYFLY_TRY_ASSIGN(const json value, parse_json(content, name));
    MAYFLY_TRY_ASSIGN(config.cpu_template, read_cpu_config(value, name));
  }
  return config;
}

}  // namespace mayfly::api
