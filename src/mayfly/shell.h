// The subcommands for microVMs that run already: ps, pause, resume, stop, snapshot, metrics,
// config; and clone, of a template.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "mayfly/failure.h"
#include "mayfly/options.h"
#include "mayfly/processes.h"

namespace mayfly {

// What `mayfly ps` shows of one microVM. Absent: not known.
struct MicroVmRow {
  MonitorProcess process;
  std::optional<std::string> state;    // absent: not asked, or no answer
  std::optional<std::string> problem;  // why there is no answer
};

// A line each under a line of headings, aligned, with everything that is not printable escaped.
std::string table_of(const std::vector<MicroVmRow>& rows);
// A JSON array, an object a line.
std::string json_of(const std::vector<MicroVmRow>& rows);
// What names each to the commands below: the id, or the pid where that names others, too.
std::string names_of(const std::vector<MonitorProcess>& processes);

// The one that `name` names, by its id or by its pid. Failures: there is none, or there are several; they
// list what there is.
OrFailure<MonitorProcess> choose(const std::vector<MonitorProcess>& processes, const std::string& name);

// Does what `options.subcommand` says, which is one of these. What it answers belongs on standard output;
// `tell` is for what a person should know meanwhile; like a failure's, its text is not escaped yet.
OrFailure<std::string> run_shell_command(const Options& options, const ProcessView& view,
                                         const std::function<void(const std::string&)>& tell);

}  // namespace mayfly
