#include "api/config_file.h"

#include <array>
#include <limits>
#include <nlohmann/json.hpp>

#include "api/json_object.h"
#include "base/file.h"
#include "rate_limiter/rate_limiter.h"

namespace mayfly::api {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxFileSize = std::size_t{1} << 20;

Result<MachineConfig> read_machine_config(const json& value) {
  JsonObject object(value, "machine-config");
  MachineConfig config;
  object.require("vcpu_count");
  object.require("mem_size_mib");
  if (const auto count = object.integer("vcpu_count", 1, 32)) {
    config.vcpu_count = static_cast<std::uint32_t>(*count);
  }
  config.mem_size_mib = object.integer("mem_size_mib", 1, kMaxMemoryMib).value_or(config.mem_size_mib);
  config.smt = object.boolean("smt").value_or(config.smt);
  config.track_dirty_pages = object.boolean("track_dirty_pages").value_or(config.track_dirty_pages);
  static constexpr std::array<std::string_view, 3> kHugePages = {"None", "Transparent", "2M"};
  if (const auto index = object.choice("huge_pages", kHugePages)) {
    config.huge_pages = static_cast<HugePages>(*index);
  }
  if (const auto name = object.string("cpu_template"); name && *name != "None") {
    object.refuse("cpu_template", "CPU templates are not supported yet; leave it out or set it to None");
  }
  if (config.track_dirty_pages) {
    object.refuse("track_dirty_pages", "snapshots are not supported yet; leave it out or set it to false");
  }
  MAYFLY_TRY(object.finish());
  if (auto valid = config.validate(); !valid) {
    return tl::make_unexpected(valid.error().within("machine-config"));
  }
  return config;
}

Result<BootSourceConfig> read_boot_source(const json& value) {
  JsonObject object(value, "boot-source");
  BootSourceConfig config;
  object.require("kernel_image_path");
  config.kernel_image_path = object.string("kernel_image_path").value_or("");
  config.initrd_path = object.string("initrd_path");
  config.boot_args = object.string("boot_args");
  MAYFLY_TRY(object.finish());
  return config;
}

Result<LoggerSection> read_logger(const json& value) {
  JsonObject object(value, "logger");
  LoggerSection section;
  section.log_path = object.string("log_path");
  section.level = object.string("level");
  section.show_level = object.boolean("show_level");
  section.show_log_origin = object.boolean("show_log_origin");
  section.module = object.string("module");
  MAYFLY_TRY(object.finish());
  return section;
}

Result<MetricsSection> read_metrics(const json& value) {
  JsonObject object(value, "metrics");
  MetricsSection section;
  object.require("metrics_path");
  section.metrics_path = object.string("metrics_path").value_or("");
  section.emit_id = object.boolean("emit_id").value_or(false);
  if (const json* properties = object.value("properties")) {
    JsonObject map(*properties, "metrics.properties");
    if (properties->is_object()) {
      for (const auto& [key, unused] : properties->items()) {
        if (auto text = map.string(key)) {
          section.properties.emplace(key, std::move(*text));
        }
      }
    }
    MAYFLY_TRY(map.finish());
  }
  MAYFLY_TRY(object.finish());
  return section;
}

// The overlay of a drive: "memory", or the path of its file.
BlockOverlayConfig overlay_of(std::string place) {
  return place == "memory" ? BlockOverlayConfig{} : BlockOverlayConfig{.path = std::move(place)};
}

Result<TokenBucketConfig> read_token_bucket(const json& value, const std::string& path) {
  constexpr std::uint64_t kAny = std::numeric_limits<std::uint64_t>::max();
  JsonObject object(value, path);
  TokenBucketConfig bucket;
  object.require("size");
  object.require("refill_time");
  bucket.size = object.integer("size", 0, kAny).value_or(0);
  bucket.refill_time_ms = object.integer("refill_time", 0, kAny).value_or(0);
  bucket.one_time_burst = object.integer("one_time_burst", 0, kAny).value_or(0);
  MAYFLY_TRY(object.finish());
  return bucket;
}

Result<RateLimiterConfig> read_rate_limiter(const json& value, const std::string& path) {
  JsonObject object(value, path);
  RateLimiterConfig limiter;
  if (const json* bucket = object.value("bandwidth")) {
    MAYFLY_TRY_ASSIGN(limiter.bandwidth, read_token_bucket(*bucket, path + ".bandwidth"));
  }
  if (const json* bucket = object.value("ops")) {
    MAYFLY_TRY_ASSIGN(limiter.ops, read_token_bucket(*bucket, path + ".ops"));
  }
  MAYFLY_TRY(object.finish());
  return limiter;
}

Result<BlockDeviceConfig> read_drive(const json& value, const std::string& path) {
  JsonObject object(value, path);
  BlockDeviceConfig drive;
  object.require("drive_id");
  object.require("is_root_device");
  object.require("path_on_host");
  drive.id = object.string("drive_id").value_or("");
  drive.is_root = object.boolean("is_root_device").value_or(false);
  drive.path = object.string("path_on_host").value_or("");
  drive.partuuid = object.string("partuuid");
  drive.read_only = object.boolean("is_read_only").value_or(drive.read_only);
  drive.discard = object.boolean("discard").value_or(drive.discard);
  static constexpr std::array<std::string_view, 2> kCacheTypes = {"Unsafe", "Writeback"};
  if (const auto index = object.choice("cache_type", kCacheTypes)) {
    drive.cache_type = static_cast<BlockCacheType>(*index);
  }
  static constexpr std::array<std::string_view, 2> kEngines = {"Sync", "Async"};
  if (const auto index = object.choice("io_engine", kEngines)) {
    drive.engine = static_cast<BlockEngineType>(*index);
  }
  if (const auto count = object.integer("num_queues", 1, BlockDeviceConfig::kMaxQueues)) {
    drive.queue_count = static_cast<unsigned>(*count);
  }
  drive.lock = object.boolean("lock").value_or(drive.lock);
  if (auto overlay = object.string("overlay")) {
    drive.overlay = overlay_of(std::move(*overlay));
  }
  if (const json* limiter = object.value("rate_limiter")) {
    MAYFLY_TRY_ASSIGN(drive.rate_limiter, read_rate_limiter(*limiter, path + ".rate_limiter"));
  }
  MAYFLY_TRY(object.finish());
  if (auto valid = drive.validate(); !valid) {
    return tl::make_unexpected(valid.error().within(path));
  }
  return drive;
}

// A network behind passt. `object` holds the fields that only this kind of back end has.
Result<UserNetConfig> read_user_network(JsonObject& object) {
  UserNetConfig user;
  user.host_loopback = object.boolean("host_loopback").value_or(false);
  if (const json* forwards = object.value("forward")) {
    if (!forwards->is_array()) {
      object.refuse("forward", "must be a list of strings such as \"8080:80\"");
      return user;
    }
    for (const json& text : *forwards) {
      const auto forward = text.is_string() ? parse_port_forward(text.get_ref<const std::string&>())
                                            : fail(ErrorCode::kInvalidArgument, "must be a list of strings");
      if (!forward) {
        object.refuse("forward", forward.error().message());
        return user;
      }
      user.forwards.push_back(*forward);
    }
  }
  return user;
}

Result<NetDeviceConfig> read_network(const json& value, const std::string& path) {
  JsonObject object(value, path);
  NetDeviceConfig network;
  object.require("iface_id");
  network.id = object.string("iface_id").value_or("");
  static constexpr std::array<std::string_view, 2> kBackends = {"tap", "user"};
  if (object.choice("backend", kBackends).value_or(0) == 1) {
    MAYFLY_TRY_ASSIGN(network.backend, read_user_network(object));
  } else {
    object.require("host_dev_name");
    network.backend = TapConfig{object.string("host_dev_name").value_or("")};
  }
  if (const auto text = object.string("guest_mac")) {
    network.mac = MacAddress::parse(*text);
    if (!network.mac) {
      object.refuse("guest_mac", "\"" + *text + "\" is no MAC address, such as 06:00:ac:10:00:02");
    }
  }
  if (const auto mtu = object.integer("mtu", kMinMtu, kMaxMtu)) {
    network.mtu = static_cast<std::uint32_t>(*mtu);
  }
  if (const auto pairs = object.integer("queue_pairs", 1, kMaxQueuePairs)) {
    network.queue_pairs = static_cast<std::uint32_t>(*pairs);
  }
  if (const json* limiter = object.value("rx_rate_limiter")) {
    MAYFLY_TRY_ASSIGN(network.rx_rate_limiter, read_rate_limiter(*limiter, path + ".rx_rate_limiter"));
  }
  if (const json* limiter = object.value("tx_rate_limiter")) {
    MAYFLY_TRY_ASSIGN(network.tx_rate_limiter, read_rate_limiter(*limiter, path + ".tx_rate_limiter"));
  }
  MAYFLY_TRY(object.finish());
  if (auto valid = network.validate(); !valid) {
    return tl::make_unexpected(valid.error().within(path));
  }
  return network;
}

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
  refuse_section(file, "cpu-config", "CPU templates are not supported yet; leave it out");
  for (const std::string_view key : {"balloon", "vsock", "entropy", "pmem", "memory-hotplug"}) {
    refuse_section(file, key, kNoDevice);
  }

  const auto in_file = [&](const Error& error) { return tl::make_unexpected(error.within(name)); };
  if (const json* section = file.value("machine-config")) {
    auto machine = read_machine_config(*section);
    if (!machine) {
      return in_file(machine.error());
    }
    config.machine = *machine;
  }
  if (const json* section = file.value("boot-source")) {
    auto boot_source = read_boot_source(*section);
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
    auto logger = read_logger(*section);
    if (!logger) {
      return in_file(logger.error());
    }
    config.logger = std::move(*logger);
  }
  if (const json* section = file.value("metrics")) {
    auto metrics = read_metrics(*section);
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
  return parse_config_file(text, "configuration file " + path);
}

}  // namespace mayfly::api
