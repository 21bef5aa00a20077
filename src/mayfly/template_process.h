// The template as a process: its signals, and how another process leaves it.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "api/http/http_server.h"
#include "base/result.h"
#include "base/unique_fd.h"

namespace mayfly {

// One a process, which has one thread.
class TemplateProcess {
 public:
  TemplateProcess() = default;
  TemplateProcess(const TemplateProcess&) = delete;
  TemplateProcess& operator=(const TemplateProcess&) = delete;
  ~TemplateProcess() = default;

  // Once, before anything is opened that is not a clone's as well: what is open then stays open in the
  // processes that leave. `name` is the template's. From here on SIGTERM and SIGINT ask for the end. Errors:
  // of the host's.
  Result<void> prepare(std::string name);

  // The server, borrowed, whose run() ends at SIGTERM, SIGINT and SIGCHLD; null: none.
  static void interrupt(api::HttpServer* server);
  static bool asked_to_end();

  // fork(2), in whose child nothing is the template's any more: its descriptors, its signals, its terminal,
  // the arguments that it shows. `channel`, which stays open there, is null where there is none.
  pid_t fork_away(const UniqueFd* channel) const;

 private:
  void become_child(const UniqueFd* channel) const;

  std::string name_;
  std::vector<int> kept_;  // descriptors that are a clone's as well
};

}  // namespace mayfly
