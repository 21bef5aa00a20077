#include "api/vm_client.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "api/json_object.h"
#include "api/refusal.h"

namespace mayfly::api {
namespace {

// The rest of an answer is its own matter: later versions may tell more.
Result<nlohmann::json> field_of(const std::string& text, const char* key) {
  MAYFLY_TRY_ASSIGN(const nlohmann::json value, parse_json(text, "its answer"));
  if (!value.is_object() || !value.contains(key)) {
    return fail(ErrorCode::kIo, "its answer has no field \"" + std::string(key) + "\"");
  }
  return value[key];
}

Result<std::uint64_t> number_of(const std::string& text, const char* key) {
  MAYFLY_TRY_ASSIGN(const nlohmann::json value, field_of(text, key));
  if (!value.is_number_unsigned()) {
    return fail(ErrorCode::kIo, "field \"" + std::string(key) + "\" of its answer is no number");
  }
  return value.get<std::uint64_t>();
}

Result<std::string> short_text_of(const std::string& text, const char* key) {
  MAYFLY_TRY_ASSIGN(const nlohmann::json value, field_of(text, key));
  if (!value.is_string() || value.get_ref<const std::string&>().size() > VmStatus::kMaxState) {
    return fail(ErrorCode::kIo, "field \"" + std::string(key) + "\" of its answer is no " + key);
  }
  return value.get<std::string>();
}

}  // namespace

Error refusal_of(const HttpAnswer& answer) {
  if (const auto value = parse_json(answer.body, "answer"); value && value->is_object()) {
    if (const auto message = value->find("fault_message"); message != value->end() && message->is_string()) {
      return {ErrorCode::kUnsupported, message->get<std::string>()};
    }
  }
  return {ErrorCode::kUnsupported, "it answered with HTTP status " + std::to_string(answer.status)};
}

Result<std::string> VmClient::get(const std::string& path) const {
  MAYFLY_TRY_ASSIGN(HttpAnswer answer, http_.call("GET", path));
  if (answer.status != 200) {
    return tl::make_unexpected(refusal_of(answer));
  }
  return std::move(answer.body);
}

Result<void> VmClient::change(const std::string& method, const std::string& path,
                              std::string_view body) const {
  MAYFLY_TRY_ASSIGN(const HttpAnswer answer, http_.call(method, path, body));
  if (answer.status != 204) {
    return tl::make_unexpected(refusal_of(answer));
  }
  return {};
}

Result<VmStatus> VmClient::status() const {
  MAYFLY_TRY_ASSIGN(const std::string instance, get("/"));
  VmStatus status;
  MAYFLY_TRY_ASSIGN(status.id, short_text_of(instance, "id"));
  MAYFLY_TRY_ASSIGN(status.state, short_text_of(instance, "state"));
  MAYFLY_TRY_ASSIGN(const std::string machine, get("/machine-config"));
  MAYFLY_TRY_ASSIGN(status.vcpu_count, number_of(machine, "vcpu_count"));
  MAYFLY_TRY_ASSIGN(status.mem_size_mib, number_of(machine, "mem_size_mib"));
  return status;
}

Result<std::string> VmClient::id() const {
  MAYFLY_TRY_ASSIGN(const std::string instance, get("/"));
  return short_text_of(instance, "id");
}

Result<void> VmClient::pause() const {
  return change("PATCH", "/vm", R"({"state": "Paused"})");
}

Result<void> VmClient::create_snapshot(const SnapshotRequest& request) const {
  const nlohmann::json body = {{"snapshot_path", request.state_path},
                               {"mem_file_path", request.memory_path},
                               {"snapshot_type", request.kind == SnapshotKind::kDiff ? "Diff" : "Full"},
                               {"live", request.live}};
  // A path that is not UTF-8 cannot be said in JSON: with replacement characters it is refused or another.
  return change("PUT", "/snapshot/create",
                body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

Result<void> VmClient::write_working_set(const std::string& path) const {
  const nlohmann::json body = {{"working_set_path", path}};
  return change("PUT", "/snapshot/working-set",
                body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

Result<void> VmClient::resume() const {
  return change("PATCH", "/vm", R"({"state": "Resumed"})");
}

Result<void> VmClient::send_ctrl_alt_del() const {
  return change("PUT", "/actions", R"({"action_type": "SendCtrlAltDel"})");
}

Result<std::string> VmClient::metrics() const {
  MAYFLY_TRY_ASSIGN(std::string text, get("/metrics"));
  // Whoever answers may be anybody: what is no printable ASCII stays off the terminal.
  std::ranges::replace_if(
      text, [](char byte) { return byte != '\n' && (byte < ' ' || byte > '~'); }, '?');
  return text;
}

Result<std::string> VmClient::configuration() const {
  MAYFLY_TRY_ASSIGN(const std::string text, get("/vm/config"));
  MAYFLY_TRY_ASSIGN(const nlohmann::json value, parse_json(text, "its answer"));
  // ASCII with escapes: harmless on any terminal.
  return value.dump(2, ' ', true, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace mayfly::api
