// A disk image that is open: its descriptor, its size, and the lock that keeps others off it.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mayfly {

enum class ImageAccess : std::uint8_t { kRead, kReadAndWrite };

// Whoever still transfers by its descriptor is done before it goes, and the lock with it.
class DiskImage {
 public:
  static constexpr std::uint64_t kSectorSize = 512;

  struct Options {
    ImageAccess access = ImageAccess::kRead;
    // A file that is read and written is held by this owner alone, one that is only read is shared with other
    // readers. The lock is the open file's own (fcntl(2), "open file description locks"), over the whole file
    // and advisory: it holds against other monitors and whoever else asks.
    bool lock = true;
    bool create = false;  // makes an empty file where there is none
  };

  // `owner` is what errors name: "drive rootfs". Errors: what opening and locking say, kBusy at once where
  // another holds the file, kInvalidArgument for what is neither a regular file nor a block device.
  static Result<DiskImage> open(const std::string& owner, const std::string& path, const Options& options);

  int fd() const { return fd_.get(); }
  const std::string& path() const { return path_; }
  std::uint64_t size() const { return size_; }                        // bytes, when it was last looked at
  std::uint64_t sectors() const { return size_ / kSectorSize; }       // whole ones
  std::uint64_t preferred_block() const { return preferred_block_; }  // bytes

  // Whether `path` leads to this very file.
  bool is_at(const std::string& path) const;
  // Looks at the size again.
  Result<void> refresh_size(const std::string& owner);
  // Where the file ends now, in bytes; size() where that cannot be said, or of a block device.
  std::uint64_t current_end() const;

 private:
  // An open file whose lock ends with it here: by itself it ends only with the last reference to the open
  // file, and an io_uring holds one until the kernel has taken it apart in the background.
  class File {
   public:
    explicit File(UniqueFd fd) : fd_(std::move(fd)) {}
    File(File&&) noexcept = default;
    File& operator=(File&& other) noexcept;
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    ~File() { unlock(); }
    int get() const { return fd_.get(); }

   private:
    void unlock() noexcept;
    UniqueFd fd_;
  };

  DiskImage(UniqueFd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}

  File fd_;
  std::string path_;
  std::uint64_t size_ = 0;
  std::uint64_t preferred_block_ = kSectorSize;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

}  // namespace mayfly
