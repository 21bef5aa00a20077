#include "api/sections.h"

#include <array>
#include <limits>
#include <utility>
#include <vector>

#include "api/json_object.h"

namespace mayfly::api {
namespace {

using nlohmann::json;

constexpr std::array<std::string_view, 3> kHugePages = {"None", "Transparent", "2M"};
constexpr std::array<std::string_view, 4> kSnapshotHugePages = {"Snapshot", "None", "Transparent", "2M"};
constexpr std::array<std::string_view, 2> kMemoryBackends = {"File", "Uffd"};
constexpr std::array<std::string_view, 2> kSnapshotKinds = {"Full", "Diff"};
constexpr std::array<std::string_view, 2> kCacheTypes = {"Unsafe", "Writeback"};
constexpr std::array<std::string_view, 2> kEngines = {"Sync", "Async"};
constexpr std::array<std::string_view, 2> kMmdsVersions = {"V1", "V2"};
constexpr std::array<std::string_view, 2> kBackends = {"tap", "user"};
// What a PATCH cannot say.
constexpr std::array<std::string_view, 9> kDrivePutOnly = {"is_root_device", "partuuid",  "is_read_only",
                                                           "cache_type",     "io_engine", "discard",
                                                           "num_queues",     "lock",      "overlay"};
constexpr std::array<std::string_view, 7> kNetworkPutOnly = {
    "host_dev_name", "backend", "guest_mac", "mtu", "queue_pairs", "forward", "host_loopback"};
constexpr std::string_view kMemoryOverlay = "memory";

template <std::size_t Size, typename Choice>
json name_of(const std::array<std::string_view, Size>& names, Choice choice) {
  return names.at(static_cast<std::size_t>(choice));
}

template <typename T>
json or_null(const std::optional<T>& value) {
  return value ? json(*value) : json();
}

// Reads what is there into `section`, checks it, and says whether anything was there.
Result<bool> read_machine_fields(JsonObject& object, const std::string& path, MachineSection& section) {
  MachineConfig& config = section.machine;
  bool any = false;
  const auto take = [&any](const auto& field, auto& member) {
    if (field) {
      member = static_cast<std::remove_reference_t<decltype(member)>>(*field);
      any = true;
    }
  };
  take(object.integer("vcpu_count", 1, kMaxVcpus), config.vcpu_count);
  take(object.integer("mem_size_mib", 1, kMaxMemoryMib), config.mem_size_mib);
  take(object.boolean("smt"), config.smt);
  take(object.boolean("track_dirty_pages"), config.track_dirty_pages);
  take(object.choice("huge_pages", kHugePages), config.huge_pages);
  if (const auto name = object.string("cpu_template")) {
    any = true;
    section.names_cpu_template = true;
    if (*name != "None") {
      object.refuse("cpu_template", "\"" + *name +
                                        "\": this monitor has no templates of its own; put what the template "
                                        "says by cpu-config, and leave this out or set it to None");
    }
  }
  MAYFLY_TRY(object.finish());
  if (auto valid = config.validate(); !valid) {
    return tl::make_unexpected(valid.error().within(path));
  }
  return any;
}

// Where the memory of a snapshot comes from: exactly one of the two, of which `backend` may be null.
Result<void> read_memory_source(const std::optional<std::string>& file, const json* backend,
                                const std::string& path, LoadRequest& request) {
  if (file.has_value() == (backend != nullptr)) {
    return fail(
        ErrorCode::kInvalidArgument,
        path + ": the memory is given by mem_backend, or by the deprecated mem_file_path: by one of them");
  }
  if (file) {
    request.memory_path = *file;
    ::mayfly::metrics().deprecated_api.deprecated_http_api_calls.add();
    return {};
  }
  JsonObject source(*backend, path + ".mem_backend");
  source.require("backend_type");
  source.require("backend_path");
  request.memory_from_handler = source.choice("backend_type", kMemoryBackends).value_or(0) == 1;
  request.memory_path = source.string("backend_path").value_or("");
  return source.finish();
}

std::string no_mac(const std::string& text) {
  return "\"" + text + "\" is no MAC address, such as 06:00:ac:10:00:02";
}

Result<NetworkOverride> read_network_override(const json& value, const std::string& path) {
  JsonObject object(value, path);
  NetworkOverride change;
  object.require("iface_id");
  change.id = object.string("iface_id").value_or("");
  change.tap = object.string("host_dev_name");
  change.mac = object.string("guest_mac");
  if (!change.tap && !change.mac) {
    object.refuse("host_dev_name", "or guest_mac is needed");
  }
  if (change.mac && !MacAddress::parse_numbered(*change.mac, 0)) {
    object.refuse("guest_mac", no_mac(*change.mac));
  }
  MAYFLY_TRY(object.finish());
  return change;
}

// The elements of a list, each by `Read`.
template <typename Element, Result<Element> (*Read)(const json&, const std::string&)>
Result<std::vector<Element>> read_list(const json& value, const std::string& path) {
  if (!value.is_array()) {
    return fail(ErrorCode::kInvalidArgument, path + ": must be a list");
  }
  std::vector<Element> elements;
  for (std::size_t index = 0; index < value.size(); ++index) {
    MAYFLY_TRY_ASSIGN(auto element, Read(value[index], path + "[" + std::to_string(index) + "]"));
    elements.push_back(std::move(element));
  }
  return elements;
}

// The overlay of a drive: "memory", or the path of its file.
BlockOverlayConfig overlay_of(std::string place) {
  return place == kMemoryOverlay ? BlockOverlayConfig{} : BlockOverlayConfig{.path = std::move(place)};
}

Result<DriveOverride> read_drive_override(const json& value, const std::string& path) {
  JsonObject object(value, path);
  DriveOverride change;
  object.require("drive_id");
  change.id = object.string("drive_id").value_or("");
  change.path = object.string("path_on_host");
  if (auto place = object.string("overlay")) {
    change.overlay = overlay_of(std::move(*place));
  }
  if (!change.path && !change.overlay) {
    object.refuse("path_on_host", "is needed, or overlay: nothing is overridden");
  }
  MAYFLY_TRY(object.finish());
  return change;
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
  MAYFLY_TRY(object.read("bandwidth", read_token_bucket, limiter.bandwidth));
  MAYFLY_TRY(object.read("ops", read_token_bucket, limiter.ops));
  MAYFLY_TRY(object.finish());
  return limiter;
}

// A network behind passt. `object` holds the fields that only this kind of back end has.
UserNetConfig read_user_network(JsonObject& object) {
  UserNetConfig user;
  user.host_loopback = object.boolean("host_loopback").value_or(false);
  const auto forwards = object.strings("forward", "strings such as \"8080:80\"");
  for (const std::string& text : forwards.value_or(std::vector<std::string>())) {
    const auto forward = parse_port_forward(text);
    if (!forward) {
      object.refuse("forward", forward.error().message());
      break;
    }
    user.forwards.push_back(*forward);
  }
  return user;
}

json to_json(const TokenBucketConfig& bucket) {
  json value = {{"size", bucket.size}, {"refill_time", bucket.refill_time_ms}};
  if (bucket.one_time_burst != 0) {
    value["one_time_burst"] = bucket.one_time_burst;
  }
  return value;
}

// Null where nothing is limited.
json to_json(const RateLimiterConfig& limiter) {
  json value;
  if (limiter.bandwidth) {
    value["bandwidth"] = to_json(*limiter.bandwidth);
  }
  if (limiter.ops) {
    value["ops"] = to_json(*limiter.ops);
  }
  return value;
}

}  // namespace

Result<MachineSection> read_machine_config(const json& value, const std::string& path) {
  JsonObject object(value, path);
  object.require("vcpu_count");
  object.require("mem_size_mib");
  MachineSection section;
  MAYFLY_TRY(read_machine_fields(object, path, section));
  return section;
}

Result<MachineSection> read_machine_changes(const json& value, const std::string& path,
                                            const MachineConfig& current) {
  JsonObject object(value, path);
  MachineSection section{.machine = current};
  MAYFLY_TRY_ASSIGN(const bool any, read_machine_fields(object, path, section));
  if (!any) {
    return fail(ErrorCode::kInvalidArgument, path + ": there is no field to change");
  }
  return section;
}

Result<BootSourceConfig> read_boot_source(const json& value, const std::string& path) {
  JsonObject object(value, path);
  BootSourceConfig config;
  object.require("kernel_image_path");
  config.kernel_image_path = object.string("kernel_image_path").value_or("");
  config.initrd_path = object.string("initrd_path");
  config.boot_args = object.string("boot_args");
  MAYFLY_TRY(object.finish());
  return config;
}

Result<LoggerSection> read_logger(const json& value, const std::string& path) {
  JsonObject object(value, path);
  LoggerSection section;
  section.log_path = object.string("log_path");
  section.level = object.string("level");
  section.show_level = object.boolean("show_level");
  section.show_log_origin = object.boolean("show_log_origin");
  section.module = object.string("module");
  MAYFLY_TRY(object.finish());
  return section;
}

Result<MetricsSection> read_metrics(const json& value, const std::string& path) {
  JsonObject object(value, path);
  MetricsSection section;
  object.require("metrics_path");
  section.metrics_path = object.string("metrics_path").value_or("");
  section.emit_id = object.boolean("emit_id").value_or(false);
  if (const json* properties = object.value("properties")) {
    JsonObject map(*properties, path + ".properties");
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
  if (const auto index = object.choice("cache_type", kCacheTypes)) {
    drive.cache_type = static_cast<BlockCacheType>(*index);
  }
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
  MAYFLY_TRY(object.read("rate_limiter", read_rate_limiter, drive.rate_limiter));
  MAYFLY_TRY(object.finish());
  if (auto valid = drive.validate(); !valid) {
    return tl::make_unexpected(valid.error().within(path));
  }
  return drive;
}

Result<NetDeviceConfig> read_network(const json& value, const std::string& path) {
  JsonObject object(value, path);
  NetDeviceConfig network;
  object.require("iface_id");
  network.id = object.string("iface_id").value_or("");
  if (object.choice("backend", kBackends).value_or(0) == 1) {
    network.backend = read_user_network(object);
  } else {
    object.require("host_dev_name");
    network.backend = TapConfig{object.string("host_dev_name").value_or("")};
  }
  if (const auto text = object.string("guest_mac")) {
    network.mac = MacAddress::parse(*text);
    if (!network.mac) {
      object.refuse("guest_mac", no_mac(*text));
    }
  }
  if (const auto mtu = object.integer("mtu", kMinMtu, kMaxMtu)) {
    network.mtu = static_cast<std::uint32_t>(*mtu);
  }
  if (const auto pairs = object.integer("queue_pairs", 1, kMaxQueuePairs)) {
    network.queue_pairs = static_cast<std::uint32_t>(*pairs);
  }
  MAYFLY_TRY(object.read("rx_rate_limiter", read_rate_limiter, network.rx_rate_limiter));
  MAYFLY_TRY(object.read("tx_rate_limiter", read_rate_limiter, network.tx_rate_limiter));
  MAYFLY_TRY(object.finish());
  if (auto valid = network.validate(); !valid) {
    return tl::make_unexpected(valid.error().within(path));
  }
  return network;
}

Result<DriveChanges> read_drive_changes(const json& value, const std::string& path) {
  JsonObject object(value, path);
  DriveChanges changes;
  object.leave_to_put(kDrivePutOnly);
  object.require("drive_id");
  changes.id = object.string("drive_id").value_or("");
  changes.path = object.string("path_on_host");
  MAYFLY_TRY(object.read("rate_limiter", read_rate_limiter, changes.rate_limiter));
  MAYFLY_TRY(object.finish());
  return changes;
}

Result<NetworkChanges> read_network_changes(const json& value, const std::string& path) {
  JsonObject object(value, path);
  NetworkChanges changes;
  object.leave_to_put(kNetworkPutOnly);
  object.require("iface_id");
  changes.id = object.string("iface_id").value_or("");
  MAYFLY_TRY(object.read("rx_rate_limiter", read_rate_limiter, changes.rx_rate_limiter));
  MAYFLY_TRY(object.read("tx_rate_limiter", read_rate_limiter, changes.tx_rate_limiter));
  MAYFLY_TRY(object.finish());
  return changes;
}

Result<MmdsConfig> read_mmds_config(const json& value, const std::string& path) {
  JsonObject object(value, path);
  MmdsConfig mmds;
  object.require("network_interfaces");
  mmds.network_interfaces = object.strings("network_interfaces", "ids").value_or(std::vector<std::string>());
  if (const auto index = object.choice("version", kMmdsVersions)) {
    mmds.version = static_cast<MmdsVersion>(*index);
  }
  if (const auto text = object.string("ipv4_address")) {
    if (const auto address = Ipv4Address::parse(*text)) {
      mmds.ipv4_address = *address;
    } else {
      object.refuse("ipv4_address", "\"" + *text + "\" is no IPv4 address, such as 169.254.169.254");
    }
  }
  mmds.imds_compat = object.boolean("imds_compat").value_or(mmds.imds_compat);
  MAYFLY_TRY(object.finish());
  return mmds;
}

Result<SerialConfig> read_serial(const json& value, const std::string& path) {
  JsonObject object(value, path);
  SerialConfig serial;
  serial.output_path = object.string("serial_out_path");
  MAYFLY_TRY(object.read("rate_limiter", read_token_bucket, serial.rate_limiter));
  MAYFLY_TRY(object.finish());
  return serial;
}

Result<SnapshotRequest> read_snapshot_create(const json& value, const std::string& path) {
  JsonObject object(value, path);
  SnapshotRequest request;
  object.require("snapshot_path");
  object.require("mem_file_path");
  request.state_path = object.string("snapshot_path").value_or("");
  request.memory_path = object.string("mem_file_path").value_or("");
  request.kind = static_cast<SnapshotKind>(object.choice("snapshot_type", kSnapshotKinds).value_or(0));
  request.live = object.boolean("live").value_or(false);
  MAYFLY_TRY(object.finish());
  return request;
}

Result<std::string> read_working_set(const json& value, const std::string& path) {
  JsonObject object(value, path);
  object.require("working_set_path");
  auto where = object.string("working_set_path").value_or("");
  MAYFLY_TRY(object.finish());
  return where;
}

Result<void> read_load_overrides(JsonObject& object, LoadRequest& request) {
  MAYFLY_TRY(
      object.read("network_overrides", read_list<NetworkOverride, read_network_override>, request.networks));
  MAYFLY_TRY(object.read("drive_overrides", read_list<DriveOverride, read_drive_override>, request.drives));
  if (const auto repeated = find_repeated_override(request)) {
    const std::string twice = " \"" + repeated->id + "\" more than once";
    if (repeated->kind == RepeatedOverride::Kind::kDrive) {
      object.refuse("drive_overrides", "names the drive" + twice);
    } else {
      object.refuse("network_overrides",
                    std::string("gives ") +
                        (repeated->kind == RepeatedOverride::Kind::kTap ? "a host_dev_name" : "a guest_mac") +
                        " to the interface" + twice);
    }
  }
  if (const json* metadata = object.value("metadata")) {
    request.metadata = metadata->dump();
  }
  return {};
}

Result<LoadRequest> read_snapshot_load(const json& value, const std::string& path) {
  JsonObject object(value, path);
  LoadRequest request;
  object.require("snapshot_path");
  request.state_path = object.string("snapshot_path").value_or("");
  const auto memory_file = object.string("mem_file_path");
  const json* const memory_backend = object.value("mem_backend");
  // The deprecated name first: the other one counts where both are there.
  request.track_dirty_pages = object.boolean("enable_diff_snapshots").value_or(false);
  request.track_dirty_pages = object.boolean("track_dirty_pages").value_or(request.track_dirty_pages);
  request.resume = object.boolean("resume_vm").value_or(false);
  request.advance_clock = object.boolean("clock_realtime").value_or(false);
  if (const auto pages = object.choice("huge_pages", kSnapshotHugePages); pages && *pages != 0) {
    request.huge_pages = static_cast<HugePages>(*pages - 1);
  }
  MAYFLY_TRY(read_load_overrides(object, request));
  request.record_working_set = object.boolean("record_working_set").value_or(false);
  request.working_set_path = object.string("working_set_path");
  MAYFLY_TRY(object.finish());
  MAYFLY_TRY(read_memory_source(memory_file, memory_backend, path, request));
  return request;
}

json to_json(const MachineConfig& machine) {
  return {{"vcpu_count", machine.vcpu_count},
          {"mem_size_mib", machine.mem_size_mib},
          {"smt", machine.smt},
          {"track_dirty_pages", machine.track_dirty_pages},
          {"huge_pages", name_of(kHugePages, machine.huge_pages)}};
}

json to_json(const BootSourceConfig& boot_source) {
  return {{"kernel_image_path", boot_source.kernel_image_path},
          {"initrd_path", or_null(boot_source.initrd_path)},
          {"boot_args", or_null(boot_source.boot_args)}};
}

json to_json(const BlockDeviceConfig& drive) {
  json value = {{"drive_id", drive.id},
                {"path_on_host", drive.path},
                {"is_root_device", drive.is_root},
                {"partuuid", or_null(drive.partuuid)},
                {"is_read_only", drive.read_only},
                {"cache_type", name_of(kCacheTypes, drive.cache_type)},
                {"io_engine", name_of(kEngines, drive.engine)},
                {"discard", drive.discard},
                {"rate_limiter", to_json(drive.rate_limiter)}};
  // What only this monitor knows is there only where it is used.
  const BlockDeviceConfig plain;
  if (drive.queue_count != plain.queue_count) {
    value["num_queues"] = drive.queue_count;
  }
  if (drive.lock != plain.lock) {
    value["lock"] = drive.lock;
  }
  if (drive.overlay) {
    value["overlay"] = drive.overlay->path.value_or(std::string(kMemoryOverlay));
  }
  return value;
}

json to_json(const NetDeviceConfig& network) {
  json value = {{"iface_id", network.id},
                {"guest_mac", network.mac ? json(network.mac->to_string()) : json()},
                {"mtu", or_null(network.mtu)},
                {"rx_rate_limiter", to_json(network.rx_rate_limiter)},
                {"tx_rate_limiter", to_json(network.tx_rate_limiter)}};
  if (const auto* tap = std::get_if<TapConfig>(&network.backend)) {
    value["host_dev_name"] = tap->name;
  } else {
    const auto& user = std::get<UserNetConfig>(network.backend);
    value["backend"] = kBackends[1];
    value["host_loopback"] = user.host_loopback;
    json forwards = json::array();
    for (const PortForward& forward : user.forwards) {
      forwards.push_back(forward.to_string());
    }
    value["forward"] = std::move(forwards);
  }
  if (network.queue_pairs != NetDeviceConfig{}.queue_pairs) {
    value["queue_pairs"] = network.queue_pairs;
  }
  return value;
}

json to_json(const MmdsConfig& mmds) {
  return {{"network_interfaces", mmds.network_interfaces},
          {"version", name_of(kMmdsVersions, mmds.version)},
          {"ipv4_address", mmds.ipv4_address.to_string()},
          {"imds_compat", mmds.imds_compat}};
}

json to_json(const LoggerSection& logger) {
  return {{"log_path", or_null(logger.log_path)},
          {"level", or_null(logger.level)},
          {"show_level", or_null(logger.show_level)},
          {"show_log_origin", or_null(logger.show_log_origin)},
          {"module", or_null(logger.module)}};
}

json to_json(const MetricsSection& metrics) {
  json value = {{"metrics_path", metrics.metrics_path}, {"emit_id", metrics.emit_id}};
  if (!metrics.properties.empty()) {
    value["properties"] = metrics.properties;
  }
  return value;
}

}  // namespace mayfly::api
