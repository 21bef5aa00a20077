#include "devices/virtio/block/overlay.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "devices/virtio/block/file_io.h"

namespace mayfly {
namespace {

constexpr std::uint64_t kClusterSize = OverlayEngine::kClusterSize;
constexpr std::uint64_t kBitsPerPage = kClusterSize * 8;
constexpr std::uint64_t kBitsPerWord = 64;
constexpr std::uint64_t kNsPerSecond = 1'000'000'000;
constexpr std::uint64_t kAllOnes = ~std::uint64_t{0};

constexpr std::uint64_t clusters_of(std::uint64_t bytes) {
  return bytes / kClusterSize + (bytes % kClusterSize != 0 ? 1 : 0);
}
constexpr std::uint64_t bytes_of_bits(std::uint64_t bits) {
  return bits / 8 + (bits % 8 != 0 ? 1 : 0);
}
constexpr std::uint64_t bitmap_bytes(std::uint64_t base_size) {
  const std::uint64_t clusters = clusters_of(base_size);
  return (clusters / kBitsPerPage + (clusters % kBitsPerPage != 0 ? 1 : 0)) * kClusterSize;
}

IoResult read_bytes(int fd, std::span<std::byte> to, std::uint64_t offset) {
  iovec buffer{to.data(), to.size()};
  return file_io::read_all(fd, std::span(&buffer, 1), offset);
}
IoResult write_bytes(int fd, std::span<std::byte> from, std::uint64_t offset) {
  iovec buffer{from.data(), from.size()};
  return file_io::write_all(fd, std::span(&buffer, 1), offset, false);
}

// When a file was last changed; 0 for what has no such time: a block device's is not its contents'.
std::uint64_t changed_ns(int fd) {
  struct stat status {};
  if (::fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) || status.st_mtim.tv_sec < 0) {
    return 0;
  }
  return static_cast<std::uint64_t>(status.st_mtim.tv_sec) * kNsPerSecond +
         static_cast<std::uint64_t>(status.st_mtim.tv_nsec);
}

// As touch(1) takes it.
std::string to_seconds(std::uint64_t ns) {
  const std::string part = std::to_string(ns % kNsPerSecond);
  return std::to_string(ns / kNsPerSecond) + "." + std::string(9 - part.size(), '0') + part;
}

// Appends where the first `bytes` of the buffers lie and passes over them.
void split(std::span<iovec>& buffers, std::uint64_t bytes, std::vector<iovec>& to) {
  to.clear();
  std::uint64_t left = bytes;
  for (std::size_t index = 0; left != 0; ++index) {
    const std::uint64_t here = std::min<std::uint64_t>(left, buffers[index].iov_len);
    to.push_back({buffers[index].iov_base, here});
    left -= here;
  }
  buffers = file_io::advance(buffers, bytes);
}

}  // namespace

// --- the bitmap ---

Result<OverlayEngine::Bitmap> OverlayEngine::Bitmap::create(std::uint64_t clusters) {
  const auto bytes = static_cast<std::size_t>(bitmap_bytes(clusters * kClusterSize));
  if (bytes == 0) {
    return Bitmap(nullptr, 0);
  }
  void* const start =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) {
    return fail_errno(errno, "map memory for an overlay's bitmap");
  }
  return Bitmap(static_cast<std::byte*>(start), bytes);
}

OverlayEngine::Bitmap::Bitmap(Bitmap&& other) noexcept
    : start_(std::exchange(other.start_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

OverlayEngine::Bitmap::~Bitmap() {
  if (start_ != nullptr) {
    ::munmap(start_, bytes_);
  }
}

bool OverlayEngine::Bitmap::has(std::uint64_t cluster) const {
  MAYFLY_CHECK(cluster / 8 < bytes_, "a cluster lies past the overlay's end");
  return (start_[cluster / 8] & (std::byte{1} << (cluster % 8))) != std::byte{0};
}

std::uint64_t OverlayEngine::Bitmap::word(std::uint64_t cluster) const {
  std::uint64_t value = 0;
  std::memcpy(&value, start_ + cluster / 8, sizeof(value));
  return value;
}

bool OverlayEngine::Bitmap::add(std::uint64_t first, std::uint64_t end) {
  // Pages are whole words, so that the last one of the bitmap is, too.
  MAYFLY_CHECK(first <= end && bytes_of_bits(end) <= bytes_, "a cluster lies past the overlay's end");
  bool is_new = false;
  while (first < end) {
    if (first % kBitsPerWord == 0 && end - first >= kBitsPerWord) {
      is_new = is_new || word(first) != kAllOnes;
      std::memcpy(start_ + first / 8, &kAllOnes, sizeof(kAllOnes));
      first += kBitsPerWord;
    } else {
      is_new = is_new || !has(first);
      start_[first / 8] |= std::byte{1} << (first % 8);
      ++first;
    }
  }
  return is_new;
}

std::uint64_t OverlayEngine::Bitmap::run(std::uint64_t first, std::uint64_t end) const {
  const bool kind = has(first);
  const std::uint64_t same = kind ? kAllOnes : 0;
  std::uint64_t next = first + 1;
  while (next < end) {
    if (next % kBitsPerWord == 0 && end - next >= kBitsPerWord && word(next) == same) {
      next += kBitsPerWord;
    } else if (has(next) == kind) {
      ++next;
    } else {
      break;
    }
  }
  return next - first;
}

std::span<std::byte> OverlayEngine::Bitmap::page(std::size_t index) const {
  return std::span(start_, bytes_).subspan(index * kClusterSize, kClusterSize);
}

// --- making and taking up ---

std::uint64_t OverlayEngine::data_offset(std::uint64_t base_size) {
  return kClusterSize + bitmap_bytes(base_size);
}

Result<std::unique_ptr<OverlayEngine>> OverlayEngine::create(const BlockDeviceConfig& config,
                                                             const DiskImage& base) {
  const std::string owner = "drive " + config.id + ": overlay";
  // Whole sectors only, as the driver sees it.
  const std::uint64_t base_size = base.sectors() * DiskImage::kSectorSize;
  MAYFLY_TRY_ASSIGN(Bitmap bitmap, Bitmap::create(clusters_of(base_size)));
  UniqueFd memory;
  std::optional<DiskImage> file;
  if (config.overlay && config.overlay->path) {
    if (base.is_at(*config.overlay->path)) {
      return fail(ErrorCode::kInvalidArgument,
                  owner + ": " + *config.overlay->path + " is the image that it is to lie on");
    }
    MAYFLY_TRY_ASSIGN(
        file, DiskImage::open(owner, *config.overlay->path,
                              {.access = ImageAccess::kReadAndWrite, .lock = config.lock, .create = true}));
    if (auto taken = take_up(*file, base, bitmap); !taken) {
      return tl::make_unexpected(taken.error().within(owner + " " + *config.overlay->path));
    }
  } else {
    memory = UniqueFd(::memfd_create("mayfly-overlay", MFD_CLOEXEC));
    if (!memory || ::ftruncate(memory.get(), static_cast<off_t>(data_offset(base_size) + base_size)) != 0) {
      return fail_errno(errno, owner + ": make a file in memory");
    }
  }
  return std::unique_ptr<OverlayEngine>(new OverlayEngine(base, std::move(memory), std::move(file),
                                                          std::move(bitmap),
                                                          config.cache_type == BlockCacheType::kWriteback));
}

// Makes a new overlay of an empty file, or reads what is in one. A file whose making was cut short, with a
// header and nothing else, is as good as new.
Result<void> OverlayEngine::take_up(DiskImage& file, const DiskImage& base, Bitmap& bitmap) {
  const std::uint64_t base_size = base.sectors() * DiskImage::kSectorSize;
  const std::uint64_t base_changed_ns = changed_ns(base.fd());
  const std::uint64_t whole = data_offset(base_size) + base_size;
  Header expected{kMagic, kVersion, kClusterSize, base_size, data_offset(base_size), base_changed_ns};
  std::array<std::byte, kClusterSize> first{};
  if (file.size() == 0) {
    std::memcpy(first.data(), &expected, sizeof(expected));
    if (const IoResult written = write_bytes(file.fd(), first, 0); written.os_errno != 0) {
      return fail_errno(written.os_errno, "write the header");
    }
  } else {
    Header header{};
    const bool readable = file.size() >= kClusterSize && read_bytes(file.fd(), first, 0).os_errno == 0;
    std::memcpy(&header, first.data(), sizeof(header));
    if (!readable || header.magic != kMagic) {
      return fail(ErrorCode::kInvalidImage, "it holds something else than an overlay; nothing was changed");
    }
    if (header.version != kVersion || header.cluster_size != kClusterSize) {
      return fail(ErrorCode::kInvalidImage, "it was made by another version of this program");
    }
    if (header.base_size != base_size || header.data_offset != expected.data_offset) {
      return fail(ErrorCode::kInvalidImage, "it was made for an image of " +
                                                std::to_string(header.base_size) + " bytes, this one has " +
                                                std::to_string(base_size));
    }
    if (header.base_changed_ns != 0 && base_changed_ns != 0 && header.base_changed_ns != base_changed_ns) {
      return fail(
          ErrorCode::kInvalidImage,
          "its image " + base.path() +
              " was changed since, and the two do not fit together any more: put the image back as it "
              "was, or begin with a new overlay (if only the image's time has changed: touch -m -d @" +
              to_seconds(header.base_changed_ns) + " " + base.path() + ")");
    }
    if (file.size() != kClusterSize && file.size() != whole) {
      return fail(ErrorCode::kInvalidImage, "it was cut off: it has " + std::to_string(file.size()) +
                                                " bytes instead of " + std::to_string(whole));
    }
    for (std::size_t page = 0; file.size() == whole && page < bitmap.pages(); ++page) {
      // Through a buffer: a page of the bitmap that is all zeroes is not to be touched.
      if (const IoResult read = read_bytes(file.fd(), first, kClusterSize * (page + 1)); read.os_errno != 0) {
        return fail_errno(read.os_errno, "read the bitmap");
      }
      if (std::ranges::any_of(first, [](std::byte byte) { return byte != std::byte{0}; })) {
        std::ranges::copy(first, bitmap.page(page).begin());
      }
    }
  }
  if (file.size() != whole && ::ftruncate(file.fd(), static_cast<off_t>(whole)) != 0) {
    return fail_errno(errno, "give it its size");
  }
  return {};
}

OverlayEngine::OverlayEngine(const DiskImage& base, UniqueFd memory, std::optional<DiskImage> file,
                             Bitmap bitmap, bool safe)
    : base_fd_(base.fd()),
      base_size_(base.sectors() * DiskImage::kSectorSize),
      memory_(std::move(memory)),
      file_(std::move(file)),
      bitmap_(std::move(bitmap)),
      safe_(safe),
      data_offset_(data_offset(base_size_)),
      dirty_(bitmap_.pages()) {}

OverlayEngine::~OverlayEngine() {
  if (!file_) {
    return;
  }
  const IoResult saved = safe_ ? flush() : write_bitmap();
  if (saved.os_errno != 0) {
    LOG_ERROR("what was last written to the overlay %s may be lost: %s", file_->path().c_str(),
              ::strerrordesc_np(saved.os_errno));
  }
}

// --- operations ---

std::optional<IoResult> OverlayEngine::submit(std::uint32_t /*token*/, const IoOperation& operation) {
  switch (operation.kind) {
    case IoOperation::Kind::kRead:
      return read(operation.offset, operation.length, operation.buffers);
    case IoOperation::Kind::kWrite:
      return write(operation);
    case IoOperation::Kind::kFlush:
      return flush();
    case IoOperation::Kind::kDiscard:
      return discard(operation.offset, operation.length);
    case IoOperation::Kind::kZero:
      return zero(operation.offset, operation.length, false);
    case IoOperation::Kind::kZeroAndFree:
      return zero(operation.offset, operation.length, true);
  }
  return IoResult{};
}

bool OverlayEngine::kick() {
  if (file_ && !safe_ && is_dirty_) {
    if (const IoResult written = write_bitmap(); written.os_errno != 0) {
      LOG_WARN_LIMITED("the bitmap of overlay %s cannot be written now: %s", file_->path().c_str(),
                       ::strerrordesc_np(written.os_errno));
    }
  }
  return true;
}

void OverlayEngine::set_file(int /*fd*/) {
  MAYFLY_CHECK(false, "an overlay cannot change its image");
}

std::uint64_t OverlayEngine::cluster_bytes(std::uint64_t cluster) const {
  return std::min(kClusterSize, base_size_ - cluster * kClusterSize);
}

IoResult OverlayEngine::read(std::uint64_t offset, std::uint64_t length, std::span<iovec> buffers) {
  const std::uint64_t end = offset + length;
  while (offset < end) {
    const std::uint64_t cluster = offset / kClusterSize;
    const std::uint64_t run_end = (cluster + bitmap_.run(cluster, clusters_of(end))) * kClusterSize;
    const std::uint64_t here = std::min(end, run_end) - offset;
    split(buffers, here, part_);
    const bool ours = bitmap_.has(cluster);
    if (const IoResult done =
            file_io::read_all(ours ? fd() : base_fd_, part_, ours ? data_offset_ + offset : offset);
        done.os_errno != 0) {
      return done;
    }
    offset += here;
  }
  return {};
}

bool OverlayEngine::was_cut_off(std::uint64_t offset, std::uint64_t length) const {
  // In whole clusters, as they are copied up.
  const std::uint64_t end = std::min(clusters_of(offset + length) * kClusterSize, base_size_);
  return file_ && data_offset_ + end > file_->current_end();
}

IoResult OverlayEngine::write(const IoOperation& operation) {
  if (was_cut_off(operation.offset, operation.length)) {
    return {ENODATA};
  }
  if (const IoResult copied = copy_up_edges(operation.offset, operation.length); copied.os_errno != 0) {
    return copied;
  }
  if (const IoResult written =
          file_io::write_all(fd(), operation.buffers, data_offset_ + operation.offset, false);
      written.os_errno != 0) {
    return written;
  }
  add(operation.offset, operation.length);
  return operation.durable ? flush() : IoResult{};
}

IoResult OverlayEngine::zero(std::uint64_t offset, std::uint64_t length, bool free) {
  if (was_cut_off(offset, length)) {
    return {ENODATA};
  }
  if (const IoResult copied = copy_up_edges(offset, length); copied.os_errno != 0) {
    return copied;
  }
  IoResult zeroed{EOPNOTSUPP};
  if (free) {
    zeroed = file_io::punch_hole(fd(), data_offset_ + offset, length);
  }
  if (file_io::is_unsupported(zeroed.os_errno)) {
    zeroed = file_io::zero_range(fd(), data_offset_ + offset, length);
  }
  if (zeroed.os_errno == 0) {
    add(offset, length);
  }
  return zeroed;
}

// What was discarded reads as zeroes, never again as the image's: whole clusters only, the rest stays.
IoResult OverlayEngine::discard(std::uint64_t offset, std::uint64_t length) {
  const std::uint64_t first = clusters_of(offset);
  // The image's last cluster may be a part of one, and is whole then, too.
  const std::uint64_t end =
      offset + length == base_size_ ? clusters_of(base_size_) : (offset + length) / kClusterSize;
  if (first >= end) {
    return {};
  }
  const std::uint64_t from = first * kClusterSize;
  const std::uint64_t bytes = std::min(end * kClusterSize, base_size_) - from;
  if (was_cut_off(from, bytes)) {
    return {ENODATA};
  }
  const IoResult punched = file_io::punch_hole(fd(), data_offset_ + from, bytes);
  if (punched.os_errno == 0) {
    add(from, bytes);
  }
  return file_io::is_unsupported(punched.os_errno) ? IoResult{} : punched;
}

IoResult OverlayEngine::flush() {
  if (!file_) {
    return {};
  }
  // The data before the bitmap that tells of them.
  if (const IoResult flushed = file_io::flush(fd()); flushed.os_errno != 0 || !is_dirty_) {
    return flushed;
  }
  if (const IoResult written = write_bitmap(); written.os_errno != 0) {
    return written;
  }
  return file_io::flush(fd());
}

IoResult OverlayEngine::copy_up(std::uint64_t cluster) {
  if (bitmap_.has(cluster)) {
    return {};
  }
  const auto bytes = std::span(cluster_).first(static_cast<std::size_t>(cluster_bytes(cluster)));
  if (const IoResult read = read_bytes(base_fd_, bytes, cluster * kClusterSize); read.os_errno != 0) {
    return read;
  }
  if (const IoResult written = write_bytes(fd(), bytes, data_offset_ + cluster * kClusterSize);
      written.os_errno != 0) {
    return written;
  }
  add(cluster * kClusterSize, bytes.size());
  return {};
}

IoResult OverlayEngine::copy_up_edges(std::uint64_t offset, std::uint64_t length) {
  const std::uint64_t end = offset + length;
  const std::uint64_t last = (end - 1) / kClusterSize;
  if (offset % kClusterSize != 0) {
    if (const IoResult copied = copy_up(offset / kClusterSize); copied.os_errno != 0) {
      return copied;
    }
  }
  return end % kClusterSize != 0 && end != base_size_ ? copy_up(last) : IoResult{};
}

// Takes up every cluster that the range touches.
void OverlayEngine::add(std::uint64_t offset, std::uint64_t length) {
  const std::uint64_t end = clusters_of(offset + length);
  for (std::uint64_t first = offset / kClusterSize; first < end;) {
    const std::uint64_t page = first / kBitsPerPage;
    const std::uint64_t page_end = std::min(end, (page + 1) * kBitsPerPage);
    if (bitmap_.add(first, page_end)) {
      dirty_[static_cast<std::size_t>(page)] = true;
      is_dirty_ = true;
    }
    first = page_end;
  }
}

IoResult OverlayEngine::write_bitmap() {
  for (std::size_t page = 0; is_dirty_ && page < dirty_.size(); ++page) {
    if (!dirty_[page]) {
      continue;
    }
    if (const IoResult written = write_bytes(fd(), bitmap_.page(page), kClusterSize * (page + 1));
        written.os_errno != 0) {
      return written;
    }
    dirty_[page] = false;
  }
  is_dirty_ = false;
  return {};
}

}  // namespace mayfly
