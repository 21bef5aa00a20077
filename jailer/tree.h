// The folder of a jail: BASE/NAME/ID/root, and what is in it.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "devices.h"
#include "monitor_copy.h"
#include "options.h"
#include "record.h"
#include "undo.h"

namespace mayfly::jail {

struct TreePlan {
  std::string base;  // the folder of all jails
  std::string name;  // the monitor's
  std::string id;
  uid_t user = 0;
  gid_t group = 0;
  bool is_rootless = false;
  std::vector<Device> devices;
  std::vector<std::string> cgroups = {};  // what is to be made for the jail, for the record

  std::string name_path() const { return base + "/" + name; }
  std::string path() const { return name_path() + "/" + id; }
  std::string root() const { return path() + "/root"; }
};

// The program to run, open for reading. Refuses what is no regular file, what is not executable, what the
// jail's user or everybody could change, and what is not a static program: nothing else is in the jail.
Result<UniqueFd> open_monitor(const Options& options);

// A jail's folder while it is made.
struct Tree {
  RecordFile record;  // locked: one jailer at a time
  UniqueFd root;
  UniqueFd pid_file;                     // empty yet
  std::unique_ptr<MonitorCopy> monitor;  // under way
};

// Makes everything, with the modes of the room's README; `undo` gets the way back. `monitor` is borrowed
// until the copy is finished. BASE/NAME/ID/root may be there already, with files for the microVM in it:
// whatever the jail itself is made of must not be.
Result<Tree> make_tree(const TreePlan& plan, const UniqueFd& monitor, Undo& undo);

// The folder of a jail that is there already, for a dry run: refuses what make_tree() would refuse in it.
Result<void> check_tree(const TreePlan& plan);

// Lines that say what make_tree() does.
std::vector<std::string> describe(const TreePlan& plan, const std::string& exec_file);

Result<void> write_pid(const UniqueFd& pid_file, pid_t pid);

}  // namespace mayfly::jail
