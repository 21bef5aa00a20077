#include "memory/memory_file.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/crc64.h"
#include "base/file.h"
#include "memory/guest_copy.h"

namespace mayfly {
namespace {

constexpr std::uint64_t kLargestPiece = 4ULL << 20;
constexpr std::uint64_t kBuffer = 1ULL << 20;
// A question whether to go on may cost a system call, and a run may be one page.
constexpr std::uint64_t kBetweenQuestions = 1ULL << 20;

// What becomes of a page of zeros.
enum class Zeros : std::uint8_t {
  kAreHoles,    // in a file where it is one already
  kMakeHoles,   // in a file where it may be another page
  kAreWritten,  // in a file where a hole is no zeros
};

Result<void> size_empty_file(const NamedFile& file, std::uint64_t size) {
  struct stat stat {};
  if (::fstat(file.fd.get(), &stat) != 0) {
    return fail_errno(errno, std::string("look at ").append(file.name));
  }
  if (!S_ISREG(stat.st_mode) || stat.st_size != 0) {
    return fail(ErrorCode::kInvalidArgument, std::string(file.name) + ": not an empty regular file");
  }
  if (::ftruncate(file.fd.get(), static_cast<off_t>(size)) != 0) {
    return fail_errno(errno, std::string("size ").append(file.name));
  }
  return {};
}

Result<void> ask_to_go_on(const MemoryFileOptions& options, const NamedFile& file, std::uint64_t done,
                          std::uint64_t total) {
  if (options.proceed && !options.proceed(done, total)) {
    return fail(ErrorCode::kBusy, std::string("write ").append(file.name) + ": stopped as asked");
  }
  return {};
}

// Writes parts of one memory into one file.
class Writer {
 public:
  Writer(const GuestMemory& memory, const NamedFile& file, const MemoryFileOptions& options, Zeros zeros,
         std::uint64_t total)
      : memory_(memory), file_(file), options_(options), zeros_(zeros), total_(total) {}

  const WrittenMemory& written() const { return written_; }
  void skip(std::uint64_t size) { written_.untouched += size; }

  Result<void> write(const MemoryRegion& region, const Extent& extent) {
    const std::uint64_t start = region.backing_offset + extent.offset;
    if (!extent.in_file) {
      return write_bytes(static_cast<const std::byte*>(region.host) + extent.offset, extent.size, start);
    }
    buffer_.resize(kBuffer);
    for (std::uint64_t done = 0; done < extent.size;) {
      const std::uint64_t size = std::min(kBuffer, extent.size - done);
      MAYFLY_TRY_ASSIGN(const std::size_t got, read_at(memory_.backing_file(), start + done,
                                                       {buffer_.data(), size}, "guest memory's own file"));
      if (got != size) {
        return fail(ErrorCode::kInvalidImage, "guest memory's own file: was cut short");
      }
      MAYFLY_TRY(write_bytes(buffer_.data(), size, start + done));
      done += size;
    }
    return {};
  }

 private:
  Result<void> ask() {
    const std::uint64_t done = written_.written + written_.zero + written_.untouched;
    if (done < next_question_) {
      return {};
    }
    next_question_ = done + kBetweenQuestions;
    return ask_to_go_on(options_, file_, done, total_);
  }

  // Whole pages from `from` to `offset` of the file: runs of those that are zeros and those that are not.
  Result<void> write_bytes(const std::byte* from, std::uint64_t size, std::uint64_t offset) {
    const auto is_zero = [&](std::uint64_t at) {
      return zeros_ != Zeros::kAreWritten && is_zero_in_guest(from + at, kGuestPage);
    };
    for (std::uint64_t done = 0; done < size;) {
      MAYFLY_TRY(ask());
      const bool zero = is_zero(done);
      const std::uint64_t most = std::min(size - done, zero ? kBetweenQuestions : kLargestPiece);
      std::uint64_t run = kGuestPage;
      while (run < most && is_zero(done + run) == zero) {
        run += kGuestPage;
      }
      if (zero) {
        MAYFLY_TRY(clear(offset + done, run));
        written_.zero += run;
      } else {
        MAYFLY_TRY(put(from + done, run, offset + done));
        written_.written += run;
      }
      done += run;
    }
    return {};
  }

  Result<void> put(const std::byte* from, std::uint64_t size, std::uint64_t offset) const {
    // SAFETY: write_at() has the kernel read there; an iovec knows no const.
    return write_at(file_.fd, offset, {const_cast<std::byte*>(from), size}, file_.name);
  }

  Result<void> clear(std::uint64_t offset, std::uint64_t size) {
    if (zeros_ == Zeros::kAreHoles) {
      return {};
    }
    if (::fallocate(file_.fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                    static_cast<off_t>(size)) == 0) {
      return {};
    }
    if (errno != EOPNOTSUPP && errno != ENOSYS) {
      return fail_errno(errno, std::string("clear pages of ").append(file_.name));
    }
    buffer_.assign(kBuffer, std::byte{0});
    for (std::uint64_t done = 0; done < size;) {
      const std::uint64_t piece = std::min(kBuffer, size - done);
      MAYFLY_TRY(put(buffer_.data(), piece, offset + done));
      done += piece;
    }
    return {};
  }

  const GuestMemory& memory_;
  const NamedFile& file_;
  const MemoryFileOptions& options_;
  Zeros zeros_;
  std::uint64_t total_;
  std::uint64_t next_question_ = 0;  // bytes that are done by then
  WrittenMemory written_;
  std::vector<std::byte> buffer_;
};

Result<void> check_pages(const GuestMemory& memory, const PageSet& pages) {
  const auto regions = memory.regions();
  bool fits = pages.size() == regions.size();
  for (std::size_t index = 0; fits && index < pages.size(); ++index) {
    fits = pages[index].size() == (regions[index].range.size() / kGuestPage + 63) / 64;
  }
  return fits ? Result<void>() : fail(ErrorCode::kInvalidArgument, "dirty pages: a set of other memory");
}

// Calls `visit(region, extent)` for each run of pages in the set.
Result<void> for_each_dirty(const GuestMemory& memory, const PageSet& dirty,
                            const std::function<Result<void>(const MemoryRegion&, const Extent&)>& visit) {
  for (std::size_t index = 0; index < dirty.size(); ++index) {
    const MemoryRegion& region = memory.regions()[index];
    const auto& words = dirty[index];
    const std::uint64_t count = region.range.size() / kGuestPage;
    // The first page at or behind `page` that is in the set, or is not.
    const auto find = [&](std::uint64_t page, bool in_set) {
      while (page < count) {
        const std::uint64_t word = (in_set ? words[page / 64] : ~words[page / 64]) >> (page % 64);
        if (word != 0) {
          return std::min(page + static_cast<std::uint64_t>(std::countr_zero(word)), count);
        }
        page = (page / 64 + 1) * 64;
      }
      return count;
    };
    for (std::uint64_t page = find(0, true); page < count;) {
      const std::uint64_t end = find(page, false);
      MAYFLY_TRY(visit(region, {page * kGuestPage, (end - page) * kGuestPage, false}));
      page = find(end, true);
    }
  }
  return {};
}

Result<WrittenMemory> write_pages(const GuestMemory& memory, const PageSet& dirty, const NamedFile& file,
                                  const MemoryFileOptions& options, Zeros zeros) {
  Writer writer(memory, file, options, zeros, count_pages(dirty) * kGuestPage);
  MAYFLY_TRY(for_each_dirty(memory, dirty, [&](const MemoryRegion& region, const Extent& extent) {
    return writer.write(region, extent);
  }));
  return writer.written();
}

// Whether what the file system calls data are the pages of the set and no others.
Result<void> check_holes(const GuestMemory& memory, const PageSet& dirty, const NamedFile& file) {
  std::uint64_t expected = 0;
  std::uint64_t found = 0;
  bool same = true;
  const auto in_set = [&](std::uint64_t offset) {
    for (std::size_t index = 0; index < dirty.size(); ++index) {
      const MemoryRegion& region = memory.regions()[index];
      if (offset >= region.backing_offset && offset - region.backing_offset < region.range.size()) {
        const std::uint64_t page = (offset - region.backing_offset) / kGuestPage;
        return ((dirty[index][page / 64] >> (page % 64)) & 1) != 0;
      }
    }
    return false;
  };
  MAYFLY_TRY(for_each_dirty(memory, dirty, [&](const MemoryRegion&, const Extent& extent) {
    expected += extent.size;
    return Result<void>();
  }));
  MAYFLY_TRY(for_each_data(file.fd, 0, memory.size(), file.name, [&](std::uint64_t at, std::uint64_t size) {
    found += size;
    for (std::uint64_t done = 0; same && done < size; done += kGuestPage) {
      same = in_set(at + done);
    }
    return Result<void>();
  }));
  if (!same || found != expected) {
    return fail(ErrorCode::kUnsupported,
                std::string(file.name) +
                    ": its file system does not keep holes page by page, which a diff is made of");
  }
  return {};
}

// Copies what is no hole.
Result<void> copy_data(const NamedFile& from, const NamedFile& to, std::uint64_t size,
                       const MemoryFileOptions& options) {
  std::vector<std::byte> buffer(kBuffer);
  const auto copy = [&](std::uint64_t at, std::uint64_t length) -> Result<void> {
    for (const std::uint64_t end = at + length; at < end;) {
      MAYFLY_TRY(ask_to_go_on(options, to, at, size));
      const std::uint64_t piece = std::min(kBuffer, end - at);
      MAYFLY_TRY_ASSIGN(const std::size_t got, read_at(from.fd, at, {buffer.data(), piece}, from.name));
      if (got != piece) {
        return fail(ErrorCode::kInvalidImage, std::string(from.name).append(": was cut short"));
      }
      MAYFLY_TRY(write_at(to.fd, at, {buffer.data(), piece}, to.name));
      at += piece;
    }
    return {};
  };
  MAYFLY_TRY(for_each_data(from.fd, 0, size, from.name, copy));
  return check_memory_file(from.fd, size, from.name);  // what was cut off looks like a hole
}

Result<std::uint64_t> size_of(const NamedFile& file) {
  struct stat stat {};
  if (::fstat(file.fd.get(), &stat) != 0) {
    return fail_errno(errno, std::string("look at ").append(file.name));
  }
  if (!S_ISREG(stat.st_mode)) {
    return fail(ErrorCode::kInvalidImage, std::string(file.name) + ": not a regular file");
  }
  return static_cast<std::uint64_t>(stat.st_size);
}

}  // namespace

Result<WrittenMemory> write_full(const GuestMemory& memory, const NamedFile& file,
                                 const MemoryFileOptions& options) {
  MAYFLY_TRY(size_empty_file(file, memory.size()));
  Writer writer(memory, file, options, Zeros::kAreHoles, memory.size());
  for (const MemoryRegion& region : memory.regions()) {
    std::uint64_t at = 0;
    const auto write = [&](const Extent& extent) {
      writer.skip(extent.offset - at);
      at = extent.offset + extent.size;
      return writer.write(region, extent);
    };
    if (options.served_by_handler) {
      MAYFLY_TRY(write({0, region.range.size(), false}));
    } else {
      MAYFLY_TRY(for_each_extent(memory, region, options.pages, write));
    }
    writer.skip(region.range.size() - at);
  }
  if (memory.backing() == Backing::kPrivateFile) {  // what was cut off looks like a hole
    MAYFLY_TRY(check_memory_file(memory.backing_file(), memory.size(), "guest memory's own file"));
  }
  return writer.written();
}

Result<WrittenMemory> write_over(const GuestMemory& memory, const PageSet& dirty, const NamedFile& file,
                                 const MemoryFileOptions& options) {
  MAYFLY_TRY(check_pages(memory, dirty));
  if (auto checked = check_memory_file(file.fd, memory.size(), file.name); !checked) {
    return fail(ErrorCode::kInvalidArgument, checked.error().message());
  }
  return write_pages(memory, dirty, file, options, Zeros::kMakeHoles);
}

Result<WrittenMemory> write_diff(const GuestMemory& memory, const PageSet& dirty, const NamedFile& file,
                                 const MemoryFileOptions& options) {
  MAYFLY_TRY(check_pages(memory, dirty));
  MAYFLY_TRY(size_empty_file(file, memory.size()));
  MAYFLY_TRY_ASSIGN(const WrittenMemory written,
                    write_pages(memory, dirty, file, options, Zeros::kAreWritten));
  MAYFLY_TRY(check_holes(memory, dirty, file));
  return written;
}

Result<void> copy_memory_file(const NamedFile& from, const NamedFile& to, const MemoryFileOptions& options) {
  MAYFLY_TRY_ASSIGN(const std::uint64_t size, size_of(from));
  MAYFLY_TRY(size_empty_file(to, size));
  if (::ioctl(to.fd.get(), FICLONE, from.fd.get()) == 0) {
    return {};
  }
  return copy_data(from, to, size, options);
}

Result<void> apply_diff(const NamedFile& diff, const NamedFile& onto, const MemoryFileOptions& options) {
  MAYFLY_TRY_ASSIGN(const std::uint64_t size, size_of(diff));
  MAYFLY_TRY(check_memory_file(onto.fd, size, onto.name));
  return copy_data(diff, onto, size, options);
}

Result<DiffPages> find_diff_pages(const NamedFile& file) {
  static_assert(std::endian::native == std::endian::little);
  MAYFLY_TRY_ASSIGN(const std::uint64_t size, size_of(file));
  DiffPages pages;
  std::array<std::uint64_t, 2> run{};  // its first page, and how many: stretches that touch are one run
  const auto end_run = [&pages, &run] {
    if (run[1] != 0) {
      pages.count += run[1];
      pages.checksum = crc64(std::as_bytes(std::span(run)), pages.checksum);
    }
  };
  MAYFLY_TRY(for_each_data(file.fd, 0, size, file.name, [&](std::uint64_t at, std::uint64_t length) {
    const std::uint64_t first = at / kGuestPage;
    const std::uint64_t count = (length + kGuestPage - 1) / kGuestPage;
    if (first != run[0] + run[1] || run[1] == 0) {
      end_run();
      run = {first, 0};
    }
    run[1] += count;
    return Result<void>();
  }));
  end_run();
  return pages;
}

Result<GuestMemory> load_memory_file(std::span<const GuestRange> ranges, Backing backing, UniqueFd file,
                                     std::string_view name) {
  if (backing == Backing::kAnonymous || backing == Backing::kPrivateFile) {
    return GuestMemory::map_file(ranges, std::move(file), name);
  }
  std::uint64_t size = 0;
  for (const GuestRange& range : ranges) {
    size += range.size();  // that it does not wrap, create() checks
  }
  MAYFLY_TRY(check_memory_file(file, size, name));
  MAYFLY_TRY_ASSIGN(GuestMemory memory, GuestMemory::create(ranges, backing));
  for (const MemoryRegion& region : memory.regions()) {
    const std::uint64_t start = region.backing_offset;
    MAYFLY_TRY(for_each_data(file, start, start + region.range.size(), name,
                             [&](std::uint64_t at, std::uint64_t length) {
                               const auto address = region.range.base().checked_add(at - start);
                               MAYFLY_CHECK(address, "a region does not wrap");
                               return memory.load_file(*address, file, at, length, name);
                             }));
  }
  MAYFLY_TRY(check_memory_file(file, size, name));  // what was cut off looks like a hole
  return memory;
}

}  // namespace mayfly
