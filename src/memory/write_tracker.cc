#include "memory/write_tracker.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <tuple>
#include <utility>

namespace mayfly {
namespace {

// linux/userfaultfd.h: UFFD_FEATURE_WP_ASYNC, since Linux 6.7.
constexpr std::uint64_t kAsynchronous = 1ULL << 15;

tl::unexpected<Error> too_old() {
  return fail(ErrorCode::kUnsupported, "a log of writes to guest memory: it takes Linux 6.7");
}

}  // namespace

Result<WriteTracker> WriteTracker::start(const GuestMemory& memory, const PageMap& pages) {
  if (memory.backing() == Backing::kMemfd || memory.backing() == Backing::kHugetlb2M) {
    return fail(ErrorCode::kUnsupported,
                "a log of writes to guest memory: not of " + std::string(to_string(memory.backing())));
  }
  // No fault comes to us, so that faults of the kernel's need no privilege.
  UniqueFd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY)));
  if (!fd) {
    return fail_errno(errno, "make a userfaultfd");
  }
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = kAsynchronous;
  if (::ioctl(fd.get(), UFFDIO_API, &api) != 0) {
    const int why = errno;
    return why == EINVAL ? too_old() : fail_errno(why, "set up a userfaultfd");
  }
  for (const MemoryRegion& region : memory.regions()) {
    uffdio_register request{};
    // SAFETY: the number is for the kernel; nothing is accessed through it.
    request.range = {reinterpret_cast<std::uintptr_t>(region.host), region.range.size()};
    request.mode = UFFDIO_REGISTER_MODE_WP;
    if (::ioctl(fd.get(), UFFDIO_REGISTER, &request) != 0) {
      return fail_errno(errno, "watch writes to guest memory");
    }
  }
  WriteTracker tracker(std::move(fd), pages, memory.regions());
  for (std::size_t region = 0; region < tracker.regions_.size(); ++region) {
    MAYFLY_TRY(tracker.take_dirty_pages(region));  // all that is there: protected now
  }
  return tracker;
}

Result<std::vector<std::uint64_t>> WriteTracker::take_dirty_pages(std::size_t region) {
  if (region >= regions_.size()) {
    return fail(ErrorCode::kOutOfRange, "take written pages: no region " + std::to_string(region));
  }
  const MemoryRegion& where = regions_[region];
  std::vector<std::uint64_t> written((where.range.size() / kGuestPage + 63) / 64);
  MAYFLY_TRY(
      pages_->take_written(where.host, where.range.size(), [&](std::uint64_t offset, std::uint64_t length) {
        const std::uint64_t end = (offset + length) / kGuestPage;
        for (std::uint64_t page = offset / kGuestPage; page < end; ++page) {
          written[page / 64] |= 1ULL << (page % 64);
        }
        return Result<void>();
      }));
  return written;
}

}  // namespace mayfly
