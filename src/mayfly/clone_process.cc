#include "mayfly/clone_process.h"

#include <unistd.h>

#include <bit>
#include <cstddef>
#include <utility>
#include <vector>

#include "api/clone_call.h"
#include "base/exit_code.h"
#include "base/log.h"
#include "mayfly/clone_channel.h"
#include "mayfly/clone_files.h"
#include "mayfly/failure.h"
#include "mayfly/monitor.h"
#include "mayfly/process_title.h"

namespace mayfly {
namespace {

class CloneProcess {
 public:
  CloneProcess(const CloneOrigin& origin, UniqueFd channel)
      : options_(origin.options), socket_folder_(origin.socket_folder), channel_(std::move(channel)) {}

  // From a place to the end of a clone, told by its log.
  ExitCode live(ClonePlace place) {
    Options options = options_;
    const MachineConfig machine = place.config.machine;
    const auto outcome = run_clone(options, std::move(place),
                                   {.for_birth = [&]() -> OrFailure<CloneBirth> {
                                      rehearse();
                                      say(channel_, kReady);
                                      const std::string order = hear(channel_);
                                      if (order.empty()) {
                                        ::_exit(static_cast<int>(ExitCode::kOk));  // the template has ended
                                      }
                                      return read_order(order, machine);
                                    },
                                    .on_born =
                                        [&] {
                                          say(channel_, kBorn);
                                          channel_.reset();
                                        }});
    if (!outcome) {
      if (channel_) {
        say(channel_, kFailed, outcome.error().message);
      } else {
        LOG_ERROR("%s", outcome.error().message.c_str());
      }
      return ExitCode::kError;
    }
    const bool well = exit_code_of(outcome->kind) == 0;
    if (well) {
      LOG_INFO("%s: %s", name_of(outcome->kind), outcome->detail.c_str());
    } else {
      LOG_ERROR("the microVM failed: %s: %s", name_of(outcome->kind), outcome->detail.c_str());
    }
    return well ? ExitCode::kOk : ExitCode::kError;
  }

 private:
  // Reads an order as the one to come will be: the code is mapped then, and the memory that it takes is this
  // process's own.
  void rehearse() const {
    if (const auto order = api::clone_order({}, options_.id, 0, socket_folder_)) {
      [[maybe_unused]] const auto read = api::parse_clone_request(*order);
    }
  }

  OrFailure<CloneBirth> read_order(const std::string& order, const MachineConfig& machine) const {
    MAYFLY_TRY_ASSIGN(api::CloneRequest told, api::parse_clone_request(order));
    // Here and not by the template, which must not wait for whoever serves these files.
    const std::vector<std::string> outputs = api::clone_outputs(told, told.id.value_or(""), 0);
    for (std::size_t index = 0; index < outputs.size(); ++index) {
      say_made(index, outputs[index]);
    }
    CloneBirth birth{.id = told.id.value_or(""),
                     .load = std::move(told.load),
                     .api_socket = std::move(told.api_socket),
                     .serial_path = std::move(told.serial_path)};
    MAYFLY_TRY(set_log_instance_id(birth.id));
    show_as_clone(birth, machine);
    return birth;
  }

  // A file that a clone is to write to is made before it is opened: then it is known whether it was there
  // before, whatever becomes of the clone. What stands against it is said when it is opened.
  void say_made(std::uint64_t index, const std::string& path) const {
    if (const auto made = make_output(index, path)) {
      const auto bytes = std::bit_cast<NewOutputBytes>(*made);
      say(channel_, kMade, {bytes.data(), bytes.size()});
    }
  }

  void show_as_clone(const CloneBirth& birth, const MachineConfig& machine) const {
    std::vector<std::string> arguments = {"mayfly",   std::string(kCloneMark) + options_.id + "]",
                                          "--id",     birth.id,
                                          "--cpus",   std::to_string(machine.vcpu_count),
                                          "--memory", std::to_string(machine.mem_size_mib) + "M"};
    if (birth.api_socket) {
      arguments.insert(arguments.end(), {"--api-sock", *birth.api_socket});
    }
    if (!set_process_arguments(arguments)) {
      LOG_WARN_LIMITED("a clone is not listed by 'mayfly ps': its arguments cannot be set");
    }
  }

  const Options& options_;
  const std::string& socket_folder_;
  UniqueFd channel_;  // until its guest runs
};

}  // namespace

[[noreturn]] void become_clone(const CloneOrigin& origin, CloneSource&& source, UniqueFd channel) {
  auto place = std::move(source).make_place();
  if (!place) {
    say(channel, kFailed, place.error().message());
    ::_exit(static_cast<int>(ExitCode::kError));
  }
  const ExitCode code = CloneProcess(origin, std::move(channel)).live(std::move(*place));
  ::_exit(static_cast<int>(code));
}

}  // namespace mayfly
