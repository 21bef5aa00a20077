#include "memory/working_set_recorder.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <string>
#include <utility>

namespace mayfly {
namespace {

using std::chrono::steady_clock;

// linux/userfaultfd.h: UFFD_FEATURE_WP_ASYNC, since Linux 6.7: nothing is ever to be answered.
constexpr std::uint64_t kAsynchronous = 1ULL << 15;

// Between two looks: this at least, and ten times what the last one took, so that it has a tenth of a
// processor at most; twice as long after each that found nothing.
constexpr std::chrono::nanoseconds kShortestWait = std::chrono::milliseconds(1);
constexpr std::chrono::nanoseconds kLongestWait = std::chrono::milliseconds(100);
constexpr int kShare = 10;

}  // namespace

WorkingSetRecorder::WorkingSetRecorder(const GuestMemory& memory, const PageMap& pages, std::size_t most_runs)
    : memory_(memory), page_map_(pages), most_runs_(most_runs), seen_(memory.size() / kGuestPage) {
  runs_.reserve(most_runs);  // address space, until it is written
}

Result<std::unique_ptr<WorkingSetRecorder>> WorkingSetRecorder::start(const GuestMemory& memory,
                                                                      const PageMap& pages,
                                                                      std::function<Result<void>()> confine,
                                                                      std::size_t most_runs) {
  if (memory.backing() != Backing::kPrivateFile) {
    return fail(ErrorCode::kUnsupported, "a working set is recorded of private memory files alone, not of " +
                                             std::string(to_string(memory.backing())));
  }
  std::unique_ptr<WorkingSetRecorder> recorder(new WorkingSetRecorder(memory, pages, most_runs));
  recorder->keep_neighbours_out();
  MAYFLY_TRY(recorder->thread_.start("mayfly_record", std::move(confine),
                                     [self = recorder.get()] { self->main(); }));
  return recorder;
}

// The header has the reasons. What a host refuses here makes the set larger and nothing worse.
void WorkingSetRecorder::keep_neighbours_out() {
  for (const MemoryRegion& region : memory_.regions()) {
    static_cast<void>(::madvise(region.host, region.range.size(), MADV_NOHUGEPAGE));
  }
  exact_ = watch_memory();
  if (exact_) {
    return;
  }
  for (const MemoryRegion& region : memory_.regions()) {
    static_cast<void>(::madvise(region.host, region.range.size(), MADV_RANDOM));
  }
  static_cast<void>(::posix_fadvise(memory_.backing_file().get(), 0, 0, POSIX_FADV_DONTNEED));
}

bool WorkingSetRecorder::watch_memory() {
  UniqueFd watch(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY)));
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = kAsynchronous;
  if (!watch || ::ioctl(watch.get(), UFFDIO_API, &api) != 0) {
    return false;
  }
  for (const MemoryRegion& region : memory_.regions()) {
    uffdio_register request{};
    // SAFETY: the number is for the kernel; nothing is accessed through it.
    request.range = {reinterpret_cast<std::uintptr_t>(region.host), region.range.size()};
    request.mode = UFFDIO_REGISTER_MODE_WP;
    // EBUSY: another userfaultfd has it registered, which does as well.
    if (::ioctl(watch.get(), UFFDIO_REGISTER, &request) != 0 && errno != EBUSY) {
      return false;
    }
  }
  watch_ = std::move(watch);
  return true;
}

void WorkingSetRecorder::main() noexcept {
  std::chrono::nanoseconds wait = kShortestWait;
  for (bool go_on = true; go_on;) {
    go_on = thread_.sleep(wait);
    const std::size_t before = runs_.size();
    const auto start = steady_clock::now();
    looked_ = look();
    if (!looked_ || !whole_) {
      return;
    }
    const auto least =
        std::max<std::chrono::nanoseconds>((steady_clock::now() - start) * kShare, kShortestWait);
    wait = runs_.size() > before ? least : std::max(least, std::min(wait * 2, kLongestWait));
  }
}

Result<void> WorkingSetRecorder::look() {
  for (const MemoryRegion& region : memory_.regions()) {
    MAYFLY_TRY(page_map_.for_each_run(region.host, region.range.size(), PageMap::Kind::kThere,
                                      [&](std::uint64_t offset, std::uint64_t size) {
                                        add((region.backing_offset + offset) / kGuestPage, size / kGuestPage);
                                        return Result<void>();
                                      }));
  }
  return {};
}

// Those of the pages that were not seen before.
void WorkingSetRecorder::add(std::uint64_t page, std::uint64_t count) {
  for (const std::uint64_t end = page + count; page < end; ++page) {
    if (seen_[page]) {
      continue;
    }
    const bool goes_on = !runs_.empty() && std::uint64_t{runs_.back().page} + runs_.back().count == page;
    if (!goes_on && runs_.size() == most_runs_) {
      whole_ = false;
      return;
    }
    seen_[page] = true;
    ++seen_pages_;
    if (goes_on) {
      ++runs_.back().count;
    } else {
      runs_.push_back({.page = static_cast<std::uint32_t>(page), .count = 1});
    }
  }
}

Result<std::vector<bool>> WorkingSetRecorder::find_data() const {
  std::vector<bool> data(seen_.size());
  MAYFLY_TRY(for_each_data(memory_.backing_file(), 0, memory_.size(), "guest memory's own file",
                           [&](std::uint64_t at, std::uint64_t size) {
                             // A file system whose blocks are smaller than pages may split one.
                             const std::uint64_t end = (at + size + kGuestPage - 1) / kGuestPage;
                             std::fill(data.begin() + static_cast<std::ptrdiff_t>(at / kGuestPage),
                                       data.begin() + static_cast<std::ptrdiff_t>(end), true);
                             return Result<void>();
                           }));
  return data;
}

Result<std::vector<bool>> WorkingSetRecorder::find_written() const {
  std::vector<bool> written(seen_.size());
  for (const MemoryRegion& region : memory_.regions()) {
    const auto add = [&](std::uint64_t offset, std::uint64_t size) {
      const auto first = static_cast<std::ptrdiff_t>((region.backing_offset + offset) / kGuestPage);
      std::fill_n(written.begin() + first, size / kGuestPage, true);
      return Result<void>();
    };
    MAYFLY_TRY(page_map_.for_each_run(region.host, region.range.size(), PageMap::Kind::kPrivate, add));
  }
  return written;
}

Result<WorkingSetRecorder::Recording> WorkingSetRecorder::finish() {
  thread_.stop();
  watch_.reset();
  MAYFLY_TRY(thread_.wait_confined());
  MAYFLY_TRY(looked_);
  MAYFLY_TRY_ASSIGN(const std::vector<bool> data, find_data());
  MAYFLY_TRY_ASSIGN(const std::vector<bool> written, find_written());
  Recording recording;
  recording.whole = whole_;
  recording.exact = exact_;
  const auto has_room = [&] { return recording.runs.size() < most_runs_; };
  for (const PageRun& run : runs_) {
    bool goes_on = false;
    for (std::uint32_t page = run.page; page - run.page < run.count; ++page) {
      if (!data[page]) {
        goes_on = false;
        continue;
      }
      goes_on = goes_on && recording.runs.back().written == written[page];
      if (!goes_on && !has_room()) {
        recording.whole = false;
        return recording;
      }
      if (!goes_on) {
        recording.runs.push_back({.page = page, .count = 0, .written = written[page]});
      }
      goes_on = true;
      ++recording.runs.back().count;
      ++recording.pages;
    }
  }
  return recording;
}

}  // namespace mayfly
