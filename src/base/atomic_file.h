// A file that appears under its name whole, or not at all.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mayfly {

// A file being written, in the directory where it will stand. What had its name before keeps it, untouched,
// until publish(): an error, a full disk, a kill or a loss of power at any moment leaves the one or the
// other, never a part. Who has the former file open or mapped keeps it as it was.
//
// Until then it has no name (O_TMPFILE), so that nothing is left behind by a kill. Where the file system has
// no such files, or where the kernel gives no name to one (before Linux 6.10 it takes CAP_DAC_READ_SEARCH or
// a /proc), it is called `.NAME.partial`. So is, for the time between two system calls, a file that replaces
// another. What a killed writer left under that name the next one removes; a writer that still lives makes
// the next one fail with kBusy (flock(2)).
//
// The file is the process's own, with `mode`: owner and mode of the former one are not carried over. Move-
// only; one thread at a time. All names are looked up in the directory that create() opened. System calls:
// openat, newfstatat, fstat, linkat, flock, unlinkat, renameat, fsync, sync_file_range, close.
class AtomicFile {
 public:
  // `role` names the file in errors ("snapshot memory file"). Errors: kInvalidArgument where `path` is
  // something that would be lost by being replaced (a directory, a link, a device, a FIFO), kBusy as above,
  // and what the host says.
  static Result<AtomicFile> create(const std::string& path, std::string_view role, mode_t mode = 0600);

  AtomicFile(AtomicFile&&) noexcept = default;
  AtomicFile& operator=(AtomicFile&&) = delete;
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  // Without publish(): the file is gone.
  ~AtomicFile();

  // To write, and to read.
  const UniqueFd& descriptor() const { return fd_; }
  // The role and the path, as errors name the file.
  const std::string& name() const { return name_; }

  // fsync(2): what was written is on the disk. Takes as long as the disk does. An error means that some of it
  // is not, and the file must not be published.
  Result<void> sync();
  // The same of a file that may be large, by pieces of kSyncPiece bytes, after each of which `proceed` is
  // asked: where that says no, kBusy.
  Result<void> sync_by_pieces(const std::function<bool()>& proceed);
  static constexpr off_t kSyncPiece = 32 << 20;
  // Gives the file its name, at one moment, and makes that durable. After one of the two, and at most once:
  // else aborts. Of the errors only that of the last step, which says so, leaves the new file under the name.
  Result<void> publish();
  // sync() and publish().
  Result<void> commit();
  // publish() of two files that belong together, `first` first: all that takes time is done before the first
  // or after the second has its name, so that hardly more than one system call lies between the two. A kill
  // in that moment leaves the new `first` beside the former `second`, and so does an error that says so.
  static Result<void> publish_pair(AtomicFile& first, AtomicFile& second);

 private:
  AtomicFile(std::string name, std::string base, UniqueFd directory)
      : name_(std::move(name)), base_(std::move(base)), directory_(std::move(directory)) {}

  Result<void> open(mode_t mode);
  // publish(), in its three steps: what has to be there before, the file's name, what makes it durable.
  Result<void> prepare_name();
  Result<void> take_name();
  Result<void> settle_name();
  // `doing` to this file went wrong.
  tl::unexpected<Error> failed(int why, std::string_view doing) const;

  std::string name_;
  std::string base_;  // the file's name in the directory
  UniqueFd directory_;
  UniqueFd fd_;
  bool partial_ = false;  // .NAME.partial is this file
  bool synced_ = false;
};

}  // namespace mayfly
