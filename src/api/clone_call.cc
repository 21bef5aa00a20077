#include "api/clone_call.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "api/json_object.h"
#include "api/refusal.h"
#include "api/sections.h"
#include "base/text.h"
#include "devices/virtio/net/mac_address.h"

namespace mayfly::api {
namespace {

using nlohmann::json;

constexpr const char* kBody = "clone";

std::string replaced(std::string text, std::string_view what, std::string_view with) {
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + with.size())) {
    text.replace(at, what.size(), with);
  }
  return text;
}

// What "{id}" and "{n}" stand for.
class Names {
 public:
  Names(const std::string& id, std::uint64_t number) : whose_(Whose{id, number, std::to_string(number)}) {}
  // Nobody's yet: all stays as it is.
  Names() = default;
  std::string in(const std::string& text) const {
    return whose_ ? replaced(replaced(text, "{n}", whose_->number_text), "{id}", whose_->id) : text;
  }
  // What is no address stays as it is, and is refused by who reads it.
  std::string in_mac(const std::string& text) const {
    const auto address = whose_ ? MacAddress::parse_numbered(text, whose_->number) : std::nullopt;
    return address ? address->to_string() : text;
  }

 private:
  struct Whose {
    const std::string& id;
    std::uint64_t number;
    std::string number_text;
  };
  std::optional<Whose> whose_;
};

json text_or_null(const std::optional<std::string>& text, const Names& names) {
  return text ? json(names.in(*text)) : json();
}

// All of the request but who it is for. Metadata is JSON already.
json changes_of(const LoadRequest& load, const Names& names) {
  json networks = json::array();
  for (const NetworkOverride& change : load.networks) {
    networks.push_back({{"iface_id", change.id},
                        {"host_dev_name", text_or_null(change.tap, names)},
                        {"guest_mac", change.mac ? json(names.in_mac(*change.mac)) : json()}});
  }
  json drives = json::array();
  for (const DriveOverride& change : load.drives) {
    json drive = {{"drive_id", change.id}, {"path_on_host", text_or_null(change.path, names)}};
    if (change.overlay) {
      drive["overlay"] = change.overlay->path ? json(names.in(*change.overlay->path)) : json("memory");
    }
    drives.push_back(std::move(drive));
  }
  json changes = {{"network_overrides", std::move(networks)},
                  {"drive_overrides", std::move(drives)},
                  {"clock_realtime", load.advance_clock},
                  {"resume_vm", load.resume}};
  if (load.metadata) {
    changes["metadata"] = json::parse(*load.metadata, nullptr, false);
  }
  return changes;
}

std::string text_of(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

Result<BornClone> read_born(const json& value) {
  JsonObject object(value, "its answer");
  object.require("id");
  object.require("pid");
  BornClone clone{.id = object.string("id").value_or("")};
  clone.pid = static_cast<pid_t>(object.integer("pid", 1, std::numeric_limits<pid_t>::max()).value_or(0));
  clone.socket = object.string("api_sock");
  MAYFLY_TRY(object.finish());
  return clone;
}

}  // namespace

Result<CloneRequest> parse_clone_request(std::string_view text) {
  MAYFLY_TRY_ASSIGN(const json value, parse_json(text, "the body"));
  JsonObject object(value, kBody);
  CloneRequest request;
  request.count =
      static_cast<std::uint32_t>(object.integer("count", 1, kMaxClonesPerCall).value_or(request.count));
  request.id = object.string("id");
  request.id_prefix = object.string("id_prefix");
  request.api = object.boolean("api").value_or(true);
  request.api_socket = object.string("api_sock");
  request.serial_path = object.string("serial_out_path");
  request.load.resume = object.boolean("resume_vm").value_or(true);
  request.load.advance_clock = object.boolean("clock_realtime").value_or(false);
  MAYFLY_TRY(read_load_overrides(object, request.load));
  for (const auto& [key, name] : {std::pair("id", request.id), std::pair("id_prefix", request.id_prefix)}) {
    if (name && !is_instance_id(*name)) {
      object.refuse(key, "\"" + *name + "\" must be 1 to 64 letters, digits and '-'");
    }
  }
  if (request.id && (request.count != 1 || request.id_prefix)) {
    object.refuse("id", "is one clone's; ask for several by count and id_prefix");
  }
  const auto is_single = [](const NetworkOverride& change) {
    return change.mac && MacAddress::parse(*change.mac);
  };
  if (request.count > 1 && std::ranges::any_of(request.load.networks, is_single)) {
    object.refuse("network_overrides", "guest_mac is one interface's; for several clones it ends in \"{n}\"");
  }
  if (!request.load.resume && !request.api) {
    object.refuse("resume_vm", "false leaves a clone without a control API paused for ever");
  }
  if (request.api_socket && !request.api) {
    object.refuse("api_sock", "contradicts api: false");
  }
  MAYFLY_TRY(object.finish());
  return request;
}

Result<std::string> clone_order(const CloneRequest& request, const std::string& id, std::uint64_t number,
                                const std::string& socket_folder) {
  if (!is_instance_id(id)) {
    return fail(ErrorCode::kInvalidArgument,
                "the id \"" + id +
                    "\" must be 1 to 64 letters, digits and '-': take a shorter id_prefix (--id-prefix)");
  }
  const Names names(id, number);
  json order = changes_of(request.load, names);
  order["id"] = id;
  order["api"] = request.api;
  if (const auto socket = clone_socket(request, id, number, socket_folder)) {
    order["api_sock"] = *socket;
  }
  order["serial_out_path"] = text_or_null(request.serial_path, names);
  return text_of(order);
}

std::optional<std::string> clone_socket(const CloneRequest& request, const std::string& id,
                                        std::uint64_t number, const std::string& socket_folder) {
  if (!request.api) {
    return std::nullopt;
  }
  return Names(id, number).in(request.api_socket.value_or(socket_folder + "{id}.sock"));
}

std::vector<std::string> clone_outputs(const CloneRequest& request, const std::string& id,
                                       std::uint64_t number) {
  const Names names(id, number);
  std::vector<std::string> paths;
  if (request.serial_path) {
    paths.push_back(names.in(*request.serial_path));
  }
  for (const DriveOverride& change : request.load.drives) {
    if (change.overlay && change.overlay->path) {
      paths.push_back(names.in(*change.overlay->path));
    }
  }
  return paths;
}

std::string clones_answer(const std::vector<BornClone>& clones) {
  json list = json::array();
  for (const BornClone& clone : clones) {
    list.push_back(
        {{"id", clone.id}, {"pid", clone.pid}, {"api_sock", clone.socket ? json(*clone.socket) : json()}});
  }
  return text_of({{"clones", std::move(list)}});
}

std::string template_answer(const std::string& name, const std::string& version, std::size_t ready,
                            std::size_t clones) {
  return text_of({{"app_name", "Mayfly template"},
                  {"id", name},
                  {"vmm_version", version},
                  {"ready", ready},
                  {"clones", clones}});
}

std::string fault_answer(const std::string& message) {
  return text_of({{"fault_message", message}});
}

Result<std::vector<BornClone>> ask_for_clones(const std::string& socket, const HttpClientLimits& limits,
                                              const CloneRequest& request) {
  json body = changes_of(request.load, Names());
  body["count"] = request.count;
  body["api"] = request.api;
  const auto add = [&body](const char* key, const std::optional<std::string>& text) {
    if (text) {
      body[key] = *text;
    }
  };
  add("id", request.id);
  add("id_prefix", request.id_prefix);
  add("api_sock", request.api_socket);
  add("serial_out_path", request.serial_path);
  MAYFLY_TRY_ASSIGN(const HttpAnswer answer,
                    HttpClient(socket, limits).call("POST", "/clone", text_of(body)));
  if (answer.status != 200) {
    return tl::make_unexpected(refusal_of(answer));
  }
  MAYFLY_TRY_ASSIGN(const json value, parse_json(answer.body, "its answer"));
  const auto list = value.is_object() ? value.find("clones") : value.end();
  if (list == value.end() || !list->is_array()) {
    return fail(ErrorCode::kIo, "its answer has no field \"clones\"");
  }
  std::vector<BornClone> clones;
  for (const json& each : *list) {
    MAYFLY_TRY_ASSIGN(BornClone clone, read_born(each));
    clones.push_back(std::move(clone));
  }
  return clones;
}

}  // namespace mayfly::api
