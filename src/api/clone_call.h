// POST /clone of a template: what is asked for, what a clone is told of it, and what is answered. JSON ends
// here.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/http/http_client.h"
#include "base/result.h"
#include "vmm/micro_vm.h"

namespace mayfly::api {

// The most clones of one call, all of which its caller waits for.
inline constexpr std::uint32_t kMaxClonesPerCall = 1024;

// In every path and tap "{id}" stands for the clone's id and "{n}" for its number, which no other clone of
// the template ever has. A MAC address may end in "{n}": MacAddress::parse_numbered().
struct CloneRequest {
  std::uint32_t count = 1;
  std::optional<std::string> id{};           // of the only one
  std::optional<std::string> id_prefix{};    // else ids are PREFIX-N; absent: the template's name
  bool api = true;                           // each serves a control API of its own
  std::optional<std::string> api_socket{};   // absent: ID.sock beside the template's
  std::optional<std::string> serial_path{};  // where what the guest prints goes; absent: nowhere
  // Of it, only what is a clone's own: overrides, metadata, clock, resume.
  LoadRequest load{};
};

// kInvalidArgument naming the field.
Result<CloneRequest> parse_clone_request(std::string_view text);

// What one of the clones is told: the same as a text that parse_clone_request() reads, with an id, no count,
// and nothing left to stand for something else. kInvalidArgument where the id is none that a microVM can
// have.
Result<std::string> clone_order(const CloneRequest& request, const std::string& id, std::uint64_t number,
                                const std::string& socket_folder);

// Where its control API is, if it has one.
std::optional<std::string> clone_socket(const CloneRequest& request, const std::string& id,
                                        std::uint64_t number, const std::string& socket_folder);

// The files that it is to write to: what the guest prints, and what it writes to its disks.
std::vector<std::string> clone_outputs(const CloneRequest& request, const std::string& id,
                                       std::uint64_t number);

struct BornClone {
  std::string id;
  pid_t pid = 0;
  std::optional<std::string> socket{};  // absent: it has no control API
};

// {"clones": [{"id": "a-1", "pid": 12, "api_sock": "/run/a-1.sock"}]}; without a control API null.
std::string clones_answer(const std::vector<BornClone>& clones);
// {"id": ..., "ready": ..., "clones": ...}: who answers, how many places are made ahead, how many clones
// live.
std::string template_answer(const std::string& name, const std::string& version, std::size_t ready,
                            std::size_t clones);
std::string fault_answer(const std::string& message);

// POST /clone, as the command line asks for it. Errors: as VmClient's.
Result<std::vector<BornClone>> ask_for_clones(const std::string& socket, const HttpClientLimits& limits,
                                              const CloneRequest& request);

}  // namespace mayfly::api
