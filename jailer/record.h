// What a jail's folder says of the jail, for whoever cleans up: BASE/NAME/ID/.jail. It is its maker's, mode
// 0600, so that it is a lock as well that nobody else can take.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mayfly::jail {

inline constexpr const char* kRecordName = ".jail";

struct Record {
  std::optional<uid_t> user;         // the jail's; none where it is its maker, in a rootless jail
  std::vector<std::string> cgroups;  // made for the jail: absolute paths on the host
};

struct RecordFile {
  UniqueFd fd;          // closing it unlocks
  bool is_new = false;  // nothing is written in it: whoever holds the lock may remove it
};

// Opens the record of the jail in `folder`, made where it is not there, and locks it. Nothing where the
// folder was removed meanwhile. kBusy: another jailer is at work. `path`, the folder's, is for errors.
Result<std::optional<RecordFile>> lock_record(const UniqueFd& folder, const std::string& path);

// Refuses one that lock_record() would refuse, whether or not it is locked; none is fine.
Result<void> check_record(const UniqueFd& folder, const std::string& path);

Result<void> write_record(const RecordFile& file, const Record& record, const std::string& path);
// An empty one tells nothing. Refuses what write_record() does not write.
Result<Record> read_record(const RecordFile& file, const std::string& path);

}  // namespace mayfly::jail
