// A disk that is a shared image, only read, with what was written on top of it in a file of its own.
//
// Work is done in clusters of 4 KiB. A bitmap says which of them are the overlay's; all others are the
// image's. A cluster of which a part is written is copied up first.
//
// The overlay's file, all integers little-endian:
//
//   0                      struct Header, the rest of its cluster zeroes
//   4096                   the bitmap: bit c % 8 of byte c / 8 is cluster c's
//   data_offset            cluster 0, cluster 1, ...: sparse
//
// What survives what: with Writeback a flush puts the data on stable storage and only then, if there are
// clusters that it does not know yet, the bitmap: bits are only ever set, so that whatever part of it a
// crash leaves is right. With Unsafe the bitmap is handed to the host's cache with each batch, so that it
// survives the monitor, as the data do; nothing survives the host. Either way it is complete once the drive
// is gone in good order.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "devices/virtio/block/block_config.h"
#include "devices/virtio/block/image_file.h"
#include "devices/virtio/block/io_engine.h"

namespace mayfly {

// Synchronous. (What a cluster is depends on what was done before to it: two writes to the halves of one must
// not both copy it up, a bit is set only once its data are there, and a flush waits for all of that. The
// price of this order among operations that the kernel works on at once is more than they gain here, where
// most go to the page cache.)
class OverlayEngine final : public IoEngine {
 public:
  static constexpr std::uint64_t kClusterSize = 4096;  // bytes

  struct Header {
    std::array<char, 8> magic;
    std::uint32_t version;
    std::uint32_t cluster_size;
    std::uint64_t base_size;  // bytes, as this file was made
    std::uint64_t data_offset;
    // When the image was last changed, in nanoseconds since 1970, as this file was made. 0: unknown, as of a
    // block device.
    std::uint64_t base_changed_ns;
  };
  static constexpr std::array<char, 8> kMagic = {'M', 'F', 'L', 'Y', 'O', 'V', 'L', 0};
  static constexpr std::uint32_t kVersion = 1;

  // Where the data begin in the overlay of an image of `base_size` bytes.
  static std::uint64_t data_offset(std::uint64_t base_size);

  // `base` is open for reading. The overlay's file is made, locked where `config.lock`, or taken up again:
  // errors are those of DiskImage, and kInvalidImage for a file that is no overlay, or one of an image of
  // another size, or that was changed since: what the two hold does not belong together then.
  static Result<std::unique_ptr<OverlayEngine>> create(const BlockDeviceConfig& config,
                                                       const DiskImage& base);
  OverlayEngine(const OverlayEngine&) = delete;
  OverlayEngine& operator=(const OverlayEngine&) = delete;
  ~OverlayEngine() override;

  std::optional<IoResult> submit(std::uint32_t token, const IoOperation& operation) override;
  bool kick() override;
  std::optional<IoCompletion> reap() override { return std::nullopt; }
  void drain() override {}
  int completion_fd() const override { return -1; }
  // Not for an overlay: it belongs to its image.
  void set_file(int fd) override;

 private:
  // Which clusters are the overlay's. In memory that costs nothing before it is touched.
  class Bitmap {
   public:
    static Result<Bitmap> create(std::uint64_t clusters);
    Bitmap(Bitmap&& other) noexcept;
    Bitmap& operator=(Bitmap&&) = delete;
    Bitmap(const Bitmap&) = delete;
    Bitmap& operator=(const Bitmap&) = delete;
    ~Bitmap();

    bool has(std::uint64_t cluster) const;
    // Adds the clusters from `first` to before `end`; whether any of them is new. Both go by words.
    bool add(std::uint64_t first, std::uint64_t end);
    // How many clusters from `first` to before `end` are as that one is.
    std::uint64_t run(std::uint64_t first, std::uint64_t end) const;
    std::span<std::byte> page(std::size_t index) const;
    std::size_t pages() const { return bytes_ / kClusterSize; }

   private:
    std::uint64_t word(std::uint64_t cluster) const;  // that the cluster, a multiple of 64, begins
    Bitmap(std::byte* start, std::size_t bytes) : start_(start), bytes_(bytes) {}
    std::byte* start_;
    std::size_t bytes_;  // a multiple of kClusterSize
  };

  OverlayEngine(const DiskImage& base, UniqueFd memory, std::optional<DiskImage> file, Bitmap bitmap,
                bool safe);

  static Result<void> take_up(DiskImage& file, const DiskImage& base, Bitmap& bitmap);

  IoResult read(std::uint64_t offset, std::uint64_t length, std::span<iovec> buffers);
  IoResult write(const IoOperation& operation);
  IoResult zero(std::uint64_t offset, std::uint64_t length, bool free);
  IoResult discard(std::uint64_t offset, std::uint64_t length);
  IoResult flush();
  // Whether the overlay's file ends before a range of the disk that is to be written: it was shrunk, and
  // would grow again to hold zeroes for what the bitmap says was written.
  bool was_cut_off(std::uint64_t offset, std::uint64_t length) const;
  IoResult copy_up(std::uint64_t cluster);
  // Copies up the first and the last cluster of a range, where it covers them in part.
  IoResult copy_up_edges(std::uint64_t offset, std::uint64_t length);
  void add(std::uint64_t offset, std::uint64_t length);
  IoResult write_bitmap();
  int fd() const { return file_ ? file_->fd() : memory_.get(); }
  // The last byte of a range of `length` bytes, cut off where the image ends, is before this.
  std::uint64_t cluster_bytes(std::uint64_t cluster) const;

  int base_fd_;
  std::uint64_t base_size_;
  UniqueFd memory_;  // one of the two
  std::optional<DiskImage> file_;
  Bitmap bitmap_;
  bool safe_;  // a flush is asked for, and heeded
  std::uint64_t data_offset_;
  std::vector<bool> dirty_;  // pages of the bitmap that the file does not have
  bool is_dirty_ = false;
  std::vector<iovec> part_;  // of a request's buffers
  std::array<std::byte, kClusterSize> cluster_{};
};

}  // namespace mayfly
