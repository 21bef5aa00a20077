#include "record.h"

#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "base/text.h"

namespace mayfly::jail {
namespace {

constexpr mode_t kRecordMode = 0600;
constexpr std::string_view kHead = "jail 1";
constexpr std::string_view kUser = "user ";
constexpr std::string_view kCgroup = "cgroup ";
constexpr std::size_t kMaxRecord = 1U << 20U;

// With another name, it could be another file that its maker has: what is written here would be written
// there.
Result<void> check(const struct stat& found, const std::string& name) {
  if (!S_ISREG(found.st_mode) || (found.st_uid != 0 && found.st_uid != ::geteuid()) || found.st_nlink > 1) {
    return fail(ErrorCode::kInvalidArgument,
                name + ": must be a file of root's or of who runs this, with no other name");
  }
  return {};
}

bool is_group_path(std::string_view path) {
  if (!path.starts_with('/')) {
    return false;
  }
  while (!path.empty()) {
    path.remove_prefix(1);
    const std::string_view name = path.substr(0, path.find('/'));
    if (name == "." || name == "..") {
      return false;
    }
    path.remove_prefix(name.size());
  }
  return true;
}

Result<std::optional<RecordFile>> lock(UniqueFd file, bool& is_taken, const std::string& name) {
  struct stat found {};
  if (::fstat(file.get(), &found) != 0) {
    return fail_errno(errno, "look at " + name);
  }
  MAYFLY_TRY(check(found, name));
  if (::flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
    is_taken = errno == EWOULDBLOCK;
    return is_taken ? fail(ErrorCode::kBusy, name + ": another jailer is at work on this --id")
                    : fail_errno(errno, "lock " + name);
  }
  if (::fstat(file.get(), &found) != 0) {
    return fail_errno(errno, "look at " + name);
  }
  if (found.st_nlink == 0) {
    return std::nullopt;
  }
  return RecordFile{.fd = std::move(file), .is_new = found.st_size == 0};
}

}  // namespace

Result<std::optional<RecordFile>> lock_record(const UniqueFd& folder, const std::string& path) {
  const std::string name = path + "/" + kRecordName;
  constexpr int kFlags = O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  UniqueFd file(::openat(folder.get(), kRecordName, kFlags | O_CREAT | O_EXCL, kRecordMode));
  const bool is_made = file.get() >= 0;
  if (!is_made && errno == EEXIST) {
    file = UniqueFd(::openat(folder.get(), kRecordName, kFlags));
  }
  if (!file) {
    if (errno == ENOENT) {
      return std::nullopt;
    }
    return fail_errno(errno, "open " + name);
  }
  bool is_taken = false;
  auto locked = lock(std::move(file), is_taken, name);
  if (!locked && is_made && !is_taken) {
    ::unlinkat(folder.get(), kRecordName, 0);
  }
  return locked;
}

Result<void> check_record(const UniqueFd& folder, const std::string& path) {
  struct stat found {};
  if (::fstatat(folder.get(), kRecordName, &found, AT_SYMLINK_NOFOLLOW) == 0) {
    return check(found, path + "/" + kRecordName);
  }
  return errno == ENOENT ? Result<void>() : fail_errno(errno, "look at " + path + "/" + kRecordName);
}

Result<void> write_record(const RecordFile& file, const Record& record, const std::string& path) {
  std::string text = std::string(kHead) + "\n";
  if (record.user) {
    text.append(kUser).append(std::to_string(*record.user)).append("\n");
  }
  for (const std::string& group : record.cgroups) {
    text.append(kCgroup).append(group).append("\n");
  }
  if (::ftruncate(file.fd.get(), 0) != 0 ||
      ::pwrite(file.fd.get(), text.data(), text.size(), 0) != static_cast<ssize_t>(text.size())) {
    return fail_errno(errno, "write " + path + "/" + kRecordName);
  }
  return {};
}

Result<Record> read_record(const RecordFile& file, const std::string& path) {
  std::string text;
  std::array<char, 4096> buffer{};
  for (;;) {
    const ssize_t count =
        ::pread(file.fd.get(), buffer.data(), buffer.size(), static_cast<off_t>(text.size()));
    if (count < 0) {
      return fail_errno(errno, "read " + path + "/" + kRecordName);
    }
    text.append(buffer.data(), static_cast<std::size_t>(count));
    if (count == 0 || text.size() > kMaxRecord) {
      break;
    }
  }
  Record record;
  std::string_view rest = text;
  bool is_known = text.empty() || (text.ends_with('\n') && text.starts_with(kHead));
  for (bool is_head = true; is_known && !rest.empty(); is_head = false) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(line.size() + 1);
    if (is_head) {
      is_known = line == kHead;
    } else if (line.starts_with(kUser)) {
      record.user = parse_integer<uid_t>(line.substr(kUser.size()));
      is_known = record.user.has_value();
    } else {
      is_known = line.starts_with(kCgroup) && is_group_path(line.substr(kCgroup.size()));
      record.cgroups.emplace_back(line.substr(std::min(line.size(), kCgroup.size())));
    }
  }
  if (!is_known) {
    return fail(ErrorCode::kInvalidArgument, path + "/" + kRecordName + ": is no record of a jail");
  }
  return record;
}

}  // namespace mayfly::jail
