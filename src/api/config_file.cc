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
  for (const std::string_view key : {"balloon", "vsock", "entropy", "pmem", "memory-hotplug"}) {
    refuse_section(file, key, kNoDevice);
  }

  // Reads the section into `target`, where it is there.
  const auto take = [&](const std::string& key, const auto& read, auto& target) -> Result<void> {
    const json* section = file.value(key);
    if (section == nullptr) {
      return {};
    }
    auto taken = read(*section, key);
    if (!taken) {
      return tl::make_unexpected(taken.error().within(name));
    }
    target = std::move(*taken);
    return {};
  };
  const auto list_of = [](auto read_one) {
    return [read_one](const json& list, const std::string& key) {
      using Element = typename decltype(read_one(list, key))::value_type;
      return read_list<Element>(list, key, read_one);
    };
  };
  MachineSection machine;
  MAYFLY_TRY(take("machine-config", read_machine_config, machine));
  config.machine = machine.machine;
  if (const json* section = file.value("cpu-config"); section != nullptr && section->is_string()) {
    config.cpu_config_path = file.string("cpu-config");
  } else {
    MAYFLY_TRY(take("cpu-config", read_cpu_config, config.cpu_template));
  }
  MAYFLY_TRY(take("boot-source", read_boot_source, config.boot_source));
  MAYFLY_TRY(take("drives", list_of(read_drive), config.drives));
  MAYFLY_TRY(take("network-interfaces", list_of(read_network), config.networks));
  MAYFLY_TRY(take("mmds-config", read_mmds_config, config.mmds));
  MAYFLY_TRY(take("logger", read_logger, config.logger));
  MAYFLY_TRY(take("metrics", read_metrics, config.metrics));
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
