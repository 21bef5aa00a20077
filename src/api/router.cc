#include "api/router.h"

#include <algorithm>
#include <array>
#include <exception>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include "api/json_object.h"
#include "api/prometheus.h"
#include "api/sections.h"
#include "base/log.h"
#include "base/text.h"

namespace mayfly::api {
namespace {

using nlohmann::json;

constexpr const char* kAppName = "Mayfly";
constexpr const char* kDialectVersion = "1.17.0";
constexpr std::string_view kId = "{id}";
constexpr bool kDocument = true;

// Text of a caller's that is not UTF-8 is shown with replacement characters.
std::string text_of(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

HttpResponse refusal(const std::string& message, int status = 400) {
  return {.status = status, .body = text_of({{"fault_message", message}})};
}

HttpResponse ok(const json& value) {
  return {.status = 200, .body = text_of(value)};
}

const char* name_of(MicroVm::State state) {
  switch (state) {
    case MicroVm::State::kNotStarted:
      return "Not started";
    case MicroVm::State::kRunning:
      return "Running";
    case MicroVm::State::kPaused:
      return "Paused";
  }
  return "";
}

// The rules of the microVM's state, for routes and actions alike.
Result<void> allow(When when, const std::string& what, MicroVm::State state) {
  const bool started = state != MicroVm::State::kNotStarted;
  if (when == When::kBeforeStart && started) {
    return fail(ErrorCode::kBusy, what + " is possible only before the microVM is started");
  }
  if (when == When::kAfterStart && !started) {
    return fail(ErrorCode::kBusy, what + " is possible only after the microVM was started");
  }
  return {};
}

// Whether `path` is of `pattern`, in which one part may be {id}; that part goes to `id`.
bool matches(std::string_view pattern, std::string_view path, std::string& id) {
  const auto place = pattern.find(kId);
  if (place == std::string_view::npos) {
    return pattern == path;
  }
  const std::string_view prefix = pattern.substr(0, place);
  if (!path.starts_with(prefix) || path.size() == prefix.size()) {
    return false;
  }
  const std::string_view part = path.substr(prefix.size());
  if (part.find('/') != std::string_view::npos) {
    return false;
  }
  id = part;
  return true;
}

// "GET, PUT and PATCH are"
std::string list_of(const std::vector<std::string_view>& methods) {
  std::string text;
  for (std::size_t index = 0; index < methods.size(); ++index) {
    const bool last = index + 1 == methods.size();
    text.append(index == 0 ? "" : last ? " and " : ", ").append(methods[index]);
  }
  return text + (methods.size() == 1 ? " is" : " are");
}

Result<void> expect_same_id(const std::string& in_path, const std::string& in_body, const char* field) {
  if (in_path != in_body) {
    return fail(ErrorCode::kInvalidArgument,
                std::string(field) + " \"" + in_body + "\" is not the one of the path, \"" + in_path + "\"");
  }
  return {};
}

}  // namespace

struct Router::Call {
  const Route& route;
  std::string path;
  std::string id;  // of the path
  json body{};
  std::string text{};  // of the body
};

struct Router::Route {
  std::string_view method;
  std::string_view pattern;
  When when;
  Answer (Router::*serve)(const Call&);
  Counter* count = nullptr;
  Counter* fails = nullptr;
  // The body is data of the caller's, read elsewhere, and kExhausted means that it is too much of it (413).
  bool is_document = false;
};

struct Router::Action {
  std::string_view name;
  When when;
  Result<void> (*run)(MicroVm&);
};

Router::Router(Identity identity, MonitorGate& gate, WorkerThread& files, MicroVm& vm,
               std::optional<LoggerSection> logger, std::optional<MetricsSection> metrics)
    : identity_(std::move(identity)),
      gate_(gate),
      files_(files),
      vm_(vm),
      metadata_(vm.metadata()),
      logger_(std::move(logger)),
      metrics_(std::move(metrics)) {}

const std::vector<Router::Route>& Router::routes() {
  using enum When;
  Metrics& store = ::mayfly::metrics();
  auto& get = store.get_api_requests;
  auto& put = store.put_api_requests;
  auto& patch = store.patch_api_requests;
  static const std::vector<Route> all = {
      {"GET", "/", kAlways, &Router::get_instance, &get.instance_info_count},
      {"GET", "/version", kAlways, &Router::get_version, &get.vmm_version_count},
      {"GET", "/vm/config", kAlways, &Router::get_configuration},
      {"GET", "/events", kAlways, &Router::get_events},
      {"GET", "/metrics", kAlways, &Router::get_metrics},
      {"PATCH", "/vm", kAfterStart, &Router::patch_vm},
      {"PUT", "/actions", kAlways, &Router::put_action, &put.actions_count, &put.actions_fails},
      {"PUT", "/boot-source", kBeforeStart, &Router::put_boot_source, &put.boot_source_count,
       &put.boot_source_fails},
      {"GET", "/machine-config", kAlways, &Router::get_machine_config, &get.machine_cfg_count},
      {"PUT", "/machine-config", kBeforeStart, &Router::put_machine_config, &put.machine_cfg_count,
       &put.machine_cfg_fails},
      {"PATCH", "/machine-config", kBeforeStart, &Router::patch_machine_config, &patch.machine_cfg_count,
       &patch.machine_cfg_fails},
      {"PUT", "/cpu-config", kBeforeStart, &Router::put_cpu_config, &put.cpu_cfg_count, &put.cpu_cfg_fails},
      {"PUT", "/drives/{id}", kBeforeStart, &Router::put_drive, &put.drive_count, &put.drive_fails},
      {"PATCH", "/drives/{id}", kAfterStart, &Router::patch_drive, &patch.drive_count, &patch.drive_fails},
      {"PUT", "/network-interfaces/{id}", kBeforeStart, &Router::put_network, &put.network_count,
       &put.network_fails},
      {"PATCH", "/network-interfaces/{id}", kAfterStart, &Router::patch_network, &patch.network_count,
       &patch.network_fails},
      {"PUT", "/logger", kBeforeStart, &Router::put_logger, &put.logger_count, &put.logger_fails},
      {"PUT", "/metrics", kBeforeStart, &Router::put_metrics, &put.metrics_count, &put.metrics_fails},
      {"PUT", "/serial", kBeforeStart, &Router::put_serial, &put.serial_count, &put.serial_fails},
      {"GET", "/mmds", kAlways, &Router::get_mmds, &get.mmds_count},
      {"PUT", "/mmds", kAlways, &Router::put_mmds, &put.mmds_count, &put.mmds_fails, kDocument},
      {"PATCH", "/mmds", kAlways, &Router::patch_mmds, &patch.mmds_count, &patch.mmds_fails, kDocument},
      {"PUT", "/mmds/config", kBeforeStart, &Router::put_mmds_config, &put.mmds_count, &put.mmds_fails},
      {"PUT", "/snapshot/create", kAfterStart, &Router::put_snapshot_create},
      {"PUT", "/snapshot/load", kBeforeStart, &Router::put_snapshot_load},
      {"PUT", "/snapshot/working-set", kAfterStart, &Router::put_working_set},
      {"GET", "/balloon", kAlways, &Router::refuse_device},
      {"PUT", "/balloon", kAlways, &Router::refuse_device},
      {"PATCH", "/balloon", kAlways, &Router::refuse_device},
      {"GET", "/balloon/statistics", kAlways, &Router::refuse_device},
      {"PATCH", "/balloon/statistics", kAlways, &Router::refuse_device},
      {"PUT", "/vsock", kAlways, &Router::refuse_device},
      {"PUT", "/entropy", kAlways, &Router::refuse_device},
      {"PUT", "/pmem/{id}", kAlways, &Router::refuse_device},
      {"PATCH", "/pmem/{id}", kAlways, &Router::refuse_device},
      {"GET", "/hotplug/memory", kAlways, &Router::refuse_device},
      {"PUT", "/hotplug/memory", kAlways, &Router::refuse_device},
      {"PATCH", "/hotplug/memory", kAlways, &Router::refuse_device},
  };
  return all;
}

std::vector<std::string> Router::calls() {
  std::vector<std::string> all;
  for (const Route& route : routes()) {
    all.push_back(std::string(route.method) + " " + std::string(route.pattern));
  }
  return all;
}

HttpResponse Router::handle(const HttpRequest& request) noexcept {
  try {
    return answer(request);
  } catch (const std::exception&) {
    LOG_ERROR_LIMITED("API: %s %s: out of memory or a fault of the monitor's own", request.method.c_str(),
                      request.path.c_str());
    return {.status = 500, .body = R"({"fault_message":"the monitor failed to answer"})"};
  }
}

HttpResponse Router::answer(const HttpRequest& request) {
  std::vector<std::string_view> methods;  // of this path
  for (const Route& route : routes()) {
    std::string id;
    if (!matches(route.pattern, request.path, id)) {
      continue;
    }
    methods.push_back(route.method);
    if (route.method != request.method) {
      continue;
    }
    if (route.count != nullptr) {
      route.count->add();
    }
    auto served = serve(route, request, std::move(id));
    if (!served) {
      if (route.fails != nullptr) {
        route.fails->add();
      }
      LOG_INFO_LIMITED("API: %s %s refused: %s", request.method.c_str(), request.path.c_str(),
                       served.error().message().c_str());
      const bool is_full = served.error().code() == ErrorCode::kExhausted;
      return refusal(served.error().message(), is_full && route.is_document ? 413 : 400);
    }
    return served->value_or(HttpResponse{.status = 204, .body = {}});
  }
  return refusal(methods.empty()
                     ? "there is no " + request.path + " in this API"
                     : request.method + " is not possible on " + request.path + "; " + list_of(methods));
}

Router::Answer Router::serve(const Route& route, const HttpRequest& request, std::string id) {
  if (!id.empty() && !is_resource_id(id)) {
    return fail(ErrorCode::kInvalidArgument, "the id \"" + id + "\" must be letters, digits and '_'");
  }
  Call call{route, request.path, std::move(id), {}, request.body};
  if (route.method == "GET") {
    if (!request.body.empty()) {
      return fail(ErrorCode::kInvalidArgument, "a GET has no body");
    }
  } else if (request.body.empty()) {
    return fail(ErrorCode::kInvalidArgument, "the body is empty");
  } else if (!route.is_document) {
    MAYFLY_TRY_ASSIGN(call.body, parse_json(request.body, "the body"));
  }
  return (this->*route.serve)(call);
}

Result<void> Router::with_vm(const Call& call, const Work& work) {
  return with_vm(call.route.when, std::string(call.route.method) + " " + call.path, work);
}

Result<void> Router::with_vm(When when, const std::string& what, const Work& work) {
  Result<void> result = fail(ErrorCode::kBusy, "the microVM is ending");
  gate_.run([&] {
    result = allow(when, what, vm_.state());
    if (result) {
      result = work(vm_);
    }
  });
  return result;
}

Router::Answer Router::get_instance(const Call& call) {
  json value = {
      {"app_name", kAppName}, {"id", identity_.instance_id}, {"vmm_version", identity_.monitor_version}};
  MAYFLY_TRY(with_vm(call, [&](MicroVm& vm) -> Result<void> {
    value["state"] = name_of(vm.state());
    return {};
  }));
  return ok(value);
}

Router::Answer Router::get_version(const Call& /*call*/) {
  return ok({{"firecracker_version", kDialectVersion}, {"mayfly_version", identity_.monitor_version}});
}

Router::Answer Router::get_configuration(const Call& call) {
  VmConfig config;
  bool has_boot_source = false;
  MAYFLY_TRY(with_vm(call, [&](MicroVm& vm) -> Result<void> {
    config = vm.config();
    has_boot_source = !config.boot_source.kernel_image_path.empty();
    return {};
  }));
  const auto list = [](const auto& elements) {
    json values = json::array();
    for (const auto& element : elements) {
      values.push_back(to_json(element));
    }
    return values;
  };
  return ok({{"balloon", nullptr},
             {"boot-source", has_boot_source ? to_json(config.boot_source) : json()},
             {"cpu-config", config.cpu_template ? to_json(*config.cpu_template) : json()},
             {"drives", list(config.drives)},
             {"entropy", nullptr},
             {"logger", logger_ ? to_json(*logger_) : json()},
             {"machine-config", to_json(config.machine)},
             {"memory-hotplug", nullptr},
             {"metrics", metrics_ ? to_json(*metrics_) : json()},
             {"mmds-config", config.mmds ? to_json(*config.mmds) : json()},
             {"network-interfaces", list(config.networks)},
             {"pmem", json::array()},
             {"vsock", nullptr}});
}

Router::Answer Router::get_machine_config(const Call& call) {
  MachineConfig machine;
  MAYFLY_TRY(with_vm(call, [&](MicroVm& vm) -> Result<void> {
    machine = vm.config().machine;
    return {};
  }));
  return ok(to_json(machine));
}

Result<void> Router::apply(MicroVm& vm, const MachineSection& section) {
  MAYFLY_TRY(vm.put_machine_config(section.machine));
  if (section.names_cpu_template) {
    ::mayfly::metrics().deprecated_api.deprecated_http_api_calls.add();
    MAYFLY_TRY(vm.put_cpu_template(std::nullopt));
  }
  return {};
}

Router::Answer Router::put_machine_config(const Call& call) {
  MAYFLY_TRY_ASSIGN(const auto section, read_machine_config(call.body, "machine-config"));
  MAYFLY_TRY(with_vm(call, [&](MicroVm& vm) { return apply(vm, section); }));
  return std::nullopt;
}

Router::Answer Router::patch_machine_config(const Call& call) {
  MachineConfig current;
  MAYFLY_TRY(with_vm(call, [&](MicroVm& vm) -> Result<void> {
    current = vm.config().machine;
    return {};
  }));
  // Nothing but this API changes it, and there is one call at a time.
  MAYFLY_TRY_ASSIGN(const auto section, read_machine_changes(call.body, "machine-config", current));
  MAYFLY_TRY(with_vm(call, [&](MicroVm& vm) { return apply(vm, section); }));
  return std::nullopt;
}

Router::Answer Router::put_cpu_config(const Call& call) {
  MAYFLY_TRY_ASSIGN(auto cpu_template, read_cpu_config(call.body, "cpu-config"));
  MAYFLY_TRY(with_vm(call, [&](MicroVm& vm) { return vm.put_cpu_template(std::move(cpu_template)); }));
  return std::nullopt;
}

Router::Answer Router::put_boot_source(const Call& call) {
  MAYFLY_TRY_ASSIGN(auto boot_source, read_boot_source(call.body, "boot-source"));
  MAYFLY_TRY(with_vm(call, [&](MicroVm& vm) { return vm.put_boot_source(std::move(boot_source)); }));
  return std::nullopt;
}

Router::Answer Router::put_drive(const Call& call) {
  MAYFLY_TRY_ASSIGN(auto drive, read_drive(call.body, "drive"));
  MAYFLY_TRY(expect_same_id(call.id, drive.id, "drive_id"));
  MAYFLY_TRY(with_vm(call, [&](MicroVm& vm) { return vm.put_drive(std::move(drive)); }));
  return std::nullopt;
}

Router::Answer Router::patch_drive(const Call& call) {
  MAYFLY_TRY_ASSIGN(const auto changes, read_drive_changes(call.body, "drive"));
  MAYFLY_TRY(expect_same_id(call.id, changes.id, "drive_id"));
  MAYFLY_TRY(with_vm(call, [&](MicroVm& vm) { return vm.patch_drive(changes); }));
  return std::nullopt;
}

Router::Answer Router::put_network(const Call& call) {
  MAYFLY_TRY_ASSIGN(auto network, read_network(call.body, "network-interface"));
  MAYFLY_TRY(expect_same_id(call.id, network.id, "iface_id"));
  MAYFLY_TRY(with_vm(call, [&](MicroVm& vm) { return vm.put_network(std::move(network)); }));
  return std::nullopt;
}

Router::Answer Router::patch_network(const Call& call) {
  MAYFLY_TRY_ASSIGN(const auto changes, read_network_changes(call.body, "network-interface"));
  MAYFLY_TRY(expect_same_id(call.id, changes.id, "iface_id"));
  MAYFLY_TRY(with_vm(call, [&](MicroVm& vm) { return vm.patch_network(changes); }));
  return std::nullopt;
}

Router::Answer Router::put_logger(const Call& call) {
  MAYFLY_TRY_ASSIGN(auto logger, read_logger(call.body, "logger"));
  LogConfig config{.path = logger.log_path,
                   .level = std::nullopt,
                   .show_level = logger.show_level,
                   .show_origin = logger.show_log_origin,
                   .module = logger.module};
  if (logger.level) {
    MAYFLY_TRY_ASSIGN(config.level, parse_log_level(*logger.level));
  }
  const auto apply = [&](MicroVm& vm) -> Result<void> {
    if (config.path) {
      MAYFLY_TRY(vm.check_output(kLogRole, *config.path));
    }
    MAYFLY_TRY(configure_log(config));
    if (config.path) {
      vm.note_output(kLogRole, *config.path);
    }
    return {};
  };
  MAYFLY_TRY(with_vm(call, apply));
  logger_ = std::move(logger);
  return std::nullopt;
}

Router::Answer Router::put_metrics(const Call& call) {
  MAYFLY_TRY_ASSIGN(auto section, read_metrics(call.body, "metrics"));
  const auto apply = [&](MicroVm& vm) -> Result<void> {
    MAYFLY_TRY(vm.check_output(kMetricsRole, section.metrics_path));
    MAYFLY_TRY(::mayfly::metrics().open({.path = section.metrics_path,
                                         .instance_id = section.emit_id ? identity_.instance_id : "",
                                         .properties = section.properties}));
    vm.note_output(kMetricsRole, section.metrics_path);
    return {};
  };
  MAYFLY_TRY(with_vm(call, apply));
  metrics_ = std::move(section);
  return std::nullopt;
}

Router::Answer Router::put_serial(const Call& call) {
  MAYFLY_TRY_ASSIGN(const auto serial, read_serial(call.body, "serial"));
  MAYFLY_TRY(with_vm(call, [&](MicroVm& vm) { return vm.put_serial(serial); }));
  return std::nullopt;
}

// The store is for any thread.
Router::Answer Router::get_mmds(const Call& /*call*/) {
  MAYFLY_TRY_ASSIGN(auto text, metadata_->get());
  return HttpResponse{.status = 200, .body = std::move(text)};
}

Router::Answer Router::put_mmds(const Call& call) {
  MAYFLY_TRY(metadata_->put(call.text));
  return std::nullopt;
}

Router::Answer Router::patch_mmds(const Call& call) {
  MAYFLY_TRY(metadata_->patch(call.text));
  return std::nullopt;
}

Router::Answer Router::put_mmds_config(const Call& call) {
  MAYFLY_TRY_ASSIGN(const auto mmds, read_mmds_config(call.body, "mmds-config"));
  MAYFLY_TRY(with_vm(call, [&](MicroVm& vm) { return vm.put_mmds_config(mmds); }));
  return std::nullopt;
}

Router::Answer Router::patch_vm(const Call& call) {
  static constexpr std::array<std::string_view, 2> kStates = {"Paused", "Resumed"};
  JsonObject object(call.body, "vm");
  object.require("state");
  const auto state = object.choice("state", kStates);
  MAYFLY_TRY(object.finish());
  const bool pauses = *state == 0;
  const std::uint64_t begin_ns = monotonic_ns();
  MAYFLY_TRY(with_vm(call, [&](MicroVm& vm) { return pauses ? vm.pause() : vm.resume(); }));
  auto& latencies = ::mayfly::metrics().latencies_us;
  (pauses ? latencies.pause_vm : latencies.resume_vm).set((monotonic_ns() - begin_ns) / 1000);
  return std::nullopt;
}

Router::Answer Router::put_action(const Call& call) {
  static constexpr std::array kActions = {
      Action{"InstanceStart", When::kBeforeStart,
             [](MicroVm& vm) {
               return vm.start().map_error([](const BuildError& error) { return error.error; });
             }},
      Action{"FlushMetrics", When::kAfterStart,
             [](MicroVm& vm) {
               vm.collect_counts();
               return ::mayfly::metrics().flush();
             }},
      Action{"SendCtrlAltDel", When::kAfterStart, [](MicroVm& vm) { return vm.send_ctrl_alt_del(); }},
  };
  std::array<std::string_view, kActions.size()> names;
  std::transform(kActions.begin(), kActions.end(), names.begin(),
                 [](const Action& action) { return action.name; });
  JsonObject object(call.body, "action");
  object.require("action_type");
  const auto index = object.choice("action_type", names);
  MAYFLY_TRY(object.finish());
  const Action& action = kActions.at(*index);
  MAYFLY_TRY(with_vm(action.when, std::string(action.name), action.run));
  return std::nullopt;
}

Router::Answer Router::get_events(const Call& /*call*/) {
  return HttpResponse{.stream_events = true};
}

Router::Answer Router::get_metrics(const Call& call) {
  PrometheusFacts facts{identity_.instance_id, identity_.monitor_version, {}};
  MAYFLY_TRY(with_vm(call, [&](MicroVm& vm) -> Result<void> {
    vm.collect_counts();
    facts.state = name_of(vm.state());
    return {};
  }));
  return HttpResponse{.body = prometheus_text(::mayfly::metrics(), facts),
                      .content_type = kPrometheusContentType};
}

Router::Answer Router::refuse_device(const Call& call) {
  return fail(ErrorCode::kUnsupported, call.path + ": this monitor has no such device, on purpose");
}

// Files that are being written. They end on the thread that made them: one that did not get its name may have
// to be removed, which the filter of the API's own thread forbids.
template <typename Files>
class EndsThere {
 public:
  EndsThere(WorkerThread& thread, Files files)
      : thread_(thread), files_(std::make_unique<Files>(std::move(files))) {}
  EndsThere(const EndsThere&) = delete;
  EndsThere& operator=(const EndsThere&) = delete;
  ~EndsThere() {
    thread_.run([this] { files_.reset(); });
  }

  Files& value() const { return *files_; }

 private:
  WorkerThread& thread_;
  std::unique_ptr<Files> files_;
};

// What `step` gives on the thread for files.
template <typename Step>
auto Router::on_files(const Step& step) {
  std::optional<decltype(step())> result;
  files_.run([&] { result.emplace(step()); });
  return std::move(*result);
}

Result<void> Router::take_snapshot(const Call& call, const SnapshotRequest& request) {
  MAYFLY_TRY_ASSIGN(SnapshotJob made, on_files([&] { return SnapshotJob::create(request); }));
  const EndsThere<SnapshotJob> owner(files_, std::move(made));
  SnapshotJob& job = owner.value();
  // Of the thread for files, which whoever wants to know waits for.
  bool given_up = false;
  const auto proceed = [&](std::uint64_t, std::uint64_t) {
    given_up = gate_.ending();
    return !given_up;
  };
  const auto say_why = [&given_up](Error error) {
    return given_up ? Error(ErrorCode::kBusy, "the microVM is ending: no snapshot was made of it")
                    : std::move(error);
  };
  if (request.live) {
    LiveMemory live;
    const auto begin = [&live](MicroVm& vm) -> Result<void> {
      MAYFLY_TRY_ASSIGN(live, vm.begin_live());
      return {};
    };
    MAYFLY_TRY(with_vm(call, begin));
    live.options.proceed = proceed;
    MAYFLY_TRY(on_files([&] { return job.write_ahead(live); }).map_error(say_why));
  }
  // The monitor's thread waits for the memory to be written: no device brings the guest anything meanwhile.
  const auto save = [&](MicroVm& vm) -> Result<void> {
    MAYFLY_TRY_ASSIGN(CapturedVm captured, vm.capture(request));
    captured.options.proceed = proceed;
    MAYFLY_TRY(on_files([&] { return job.write(captured); }).map_error(say_why));
    return {};
  };
  const auto save_standing = [&](MicroVm& vm) -> Result<void> {
    const bool runs = vm.state() == MicroVm::State::kRunning;
    const std::uint64_t begin_ns = monotonic_ns();
    if (runs) {
      MAYFLY_TRY(vm.pause());
    }
    auto saved = save(vm);
    if (runs) {
      MAYFLY_TRY(vm.resume());
      LOG_INFO("the guest stood still for %llu us of its live snapshot",
               static_cast<unsigned long long>((monotonic_ns() - begin_ns) / 1000));
    }
    return saved;
  };
  MAYFLY_TRY(with_vm(call, save_standing));
  return on_files([&] { return job.commit([&] { return proceed(0, 0); }); }).map_error(say_why);
}

Router::Answer Router::put_snapshot_create(const Call& call) {
  MAYFLY_TRY_ASSIGN(const SnapshotRequest request, read_snapshot_create(call.body, "snapshot"));
  const std::uint64_t begin_ns = monotonic_ns();
  MAYFLY_TRY(with_vm(call, [&](MicroVm& vm) { return vm.check_snapshot(request); }));
  const auto taken = take_snapshot(call, request);
  // Not called where the monitor is ending, and then of no use.
  static_cast<void>(with_vm(call, [&](MicroVm& vm) -> Result<void> {
    vm.end_snapshot(taken.has_value());
    return {};
  }));
  MAYFLY_TRY(taken);
  auto& latencies = ::mayfly::metrics().latencies_us;
  (request.kind == SnapshotKind::kDiff ? latencies.diff_create_snapshot : latencies.full_create_snapshot)
      .set((monotonic_ns() - begin_ns) / 1000);
  return std::nullopt;
}

Router::Answer Router::put_working_set(const Call& call) {
  MAYFLY_TRY_ASSIGN(const std::string path, read_working_set(call.body, "working-set"));
  // Refused before there is a guest: only from then on is it known that the thread for files takes tasks.
  MAYFLY_TRY(with_vm(call, [](MicroVm&) { return Result<void>(); }));
  MAYFLY_TRY_ASSIGN(AtomicFile made, on_files([&] { return AtomicFile::create(path, "working set"); }));
  const EndsThere<AtomicFile> owner(files_, std::move(made));
  AtomicFile& file = owner.value();
  RecordedSet recorded;
  const auto take = [&](MicroVm& vm) -> Result<void> {
    MAYFLY_TRY_ASSIGN(recorded, vm.take_working_set(path));
    return {};
  };
  MAYFLY_TRY(with_vm(call, take));
  const auto write = [&]() -> Result<void> {
    MAYFLY_TRY_ASSIGN(const auto found, recorded.recorder->finish());
    MAYFLY_TRY(write_working_set({file.descriptor(), file.name()}, recorded.owner, found.runs));
    MAYFLY_TRY(file.commit());
    if (!found.whole) {
      LOG_WARN("%s: has the first %llu pages that the guest touched; there was no room for more",
               file.name().c_str(), static_cast<unsigned long long>(found.pages));
    }
    return {};
  };
  const auto written = on_files(write);
  if (!written) {
    // To be asked for again. Not called where the monitor is ending, and then of no use.
    static_cast<void>(with_vm(call, [&](MicroVm& vm) -> Result<void> {
      vm.keep_working_set(std::move(recorded));
      return {};
    }));
  }
  MAYFLY_TRY(written);
  return std::nullopt;
}

Router::Answer Router::put_snapshot_load(const Call& call) {
  MAYFLY_TRY_ASSIGN(const LoadRequest request, read_snapshot_load(call.body, "snapshot"));
  const std::uint64_t begin_ns = monotonic_ns();
  MAYFLY_TRY(with_vm(call, [&](MicroVm& vm) {
    return vm.load_snapshot(request).map_error([](const BuildError& error) { return error.error; });
  }));
  ::mayfly::metrics().latencies_us.load_snapshot.set((monotonic_ns() - begin_ns) / 1000);
  return std::nullopt;
}

}  // namespace mayfly::api
