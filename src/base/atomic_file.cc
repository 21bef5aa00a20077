#include "base/atomic_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>

#include "base/check.h"
#include "base/same_file.h"

namespace mayfly {
namespace {

// What none of the calls here answers but flock(): the name is a living writer's.
constexpr int kTaken = EWOULDBLOCK;

constexpr std::size_t kLongestName = NAME_MAX - std::char_traits<char>::length("..partial");

// Another writer may come and go between any two calls; who meets one that often meets one that stays.
constexpr int kAttempts = 8;

std::string partial_name(const std::string& base) {
  return "." + base + ".partial";
}

// linkat() of a file that has no name: 0 or an errno. EEXIST tells that it would be possible but for what
// stands there.
int name_unnamed(int fd, int directory, const char* name) {
  if (::linkat(fd, "", directory, name, AT_EMPTY_PATH) == 0) {
    return 0;
  }
  if (errno == EEXIST) {
    return EEXIST;
  }
  // Without the right to do so the call above knows no such file (open(2), O_TMPFILE).
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  return ::linkat(AT_FDCWD, link.c_str(), directory, name, AT_SYMLINK_FOLLOW) == 0 ? 0 : errno;
}

bool is_named(const UniqueFd& fd, int directory, const std::string& name) {
  struct stat file {};
  struct stat named {};
  return ::fstat(fd.get(), &file) == 0 &&
         ::fstatat(directory, name.c_str(), &named, AT_SYMLINK_NOFOLLOW) == 0 && same_file(file, named);
}

// Removes what a writer that is no more left under `name`: 0, also where somebody else did; kTaken; or an
// errno.
int remove_leftover(int directory, const std::string& name) {
  const UniqueFd left(
      ::openat(directory, name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY));
  if (!left) {
    return errno == ENOENT ? 0 : errno;
  }
  if (::flock(left.get(), LOCK_EX | LOCK_NB) != 0) {
    return errno;
  }
  // The lock is the right to remove the name from the file: while it is held, and the name is this file's,
  // nobody else does.
  if (!is_named(left, directory, name)) {
    return 0;
  }
  return ::unlinkat(directory, name.c_str(), 0) == 0 ? 0 : errno;
}

}  // namespace

tl::unexpected<Error> AtomicFile::failed(int why, std::string_view doing) const {
  const std::string text = std::string(doing).append(" ").append(name_);
  if (why == kTaken) {
    return fail(ErrorCode::kBusy, text + ": it is being written by another process");
  }
  return fail_errno(why, text);
}

Result<AtomicFile> AtomicFile::create(const std::string& path, std::string_view role, mode_t mode) {
  const std::size_t slash = path.rfind('/');
  const std::string base = slash == std::string::npos ? path : path.substr(slash + 1);
  std::string name = std::string(role).append(" ").append(path);
  if (base.empty() || base == "." || base == "..") {
    return fail(ErrorCode::kInvalidArgument, name + ": the path names no file");
  }
  if (base.size() > kLongestName) {
    return fail(ErrorCode::kInvalidArgument,
                name + ": the file's name is longer than " + std::to_string(kLongestName) + " bytes");
  }
  const std::string parent = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  MAYFLY_TRY_ASSIGN(UniqueFd directory,
                    open_file(parent, O_RDONLY | O_DIRECTORY, std::string("directory of ").append(role)));
  AtomicFile file(std::move(name), base, std::move(directory));
  struct stat former {};
  if (::fstatat(file.directory_.get(), base.c_str(), &former, AT_SYMLINK_NOFOLLOW) == 0) {
    if (!S_ISREG(former.st_mode)) {
      return fail(ErrorCode::kInvalidArgument, file.name_ + ": exists and is not a regular file");
    }
  } else if (errno != ENOENT) {
    return file.failed(errno, "look at");
  }
  MAYFLY_TRY(file.open(mode));
  return file;
}

Result<void> AtomicFile::open(mode_t mode) {
  fd_ = UniqueFd(::openat(directory_.get(), ".", O_TMPFILE | O_RDWR | O_CLOEXEC, mode));
  // Whether it can get a name must be known now, not when all is written. "." is there in every directory.
  if (fd_ && name_unnamed(fd_.get(), directory_.get(), ".") == EEXIST) {
    // Before it has a name, so that nobody takes it for a leftover.
    return ::flock(fd_.get(), LOCK_EX | LOCK_NB) == 0 ? Result<void>() : failed(errno, "lock");
  }
  // A kernel or a file system without O_TMPFILE sees a directory opened for writing, or a flag that it does
  // not know. All else fails again below, if it fails.
  const std::string partial = partial_name(base_);
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    fd_ = UniqueFd(::openat(directory_.get(), partial.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, mode));
    if (!fd_ && errno != EEXIST) {
      return failed(errno, "create");
    }
    // Between the two calls another may have taken it for a leftover.
    if (fd_ && ::flock(fd_.get(), LOCK_EX | LOCK_NB) == 0 && is_named(fd_, directory_.get(), partial)) {
      partial_ = true;
      return {};
    }
    if (const int why = remove_leftover(directory_.get(), partial); why != 0) {
      return failed(why, "create");
    }
  }
  return failed(kTaken, "create");
}

AtomicFile::~AtomicFile() {
  if (partial_ && fd_) {
    ::unlinkat(directory_.get(), partial_name(base_).c_str(), 0);
  }
}

Result<void> AtomicFile::sync() {
  if (::fsync(fd_.get()) != 0) {
    return failed(errno, "write to the disk");
  }
  synced_ = true;
  return {};
}

Result<void> AtomicFile::sync_by_pieces(const std::function<bool()>& proceed) {
  struct stat file {};
  if (::fstat(fd_.get(), &file) != 0) {
    return failed(errno, "look at");
  }
  constexpr unsigned kBegin = SYNC_FILE_RANGE_WRITE;
  constexpr unsigned kEnd = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
  // The next piece is under way while one is waited for, so that the disk never waits. Errors count: fsync(2)
  // does not tell them again.
  for (off_t begin = 0; begin < file.st_size; begin += kSyncPiece) {
    if (::sync_file_range(fd_.get(), begin + kSyncPiece, kSyncPiece, kBegin) != 0 ||
        ::sync_file_range(fd_.get(), begin, kSyncPiece, kEnd) != 0) {
      return failed(errno, "write to the disk");
    }
    if (!proceed()) {
      return fail(ErrorCode::kBusy, name_ + ": given up");
    }
  }
  return sync();
}

Result<void> AtomicFile::prepare_name() {
  MAYFLY_CHECK(synced_, "a file is published once, and after it was synced");
  synced_ = false;
  struct stat former {};
  if (partial_ ||
      (::fstatat(directory_.get(), base_.c_str(), &former, AT_SYMLINK_NOFOLLOW) != 0 && errno == ENOENT)) {
    return {};  // one step will do
  }
  const std::string partial = partial_name(base_);
  for (int attempt = 0; !partial_; ++attempt) {
    const int why = name_unnamed(fd_.get(), directory_.get(), partial.c_str());
    partial_ = why == 0;
    if (why != 0 && why != EEXIST) {
      return failed(why, "name");
    }
    if (why == EEXIST) {
      const int cause = attempt < kAttempts ? remove_leftover(directory_.get(), partial) : kTaken;
      if (cause != 0) {
        return failed(cause, "name");
      }
    }
  }
  return {};
}

Result<void> AtomicFile::take_name() {
  if (!partial_) {
    const int why = name_unnamed(fd_.get(), directory_.get(), base_.c_str());
    if (why == 0) {
      return {};
    }
    if (why != EEXIST) {
      return failed(why, "name");
    }
    // Somebody else took it since.
    synced_ = true;
    MAYFLY_TRY(prepare_name());
  }
  if (::renameat(directory_.get(), partial_name(base_).c_str(), directory_.get(), base_.c_str()) != 0) {
    return failed(errno, "name");
  }
  partial_ = false;
  return {};
}

Result<void> AtomicFile::settle_name() {
  if (::fsync(directory_.get()) != 0) {
    return failed(errno,
                  "it stands under its name, but may not after a loss of power: write the directory of");
  }
  return {};
}

Result<void> AtomicFile::publish() {
  MAYFLY_TRY(prepare_name());
  MAYFLY_TRY(take_name());
  return settle_name();
}

Result<void> AtomicFile::publish_pair(AtomicFile& first, AtomicFile& second) {
  MAYFLY_TRY(first.prepare_name());
  MAYFLY_TRY(second.prepare_name());
  MAYFLY_TRY(first.take_name());
  if (auto taken = second.take_name(); !taken) {
    return tl::make_unexpected(taken.error().within(first.name_ + " is the new one, its other half is not"));
  }
  MAYFLY_TRY(first.settle_name());
  return second.settle_name();
}

Result<void> AtomicFile::commit() {
  MAYFLY_TRY(sync());
  return publish();
}

}  // namespace mayfly
