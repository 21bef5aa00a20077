#include "api/config_file.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "support/temp_dir.h"

namespace mayfly::api {
namespace {

constexpr std::string_view kBoot = R"("boot-source": {"kernel_image_path": "/k"}, "drives": [])";

std::string error_of(const std::string& text) {
  const auto file = parse_config_file(text, "f.json");
  return file ? "" : file.error().message();
}

std::string with(const std::string& section) {
  return "{" + std::string(kBoot) + ", " + section + "}";
}

TEST(ConfigFile, the_least_that_boots_takes_the_defaults) {
  const auto file = parse_config_file("{" + std::string(kBoot) + "}", "f.json");
  ASSERT_TRUE(file.has_value()) << file.error().message();
  EXPECT_EQ(file->boot_source.kernel_image_path, "/k");
  EXPECT_FALSE(file->boot_source.boot_args.has_value());
  EXPECT_EQ(file->machine.vcpu_count, 1U);
  EXPECT_EQ(file->machine.mem_size_mib, 128U);
  EXPECT_FALSE(file->logger.has_value());
}

TEST(ConfigFile, every_section_of_the_dialect_that_is_built_is_read) {
  const auto file = parse_config_file(R"({
    "boot-source": {"kernel_image_path": "/k", "initrd_path": "/i", "boot_args": "quiet"},
    "drives": [], "network-interfaces": [], "pmem": [], "balloon": null, "vsock": null, "entropy": null,
    "mmds-config": null, "cpu-config": null, "memory-hotplug": null,
    "machine-config": {"vcpu_count": 4, "mem_size_mib": 256, "smt": true, "huge_pages": "2M", "cpu_template": "None",
                       "track_dirty_pages": false},
    "logger": {"log_path": "/l", "level": "Debug", "show_level": true, "show_log_origin": true, "module": "vmm"},
    "metrics": {"metrics_path": "/m", "emit_id": true, "properties": {"region": "x"}}})",
                                      "f.json");
  ASSERT_TRUE(file.has_value()) << file.error().message();
  EXPECT_EQ(file->boot_source.initrd_path, "/i");
  EXPECT_EQ(file->boot_source.boot_args, "quiet");
  EXPECT_EQ(file->machine.vcpu_count, 4U);
  EXPECT_EQ(file->machine.mem_size_mib, 256U);
  EXPECT_TRUE(file->machine.smt);
  EXPECT_EQ(file->machine.huge_pages, HugePages::k2M);
  EXPECT_EQ(file->logger->level, "Debug");
  EXPECT_EQ(file->metrics->metrics_path, "/m");
  EXPECT_EQ(file->metrics->properties.at("region"), "x");
}

TEST(ConfigFile, the_two_sections_that_must_be_there_are_named_when_they_are_missing) {
  EXPECT_EQ(error_of(R"({"drives": []})"), "f.json: field \"boot-source\" is missing");
  EXPECT_EQ(error_of(R"({"boot-source": {"kernel_image_path": "/k"}})"),
            "f.json: field \"drives\" is missing");
}

TEST(ConfigFile, errors_name_the_section_and_the_field) {
  EXPECT_EQ(error_of(with(R"("machine-config": {"vcpu_count": 33, "mem_size_mib": 1})")),
            "f.json: machine-config: field \"vcpu_count\": 33 is not in 1 to 32");
  EXPECT_EQ(error_of(with(R"("machine-config": {"vcpu_count": 1})")),
            "f.json: machine-config: field \"mem_size_mib\" is missing");
  EXPECT_EQ(error_of(with(R"("machine-config": {"vcpu_count": 3, "mem_size_mib": 1, "smt": true})")),
            "f.json: machine-config: vcpu_count 3: must be 1 or even when smt is true");
  EXPECT_EQ(error_of(with(R"("logger": {"levle": "Info"})")), "f.json: logger: unknown field \"levle\"");
  EXPECT_EQ(error_of(with(R"("metrics": {})")), "f.json: metrics: field \"metrics_path\" is missing");
  EXPECT_EQ(error_of(with(R"("turbo": {})")), "f.json: unknown field \"turbo\"");
  EXPECT_EQ(error_of(R"({"drives": [], "boot-source": {"initrd_path": "/i"}})"),
            "f.json: boot-source: field \"kernel_image_path\" is missing");
}

std::string with_drive(const std::string& fields) {
  return R"({"boot-source": {"kernel_image_path": "/k"}, "drives": [{)" + fields + "}]}";
}

TEST(ConfigFile, a_drive_is_read_with_all_its_fields) {
  const auto file = parse_config_file(
      with_drive(R"("drive_id": "r", "is_root_device": true, "path_on_host": "/img", "partuuid": "0eaa-01",
                    "is_read_only": false, "cache_type": "Writeback", "io_engine": "Async", "discard": true,
                    "num_queues": 4, "lock": false, "overlay": "/over",
                    "rate_limiter": {"ops": {"size": 5, "refill_time": 100, "one_time_burst": 7}})"),
      "f.json");
  ASSERT_TRUE(file.has_value()) << file.error().message();
  ASSERT_EQ(file->drives.size(), 1U);
  const BlockDeviceConfig& drive = file->drives.front();
  EXPECT_EQ(drive.id, "r");
  EXPECT_TRUE(drive.is_root);
  EXPECT_EQ(drive.path, "/img");
  EXPECT_EQ(drive.partuuid, "0eaa-01");
  EXPECT_FALSE(drive.read_only);
  EXPECT_EQ(drive.cache_type, BlockCacheType::kWriteback);
  EXPECT_EQ(drive.engine, BlockEngineType::kAsync);
  EXPECT_TRUE(drive.discard);
  EXPECT_EQ(drive.queue_count, 4U);
  EXPECT_FALSE(drive.lock);
  ASSERT_TRUE(drive.overlay.has_value());
  EXPECT_EQ(drive.overlay->path, "/over");
  EXPECT_FALSE(drive.rate_limiter.bandwidth.has_value());
  const TokenBucketConfig ops{.size = 5, .refill_time_ms = 100, .one_time_burst = 7};
  EXPECT_EQ(drive.rate_limiter.ops, ops);
}

TEST(ConfigFile, a_misspelled_field_is_told_as_such_and_not_as_one_that_is_missing) {
  EXPECT_EQ(error_of(R"({"boot-source": {"kernel_image": "/k"}, "drives": []})"),
            "f.json: boot-source: unknown field \"kernel_image\"");
  EXPECT_EQ(error_of(R"({"boot-source": {"kernel_image_path": "/k"}, "drive": []})"),
            "f.json: unknown field \"drive\"");
}

TEST(ConfigFile, an_overlay_in_memory_has_no_path) {
  const auto file = parse_config_file(
      with_drive(R"("drive_id": "r", "is_root_device": false, "path_on_host": "/img", "overlay": "memory")"),
      "f.json");
  ASSERT_TRUE(file.has_value()) << file.error().message();
  ASSERT_TRUE(file->drives.front().overlay.has_value());
  EXPECT_FALSE(file->drives.front().overlay->path.has_value());
}

TEST(ConfigFile, what_is_wrong_with_a_drive_is_refused_by_its_place_and_field) {
  const std::string good = R"("drive_id": "r", "is_root_device": true, "path_on_host": "/img")";
  EXPECT_EQ(error_of(with_drive("")), "f.json: drives[0]: field \"drive_id\" is missing");
  EXPECT_EQ(error_of(with_drive(R"("drive_id": "r", "is_root_device": true)")),
            "f.json: drives[0]: field \"path_on_host\" is missing");
  EXPECT_NE(
      error_of(with_drive(good + R"(, "is_read_only": "yes")")).find("drives[0]: field \"is_read_only\""),
      std::string::npos);
  EXPECT_EQ(error_of(with_drive(good + R"(, "speed": 1)")), "f.json: drives[0]: unknown field \"speed\"");
  EXPECT_NE(error_of(with_drive(good + R"(, "cache_type": "Fast")")).find("\"cache_type\""),
            std::string::npos);
  EXPECT_NE(error_of(with_drive(good + R"(, "num_queues": 17)")).find("\"num_queues\""), std::string::npos);
  EXPECT_EQ(error_of(with_drive(good + R"(, "rate_limiter": {"ops": {"size": 1}})")),
            "f.json: drives[0].rate_limiter.ops: field \"refill_time\" is missing");
  EXPECT_NE(error_of(with_drive(good + R"(, "is_read_only": true, "overlay": "memory")")).find("drive r"),
            std::string::npos);
  EXPECT_NE(error_of(R"({"boot-source": {"kernel_image_path": "/k"}, "drives": {}})")
                .find("field \"drives\" must be a list"),
            std::string::npos);
}

TEST(ConfigFile, a_network_behind_a_tap_and_one_for_an_ordinary_user_are_read) {
  const auto file = parse_config_file(with(R"("network-interfaces": [
        {"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "06:00:AC:10:00:02", "mtu": 9000,
         "queue_pairs": 2, "rx_rate_limiter": {"bandwidth": {"size": 9, "refill_time": 1}}},
        {"iface_id": "u", "backend": "user", "forward": ["8080:80"], "host_loopback": true}])"),
                                      "f.json");
  ASSERT_TRUE(file.has_value()) << file.error().message();
  ASSERT_EQ(file->networks.size(), 2U);
  const NetDeviceConfig& tap = file->networks[0];
  EXPECT_EQ(tap.id, "eth0");
  EXPECT_EQ(std::get<TapConfig>(tap.backend).name, "tap0");
  ASSERT_TRUE(tap.mac.has_value());
  EXPECT_EQ(tap.mac->to_string(), "06:00:ac:10:00:02");
  EXPECT_EQ(tap.mtu, 9000U);
  EXPECT_EQ(tap.queue_pairs, 2U);
  EXPECT_TRUE(tap.rx_rate_limiter.bandwidth.has_value());
  const auto& user = std::get<UserNetConfig>(file->networks[1].backend);
  EXPECT_TRUE(user.host_loopback);
  ASSERT_EQ(user.forwards.size(), 1U);
  EXPECT_EQ(user.forwards[0].host_port, 8080U);
}

TEST(ConfigFile, what_is_wrong_with_a_network_is_refused_by_its_place_and_field) {
  const auto error = [](const std::string& fields) {
    return error_of(with(R"("network-interfaces": [{)" + fields + "}]"));
  };
  EXPECT_EQ(error(R"("iface_id": "e")"), "f.json: network-interfaces[0]: field \"host_dev_name\" is missing");
  EXPECT_NE(error(R"("iface_id": "e", "host_dev_name": "t", "guest_mac": "06:00")").find("\"guest_mac\""),
            std::string::npos);
  EXPECT_NE(error(R"("iface_id": "e", "host_dev_name": "t", "mtu": 67)").find("\"mtu\""), std::string::npos);
  EXPECT_NE(
      error(R"("iface_id": "e", "host_dev_name": "t", "forward": ["1:2"])").find("unknown field \"forward\""),
      std::string::npos);
  EXPECT_NE(error(R"("iface_id": "e", "backend": "user", "forward": [80])").find("\"forward\""),
            std::string::npos);
  EXPECT_NE(error(R"("iface_id": "e", "backend": "user", "forward": ["x"])").find("\"forward\""),
            std::string::npos);
}

TEST(ConfigFile, what_is_not_built_yet_or_left_out_on_purpose_is_refused_by_name) {
  for (const char* device : {"balloon", "vsock", "entropy", "memory-hotplug"}) {
    EXPECT_NE(error_of(with("\"" + std::string(device) + "\": {}")).find("no such device"), std::string::npos)
        << device;
  }
  EXPECT_NE(error_of(with(R"("pmem": [{}])")).find("no such device"), std::string::npos);
  EXPECT_NE(error_of(with(R"("machine-config": {"vcpu_count": 1, "mem_size_mib": 1, "cpu_template": "T2"})"))
                .find("field \"cpu_template\": \"T2\": this monitor has no templates of its own; put what"),
            std::string::npos);
}

TEST(ConfigFile, the_metadata_service_is_read_with_its_defaults) {
  const auto file = parse_config_file(with(R"("mmds-config": {"network_interfaces": ["n"]})"), "f.json");
  ASSERT_TRUE(file.has_value()) << file.error().message();
  EXPECT_EQ(file->mmds, (MmdsConfig{.network_interfaces = {"n"}}));
  EXPECT_NE(error_of(with(R"("mmds-config": {})")).find("network_interfaces"), std::string::npos);
}

TEST(ConfigFile, a_cpu_template_is_read_from_the_section_or_from_the_file_that_it_names) {
  const auto inside = parse_config_file(with(R"("cpu-config": {"kvm_capabilities": ["!56"]})"), "f.json");
  ASSERT_TRUE(inside.has_value()) << inside.error().message();
  ASSERT_TRUE(inside->cpu_template.has_value());
  EXPECT_EQ(inside->cpu_template->capabilities, (std::vector<CapabilityChange>{{56, false}}));
  EXPECT_EQ(error_of(with(R"("cpu-config": {"msr_modifiers": [7]})")),
            "f.json: cpu-config.msr_modifiers[0]: must be an object, is number");
  EXPECT_EQ(error_of(with(R"("cpu-config": 7)")), "f.json: cpu-config: must be an object, is number");

  const testing::TempDir dir;
  const std::string path = dir.file("template.json");
  const std::string file = dir.file("vm.json");
  std::ofstream(file) << with("\"cpu-config\": \"" + path + "\"");
  auto named = read_config_file(file);
  ASSERT_FALSE(named.has_value());
  EXPECT_NE(named.error().message().find(path), std::string::npos) << named.error().message();
  std::ofstream(path) << R"({"kvm_capabilities": ["7"]})";
  named = read_config_file(file);
  ASSERT_TRUE(named.has_value()) << named.error().message();
  EXPECT_EQ(named->cpu_template->capabilities, (std::vector<CapabilityChange>{{7, true}}));
  EXPECT_EQ(named->cpu_config_path, path);
  std::ofstream(path) << R"({"kvm_capabilities": [7]})";
  named = read_config_file(file);
  ASSERT_FALSE(named.has_value());
  EXPECT_NE(named.error().message().find(path + ".kvm_capabilities[0]"), std::string::npos)
      << named.error().message();
}

TEST(ConfigFile, null_is_absent_and_does_not_stand_for_what_must_be_there) {
  EXPECT_EQ(error_of(R"({"drives": null, "boot-source": {"kernel_image_path": "/k"}})"),
            "f.json: field \"drives\" is missing");
  EXPECT_EQ(error_of(R"({"drives": [], "boot-source": null})"), "f.json: field \"boot-source\" is missing");
  const auto file =
      parse_config_file(with(R"("machine-config": null, "logger": null, "metrics": null)"), "f.json");
  ASSERT_TRUE(file.has_value()) << file.error().message();
  EXPECT_EQ(file->machine.mem_size_mib, 128U);
  EXPECT_FALSE(file->logger.has_value());
  EXPECT_FALSE(file->metrics.has_value());
}

TEST(ConfigFile, the_limits_of_a_machine_are_the_limits_of_the_file) {
  const auto machine = [](const std::string& fields) {
    return error_of(with("\"machine-config\": {" + fields + "}"));
  };
  EXPECT_EQ(machine(R"("vcpu_count": 1, "mem_size_mib": 1)"), "");
  EXPECT_EQ(machine(R"("vcpu_count": 32, "mem_size_mib": 4194304)"), "");
  EXPECT_NE(machine(R"("vcpu_count": 32, "mem_size_mib": 4194305)").find("mem_size_mib"), std::string::npos);
  EXPECT_NE(machine(R"("vcpu_count": 32, "mem_size_mib": 0)").find("mem_size_mib"), std::string::npos);
  EXPECT_NE(machine(R"("vcpu_count": 0, "mem_size_mib": 1)").find("vcpu_count"), std::string::npos);
  // 1 in 32 bits: the range is checked before it is narrowed.
  EXPECT_NE(machine(R"("vcpu_count": 4294967297, "mem_size_mib": 1)").find("vcpu_count"), std::string::npos);
  EXPECT_NE(machine(R"("vcpu_count": 1, "mem_size_mib": 3, "huge_pages": "2M")").find("huge_pages"),
            std::string::npos);
}

TEST(ConfigFile, each_name_of_a_backing_is_its_backing) {
  for (const auto& [name, huge_pages] :
       {std::pair("None", HugePages::kNone), std::pair("Transparent", HugePages::kTransparent),
        std::pair("2M", HugePages::k2M)}) {
    const auto file =
        parse_config_file(with(R"("machine-config": {"vcpu_count": 1, "mem_size_mib": 2, "huge_pages": ")" +
                               std::string(name) + "\"}"),
                          "f.json");
    ASSERT_TRUE(file.has_value()) << name;
    EXPECT_EQ(file->machine.huge_pages, huge_pages) << name;
  }
  EXPECT_NE(error_of(with(R"("machine-config": {"vcpu_count": 1, "mem_size_mib": 2, "huge_pages": "1G"})"))
                .find("\"1G\" is not one of None, Transparent, 2M"),
            std::string::npos);
}

TEST(ConfigFile, a_value_of_another_type_is_refused_by_the_sections_and_the_fields_name) {
  for (const auto& [section, field] : std::vector<std::pair<std::string, std::string>>{
           {R"("machine-config": {"vcpu_count": "1", "mem_size_mib": 1})",
            "machine-config: field \"vcpu_count\""},
           {R"("machine-config": {"vcpu_count": 1, "mem_size_mib": 1.5})",
            "machine-config: field \"mem_size_mib\""},
           {R"("machine-config": {"vcpu_count": 1, "mem_size_mib": 1, "smt": 0})",
            "machine-config: field \"smt\""},
           {R"("machine-config": [])", "machine-config: must be an object"},
           {R"("logger": {"log_path": 1})", "logger: field \"log_path\""},
           {R"("logger": {"show_level": "yes"})", "logger: field \"show_level\""},
           {R"("logger": "/l")", "logger: must be an object"},
           {R"("metrics": {"metrics_path": ["/m"]})", "metrics: field \"metrics_path\""},
           {R"("metrics": {"metrics_path": "/m", "emit_id": 1})", "metrics: field \"emit_id\""},
           {R"("metrics": {"metrics_path": "/m", "properties": {"a": 1}})",
            "metrics.properties: field \"a\""},
           {R"("metrics": {"metrics_path": "/m", "properties": []})",
            "metrics.properties: must be an object"}}) {
    EXPECT_TRUE(error_of(with(section)).starts_with("f.json: " + field)) << error_of(with(section));
  }
  EXPECT_EQ(error_of(R"({"drives": [], "boot-source": "/k"})"),
            "f.json: boot-source: must be an object, is string");
  EXPECT_EQ(error_of(R"({"drives": {}, "boot-source": {"kernel_image_path": "/k"}})")
                .find("f.json: field \"drives\""),
            0U);
  EXPECT_EQ(error_of("[]"), "f.json: must be an object, is array");
}

TEST(ConfigFile, a_key_given_twice_is_refused_however_it_is_spelled) {
  EXPECT_EQ(error_of(with(R"("\u0064rives": [])")), "f.json: field \"drives\" is given twice");
}

TEST(ConfigFile, a_fifo_is_read_as_a_file_is) {
  const testing::TempDir dir;
  const std::string fifo = dir.fifo("fifo");
  std::thread writer([&fifo] { std::ofstream(fifo) << "{" << kBoot << "}"; });
  const auto file = read_config_file(fifo);
  writer.join();
  ASSERT_TRUE(file.has_value()) << file.error().message();
  EXPECT_EQ(file->boot_source.kernel_image_path, "/k");
}

TEST(ConfigFile, a_file_that_cannot_be_read_is_named) {
  EXPECT_EQ(read_config_file("/nonexistent.json").error().message(),
            "open configuration file /nonexistent.json: No such file or directory (ENOENT)");
  EXPECT_NE(read_config_file("/dev/zero").error().message().find("larger than 1048576 bytes"),
            std::string::npos);
  EXPECT_NE(read_config_file("/").error().message().find("read configuration file /"), std::string::npos);
}

}  // namespace
}  // namespace mayfly::api
