#include "devices/virtio/block/image_file.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>

#include <cerrno>

#include "base/log.h"

namespace mayfly {
namespace {

Result<void> lock_file(const std::string& owner, const std::string& path, int fd,
                       const DiskImage::Options& options) {
  const ImageAccess access = options.access;
  struct flock whole {};
  whole.l_type = access == ImageAccess::kRead ? F_RDLCK : F_WRLCK;
  whole.l_whence = SEEK_SET;
  if (::fcntl(fd, F_OFD_SETLK, &whole) == 0) {
    return {};
  }
  const int cause = errno;
  if (cause == EAGAIN || cause == EACCES) {
    return fail(
        ErrorCode::kBusy,
        owner + ": " + path + " is in use: another process or drive has it open " +
            (access == ImageAccess::kRead ? "for writing" : "and holds a lock on it") +
            ". Stop the other, give this drive a copy or an overlay of its own, or switch the lock off" +
            " where the two are known not to harm each other");
  }
  return tl::make_unexpected(Error::from_errno(cause, owner + ": lock " + path +
                                                          " (where its file system has no locks, switch the"
                                                          " lock off)"));
}

// What is neither a regular file nor a block device is not opened: the open itself could wait (a FIFO) or do
// something (a device). Only who may change the folder could put such a one there in between, which is then
// refused. Not O_NONBLOCK, which io_uring takes at its word, for a regular file too: to take it back later is
// a call that would work on any descriptor (resources/seccomp).
Result<UniqueFd> open_image(const std::string& path, int flags) {
  struct stat status {};
  if (::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
    return fail(ErrorCode::kInvalidArgument, path + " is neither a regular file nor a block device");
  }
  // To keep the time of the last access takes a twentieth of a small read; only the owner may leave it out.
  auto fd = open_file(path, flags | O_NOATIME | O_NOCTTY, "image");
  return fd || fd.error().os_errno() != EPERM ? std::move(fd) : open_file(path, flags | O_NOCTTY, "image");
}

}  // namespace

DiskImage::File& DiskImage::File::operator=(File&& other) noexcept {
  if (this != &other) {
    unlock();
    fd_ = std::move(other.fd_);
  }
  return *this;
}

void DiskImage::File::unlock() noexcept {
  if (fd_) {
    struct flock whole {};
    whole.l_type = F_UNLCK;
    whole.l_whence = SEEK_SET;
    // Where there is no lock there is none to give back.
    ::fcntl(fd_.get(), F_OFD_SETLK, &whole);
  }
}

Result<DiskImage> DiskImage::open(const std::string& owner, const std::string& path, const Options& options) {
  const bool writes = options.access == ImageAccess::kReadAndWrite;
  auto fd = open_image(path, (writes ? O_RDWR : O_RDONLY) | (options.create ? O_CREAT : 0));
  if (!fd) {
    Error error = fd.error().within(owner);
    if (writes && (error.os_errno() == EACCES || error.os_errno() == EROFS)) {
      error =
          error.within("for writing (make the drive read-only, or give it an overlay, where it need not)");
    }
    return tl::make_unexpected(std::move(error));
  }
  DiskImage image(std::move(*fd), path);
  MAYFLY_TRY(image.refresh_size(owner));
  if (options.lock) {
    MAYFLY_TRY(lock_file(owner, path, image.fd(), options));
    // Another may have changed it until now.
    MAYFLY_TRY(image.refresh_size(owner));
  }
  return image;
}

Result<void> DiskImage::refresh_size(const std::string& owner) {
  struct stat status {};
  if (::fstat(fd_.get(), &status) != 0) {
    return fail_errno(errno, owner + ": look at " + path_);
  }
  if (S_ISREG(status.st_mode)) {
    size_ = static_cast<std::uint64_t>(status.st_size);
  } else if (S_ISBLK(status.st_mode)) {
    std::uint64_t bytes = 0;
    if (::ioctl(fd_.get(), BLKGETSIZE64, &bytes) != 0) {
      return fail_errno(errno, owner + ": find the size of " + path_);
    }
    size_ = bytes;
  } else {
    return fail(ErrorCode::kInvalidArgument,
                owner + ": " + path_ + " is neither a regular file nor a block device");
  }
  preferred_block_ = status.st_blksize > 0 ? static_cast<std::uint64_t>(status.st_blksize) : kSectorSize;
  device_ = status.st_dev;
  inode_ = status.st_ino;
  return {};
}

std::uint64_t DiskImage::current_end() const {
  struct stat status {};
  const bool known = ::fstat(fd_.get(), &status) == 0 && S_ISREG(status.st_mode);
  return known ? static_cast<std::uint64_t>(status.st_size) : size_;
}

bool DiskImage::is_at(const std::string& path) const {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && status.st_dev == device_ && status.st_ino == inode_;
}

}  // namespace mayfly
