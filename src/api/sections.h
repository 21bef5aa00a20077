// The sections of a configuration, each as JSON and as typed data: what a configuration file holds, what PUT
// and PATCH take and what GET gives.
//
// Each read_ function takes one object. `path` is what errors call it. Unknown fields, wrong types and values
// out of range are refused with the field's name; nothing that is named is opened. What to_json() gives is
// read back as the same.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "api/json_object.h"
#include "api/log_sections.h"
#include "base/result.h"
#include "kvm/arch.h"
#include "mmds/mmds_config.h"
#include "vmm/config.h"
#include "vmm/micro_vm.h"
#include "vmm/snapshot_job.h"

namespace mayfly::api {

struct MachineSection {
  MachineConfig machine;
  // The deprecated field is there. Only "None" is taken: no CPU template, also none of an earlier cpu-config.
  bool names_cpu_template = false;
};
Result<MachineSection> read_machine_config(const nlohmann::json& value, const std::string& path);
// A subset of the fields, at least one, on top of `current`.
Result<MachineSection> read_machine_changes(const nlohmann::json& value, const std::string& path,
                                            const MachineConfig& current);
Result<BootSourceConfig> read_boot_source(const nlohmann::json& value, const std::string& path);
Result<BlockDeviceConfig> read_drive(const nlohmann::json& value, const std::string& path);
Result<DriveChanges> read_drive_changes(const nlohmann::json& value, const std::string& path);
Result<NetDeviceConfig> read_network(const nlohmann::json& value, const std::string& path);
Result<NetworkChanges> read_network_changes(const nlohmann::json& value, const std::string& path);
Result<LoggerSection> read_logger(const nlohmann::json& value, const std::string& path);
Result<MetricsSection> read_metrics(const nlohmann::json& value, const std::string& path);
Result<MmdsConfig> read_mmds_config(const nlohmann::json& value, const std::string& path);
Result<SnapshotRequest> read_snapshot_create(const nlohmann::json& value, const std::string& path);
Result<LoadRequest> read_snapshot_load(const nlohmann::json& value, const std::string& path);
// The path where a working set is to go.
Result<std::string> read_working_set(const nlohmann::json& value, const std::string& path);
// What a snapshot that goes on may have of its own: network_overrides, drive_overrides, metadata.
Result<void> read_load_overrides(JsonObject& object, LoadRequest& request);
Result<SerialConfig> read_serial(const nlohmann::json& value, const std::string& path);
Result<arch::CpuTemplate> read_cpu_config(const nlohmann::json& value, const std::string& path);

nlohmann::json to_json(const MachineConfig& machine);
nlohmann::json to_json(const BootSourceConfig& boot_source);
nlohmann::json to_json(const BlockDeviceConfig& drive);
nlohmann::json to_json(const NetDeviceConfig& network);
nlohmann::json to_json(const MmdsConfig& mmds);
nlohmann::json to_json(const LoggerSection& logger);
nlohmann::json to_json(const MetricsSection& metrics);
nlohmann::json to_json(const arch::CpuTemplate& cpu_template);

}  // namespace mayfly::api
