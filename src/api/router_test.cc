#include "api/router.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "api/config_file.h"
#include "api/sections.h"
#include "support/fake_event.h"
#include "support/temp_dir.h"

namespace mayfly::api {
namespace {

using nlohmann::json;

// Runs tasks at once, or refuses them as a monitor that is ending.
struct InlineGate final : MonitorGate {
  bool run(const std::function<void()>& task) override {
    if (open) {
      task();
    }
    return open;
  }
  bool ending() const override { return !open; }
  bool open = true;
};

class RouterTest : public ::testing::Test {
 protected:
  RouterTest() {
    for (const char* name : {"kernel", "initrd"}) {
      std::ofstream(dir_.file(name)) << "x";
    }
    for (const char* name : {"disk", "other"}) {
      std::ofstream(dir_.file(name)) << std::string(8192, 'd');
    }
  }

  HttpResponse send(const std::string& method, const std::string& path, const std::string& body = "") {
    return router_.handle({.method = method, .path = path, .body = body});
  }
  HttpResponse put(const std::string& path, const json& body) { return send("PUT", path, body.dump()); }

  json get(const std::string& path) {
    const HttpResponse response = send("GET", path);
    EXPECT_EQ(response.status, 200) << path << ": " << response.body;
    return json::parse(response.body, nullptr, false);
  }

  static void expect_done(const HttpResponse& response) {
    EXPECT_EQ(response.status, 204) << response.body;
    EXPECT_EQ(response.body, "");
  }
  static void expect_refused(const HttpResponse& response, const std::string& text) {
    EXPECT_EQ(response.status, 400) << response.body;
    const json body = json::parse(response.body, nullptr, false);
    ASSERT_TRUE(body.contains("fault_message")) << response.body;
    EXPECT_EQ(body.size(), 1U);
    EXPECT_NE(body["fault_message"].get<std::string>().find(text), std::string::npos) << response.body;
  }

  json drive(const std::string& id, const std::string& file, bool root = false) const {
    return {{"drive_id", id}, {"path_on_host", dir_.file(file)}, {"is_root_device", root}};
  }

  testing::TempDir dir_;
  testing::ManualRegistrar registrar_;
  SerialMetrics serial_metrics_;
  InlineGate gate_;
  MicroVm vm_{{.registrar = registrar_,
               .serial_metrics = serial_metrics_,
               .trace = nullptr,
               .console = {},
               .on_outcome = [](const Outcome&) {}}};
  std::unique_ptr<WorkerThread> files_ = WorkerThread::start("files", {}).value();
  Router router_{
      {.instance_id = "vm-7", .monitor_version = "9.8.7"}, gate_, *files_, vm_, std::nullopt, std::nullopt};
};

TEST_F(RouterTest, instance_and_version_are_told_in_the_dialects_words) {
  EXPECT_EQ(
      get("/"),
      json({{"app_name", "Mayfly"}, {"id", "vm-7"}, {"state", "Not started"}, {"vmm_version", "9.8.7"}}));
  EXPECT_EQ(get("/version"), json({{"firecracker_version", "1.17.0"}, {"mayfly_version", "9.8.7"}}));
}

TEST_F(RouterTest, machine_configuration_is_put_whole_and_patched_in_parts) {
  EXPECT_EQ(get("/machine-config"), json({{"vcpu_count", 1},
                                          {"mem_size_mib", 128},
                                          {"smt", false},
                                          {"track_dirty_pages", false},
                                          {"huge_pages", "None"}}));
  expect_done(put("/machine-config", {{"vcpu_count", 4}, {"mem_size_mib", 256}, {"smt", true}}));
  expect_done(send("PATCH", "/machine-config", R"({"mem_size_mib": 512, "huge_pages": "2M"})"));
  json expected = {{"vcpu_count", 4},
                   {"mem_size_mib", 512},
                   {"smt", true},
                   {"track_dirty_pages", false},
                   {"huge_pages", "2M"}};
  EXPECT_EQ(get("/machine-config"), expected);

  expect_refused(send("PATCH", "/machine-config", "{}"), "no field to change");
  expect_refused(send("PATCH", "/machine-config", R"({"vcpu_count": 3})"), "even when smt");
  expect_refused(put("/machine-config", {{"vcpu_count", 1}}), "mem_size_mib");
  EXPECT_EQ(get("/machine-config"), expected);

  expect_done(put("/machine-config", {{"vcpu_count", 1}, {"mem_size_mib", 64}}));
  EXPECT_EQ(get("/machine-config")["huge_pages"], "None");
}

TEST_F(RouterTest, a_cpu_template_is_shown_replaced_and_taken_back_by_the_deprecated_field) {
  const auto deprecated = [] { return metrics().deprecated_api.deprecated_http_api_calls.value(); };
  const auto fails = [] { return metrics().put_api_requests.cpu_cfg_fails.value(); };
  EXPECT_TRUE(get("/vm/config")["cpu-config"].is_null());
  expect_done(put("/cpu-config", {{"kvm_capabilities", {"1"}}}));
  expect_done(put("/cpu-config", {{"kvm_capabilities", {"!56"}}}));
  const json shown = get("/vm/config")["cpu-config"];
  EXPECT_EQ(shown["kvm_capabilities"], json({"!56"}));

  const std::uint64_t fails_before = fails();
  expect_refused(put("/cpu-config", {{"kvm_capabilities", {"x"}}}), "kvm_capabilities[0]");
  expect_refused(put("/cpu-config", {{"msr_modifiers", {{{"addr", "0x1b"}, {"bitmap", "0b0"}}}}}), "0x1b");
  EXPECT_EQ(fails(), fails_before + 2);
  const std::uint64_t before = deprecated();
  expect_refused(send("PATCH", "/machine-config", R"({"cpu_template": "T2"})"), "cpu-config");
  expect_done(put("/machine-config", {{"vcpu_count", 1}, {"mem_size_mib", 64}}));
  EXPECT_EQ(deprecated(), before);
  EXPECT_EQ(get("/vm/config")["cpu-config"], shown);

  expect_done(send("PATCH", "/machine-config", R"({"cpu_template": "None"})"));
  EXPECT_EQ(deprecated(), before + 1);
  EXPECT_TRUE(get("/vm/config")["cpu-config"].is_null());
  expect_done(put("/cpu-config", json::object()));
  EXPECT_FALSE(get("/vm/config")["cpu-config"].is_null());
  // What is refused takes nothing back.
  expect_refused(put("/machine-config", {{"vcpu_count", 99}, {"mem_size_mib", 64}, {"cpu_template", "None"}}),
                 "vcpu_count");
  EXPECT_FALSE(get("/vm/config")["cpu-config"].is_null());
  expect_done(put("/machine-config", {{"vcpu_count", 1}, {"mem_size_mib", 64}, {"cpu_template", "None"}}));
  EXPECT_TRUE(get("/vm/config")["cpu-config"].is_null());
}

TEST_F(RouterTest, boot_source_is_opened_when_it_is_put) {
  expect_refused(put("/boot-source", {{"kernel_image_path", dir_.file("missing")}}), dir_.file("missing"));
  EXPECT_TRUE(get("/vm/config")["boot-source"].is_null());
  expect_done(put("/boot-source", {{"kernel_image_path", dir_.file("kernel")}, {"boot_args", "quiet"}}));
  expect_refused(put("/boot-source",
                     {{"kernel_image_path", dir_.file("kernel")}, {"initrd_path", dir_.file("missing")}}),
                 "initrd");
  EXPECT_EQ(
      get("/vm/config")["boot-source"],
      json({{"kernel_image_path", dir_.file("kernel")}, {"initrd_path", nullptr}, {"boot_args", "quiet"}}));
}

TEST_F(RouterTest, a_drive_is_replaced_by_another_of_its_id_and_by_itself) {
  expect_done(put("/drives/one", drive("one", "disk", true)));
  expect_done(put("/drives/one", drive("one", "disk", true)));
  expect_done(put("/drives/one", drive("one", "other", true)));
  const json drives = get("/vm/config")["drives"];
  ASSERT_EQ(drives.size(), 1U);
  EXPECT_EQ(drives[0]["path_on_host"], dir_.file("other"));
  // The image that it had is free again.
  expect_done(put("/drives/two", drive("two", "disk")));
}

TEST_F(RouterTest, a_drive_that_is_refused_leaves_the_one_there_was) {
  expect_done(put("/drives/one", drive("one", "disk", true)));
  expect_done(put("/drives/two", drive("two", "other")));
  const json before = get("/vm/config");
  expect_refused(put("/drives/one", drive("one", "missing", true)), "missing");
  expect_refused(put("/drives/one", drive("one", "other", true)), "drive one");
  expect_refused(put("/drives/two", drive("two", "other", true)), "root device already");
  expect_refused(put("/drives/three", drive("one", "other")), "not the one of the path");
  EXPECT_EQ(get("/vm/config"), before);
  // It holds its image as before.
  expect_refused(put("/drives/three", drive("three", "disk")), "drive three");
}

TEST_F(RouterTest, configuration_that_was_put_is_read_back_as_a_configuration_file) {
  expect_done(put("/boot-source", {{"kernel_image_path", dir_.file("kernel")}}));
  json disk = drive("one", "disk", true);
  disk["cache_type"] = "Writeback";
  disk["io_engine"] = "Async";
  disk["rate_limiter"] = {{"ops", {{"size", 10}, {"refill_time", 100}, {"one_time_burst", 5}}}};
  expect_done(put("/drives/one", disk));
  const json config = get("/vm/config");
  for (const char* key :
       {"balloon", "cpu-config", "entropy", "logger", "memory-hotplug", "metrics", "mmds-config", "vsock"}) {
    EXPECT_TRUE(config.contains(key) && config[key].is_null()) << key;
  }
  EXPECT_EQ(config["network-interfaces"], json::array());
  EXPECT_EQ(config["pmem"], json::array());
  EXPECT_EQ(config["drives"][0]["rate_limiter"], disk["rate_limiter"]);
  EXPECT_EQ(config["drives"][0]["cache_type"], "Writeback");
  EXPECT_EQ(config["drives"][0]["io_engine"], "Async");
  const auto file = parse_config_file(config.dump(), "the answer");
  ASSERT_TRUE(file) << file.error().message();
  EXPECT_EQ(to_json(file->machine), config["machine-config"]);
  EXPECT_EQ(to_json(file->boot_source), config["boot-source"]);
  ASSERT_EQ(file->drives.size(), 1U);
  EXPECT_EQ(to_json(file->drives[0]), config["drives"][0]);
  EXPECT_TRUE(file->networks.empty());
  EXPECT_FALSE(file->mmds || file->cpu_template || file->logger || file->metrics);
}

TEST_F(RouterTest, what_needs_a_started_microvm_is_refused_before) {
  for (const auto& [method, path, body] : std::vector<std::array<std::string, 3>>{
           {"PATCH", "/vm", R"({"state": "Paused"})"},
           {"PATCH", "/drives/one", R"({"drive_id": "one"})"},
           {"PATCH", "/network-interfaces/one", R"({"iface_id": "one"})"},
           {"PUT", "/snapshot/create", R"({"snapshot_path": "/s", "mem_file_path": "/m"})"},
           {"PUT", "/snapshot/working-set", R"({"working_set_path": "/w"})"},
           {"PUT", "/actions", R"({"action_type": "FlushMetrics"})"},
           {"PUT", "/actions", R"({"action_type": "SendCtrlAltDel"})"}}) {
    const std::string what = path == "/actions" ? json::parse(body)["action_type"].get<std::string>()
                                                : std::string(method).append(" ").append(path);
    expect_refused(send(method, path, body), what + " is possible only after the microVM was started");
  }
  expect_refused(send("PUT", "/actions", R"({"action_type": "InstanceStart"})"), "no boot source");
  EXPECT_EQ(get("/")["state"], "Not started");
}

TEST_F(RouterTest, what_is_no_call_or_no_proper_one_is_refused_with_its_fault) {
  for (const auto& [method, path, body, text] : std::vector<std::array<std::string, 4>>{
           {"GET", "/nowhere", "", "/nowhere"},
           {"GET", "", "", "there is no"},
           {"DELETE", "/drives/one", "", "DELETE is not possible on /drives/one; PUT and PATCH are"},
           {"POST", "/actions", "{}", "POST is not possible on /actions; PUT is"},
           {"GET", "/boot-source", "", "GET is not possible on /boot-source; PUT is"},
           {"POST", "/machine-config", "{}", "/machine-config; GET, PUT and PATCH are"},
           {"PATCH", "/drives/one", R"({"drive_id": "one", "is_read_only": true})",
            R"(unknown field "is_read_only" of a PATCH: only a PUT)"},
           {"PATCH", "/network-interfaces/one", R"({"iface_id": "one", "mtu": 1})",
            R"(unknown field "mtu" of a PATCH: only a PUT)"},
           {"PUT", "/drives/one", R"({"drive_id": "one", "frobs": 1})", R"(unknown field "frobs")"},
           {"HEAD", "/", "", "HEAD"},
           {"get", "/", "", "get"},
           {"GET", "/", "{}", "a GET has no body"},
           {"PUT", "/machine-config", "", "body is empty"},
           {"PATCH", "/vm", "", "body is empty"},
           {"PUT", "/machine-config", "{", "not JSON"},
           {"PUT", "/machine-config", "[]", "must be an object"},
           {"PUT", "/machine-config", R"({"vcpu_count": 1, "mem_size_mib": 1, "frobs": 2})", "frobs"},
           {"PUT", "/machine-config", R"({"vcpu_count": 1, "vcpu_count": 2, "mem_size_mib": 1})",
            "given twice"},
           {"PUT", "/machine-config", R"({"vcpu_count": 4294967297, "mem_size_mib": 1})", "vcpu_count"},
           {"PUT", "/machine-config", R"({"vcpu_count": -1, "mem_size_mib": 1})", "vcpu_count"},
           {"PUT", "/machine-config", R"({"vcpu_count": "1", "mem_size_mib": 1})", "vcpu_count"},
           {"PUT", "/drives/a-b", "{}", "a-b"},
           {"PUT", "/drives/", "{}", "there is no /drives/"},
           {"PUT", "/drives/a/b", "{}", "there is no /drives/a/b"},
           {"PUT", "/actions", R"({"action_type": "Explode"})", "InstanceStart"},
           {"PUT", "/actions", "{}", "action_type"},
           {"PUT", "/logger", R"({"level": "loud"})", "loud"},
           {"PUT", "/serial", R"({"serial_out_path": "/nowhere/at/all"})", "/nowhere/at/all"},
           {"PUT", "/balloon", "{}", "no such device"},
           {"GET", "/balloon", "", "no such device"},
           {"PUT", "/vsock", "{}", "no such device"},
           {"PUT", "/entropy", "{}", "no such device"},
           {"PUT", "/pmem/one", "{}", "no such device"},
           {"PUT", "/hotplug/memory", "{}", "no such device"},
           {"PUT", "/snapshot/create", "{}", "snapshot_path"},
           {"PUT", "/snapshot/load", "{}", "snapshot_path"},
           {"PUT", "/snapshot/load", R"({"snapshot_path": "s"})", "mem_backend"}}) {
    expect_refused(send(method, path, body), text);
  }
}

TEST_F(RouterTest, bytes_that_are_no_text_are_refused_and_quoted_safely) {
  expect_refused(send("GET", "/\xff\xfe"), "there is no");
  expect_refused(send("PUT", "/machine-config", "{\"\xff\": 1}"), "the body");
}

TEST_F(RouterTest, metrics_are_given_as_text_with_the_state_and_what_devices_count_themselves) {
  serial_metrics_.write_count = metrics().uart.write_count.value() + 5;
  const HttpResponse response = send("GET", "/metrics");
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.content_type, "text/plain; version=0.0.4; charset=utf-8");
  EXPECT_NE(response.body.find("mayfly_vm_state{id=\"vm-7\",state=\"Not started\"} 1\n"), std::string::npos);
  const std::string count = std::to_string(serial_metrics_.write_count.load());
  EXPECT_NE(response.body.find("\nmayfly_uart_write_total{id=\"vm-7\"} " + count + "\n"), std::string::npos);
  expect_refused(send("GET", "/metrics", "{}"), "a GET has no body");
}

TEST_F(RouterTest, events_are_a_stream) {
  EXPECT_TRUE(send("GET", "/events").stream_events);
  EXPECT_FALSE(send("GET", "/version").stream_events);
  expect_refused(send("PUT", "/events", "{}"), "PUT is not possible on /events");
}

TEST_F(RouterTest, a_rate_limiter_of_the_serial_port_is_checked_when_it_is_put) {
  expect_done(put("/serial", {{"rate_limiter", {{"size", 100}, {"refill_time", 1000}}}}));
  expect_done(put("/serial", {{"rate_limiter", {{"size", 0}, {"refill_time", 0}}}}));
  expect_refused(put("/serial", {{"rate_limiter", {{"size", 1}, {"refill_time", 1ULL << 63U}}}}), "serial");
}

TEST_F(RouterTest, calls_of_a_monitor_that_is_ending_are_refused) {
  gate_.open = false;
  expect_refused(send("GET", "/metrics"), "ending");
  expect_refused(send("GET", "/"), "ending");
  expect_refused(put("/machine-config", {{"vcpu_count", 1}, {"mem_size_mib", 64}}), "ending");
}

TEST_F(RouterTest, calls_and_refusals_are_counted) {
  const auto calls = metrics().put_api_requests.machine_cfg_count.value();
  const auto fails = metrics().put_api_requests.machine_cfg_fails.value();
  expect_done(put("/machine-config", {{"vcpu_count", 1}, {"mem_size_mib", 64}}));
  expect_refused(put("/machine-config", {{"vcpu_count", 0}, {"mem_size_mib", 64}}), "vcpu_count");
  EXPECT_EQ(metrics().put_api_requests.machine_cfg_count.value(), calls + 2);
  EXPECT_EQ(metrics().put_api_requests.machine_cfg_fails.value(), fails + 1);
}

}  // namespace
}  // namespace mayfly::api
