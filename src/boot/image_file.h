// The files that a guest is started from, as the loaders of this room see them: regular files whose every
// byte may be a lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "base/result.h"
#include "base/text.h"
#include "base/unique_fd.h"
#include "memory/guest_memory.h"

namespace mayfly {

// Opens a kernel image or an initrd for reading; `role` names the file in errors. Never waits: a FIFO without
// a writer is opened without blocking (O_NONBLOCK, which means nothing to a regular file) and then refused
// like everything else that is not a regular file (kInvalidImage).
Result<UniqueFd> open_image_file(const std::string& path, std::string_view role);

// A regular file of known size. Borrows the descriptor, which must outlive it. Its file offset is neither
// used nor moved. The size is looked at once: a file that shrinks later is an error of the read that meets
// its end.
class ImageFile {
 public:
  // Anything but a regular file is kInvalidImage.
  static Result<ImageFile> examine(const UniqueFd& file, std::string_view role, std::string_view path);

  const std::string& name() const { return name_; }  // "kernel image /k", to begin an error with
  std::uint64_t size() const { return size_; }       // bytes

  // Whether [offset, offset + length) lies inside the file.
  bool has(std::uint64_t offset, std::uint64_t length) const {
    return offset <= size_ && length <= size_ - offset;
  }

  // Copies from the file, whole or not at all; a file that ends before that is kInvalidImage.
  Result<void> read(std::uint64_t offset, std::span<std::byte> destination) const;

  template <typename T>
  requires std::is_trivially_copyable_v<T> Result<T> read_object(std::uint64_t offset)
  const {
    T value;
    MAYFLY_TRY(read(offset, std::as_writable_bytes(std::span(&value, 1))));
    return value;
  }

  // Puts a stretch of the file into guest memory. The one place that decides how: it is read straight into
  // guest RAM, because a mapping of the file would let whoever changes the file change a running guest.
  Result<void> place(GuestMemory& memory, GuestAddress address, std::uint64_t offset,
                     std::uint64_t length) const;

  // The error for an image that is not what it should be.
  tl::unexpected<Error> refuse(std::string_view why) const;

 private:
  ImageFile(const UniqueFd& file, std::string name, std::uint64_t size)
      : file_(&file), name_(std::move(name)), size_(size) {}

  const UniqueFd* file_;
  std::string name_;
  std::uint64_t size_;
};

}  // namespace mayfly
