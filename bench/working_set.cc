// What reading a working set ahead saves a guest, on a cold page cache: no KVM, a thread plays the guest.
//
//   mayfly_working_set [--check] DIRECTORY [MIB TOUCHED_MIB ROUNDS]
//
// Writes a memory file to DIRECTORY, which is to be on a disk, of 1024 MiB unless it is told otherwise. The
// guest touches 64 of them in stretches of one to six pages all over it, a third of the pages for writing.
// Its first run is recorded; then each round drops the file from the page cache (posix_fadvise(2)) and times
// the same run in each of these ways, one after the other:
//
//   plain          from the mapped file, as the host's read-ahead has it
//
//   no_readahead   the same, the kernel reading single pages (MADV_RANDOM), as of a disk without read-ahead
//
//   prefetch       with a Prefetcher, started at the same moment
//
//   file_order     the same, of a set that is sorted by where its pages lie
//
//   compact        a copy of the pages in one piece, read and put into anonymous memory before the guest runs
//
// Out comes a line of JSON: the medians in milliseconds, the guest's page faults with prefetch and without,
// and `ratio`, of prefetch to plain. With --check the program fails where that is more than 0.5.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/atomic_file.h"
#include "base/file.h"
#include "bench.h"
#include "memory/prefetch.h"
#include "memory/working_set_recorder.h"

namespace mayfly::bench {
namespace {

constexpr double kMostRatio = 0.5;

// The pages that the guest touches, in its order.
std::vector<std::uint64_t> make_pattern(std::uint64_t pages, std::uint64_t touched) {
  constexpr std::uint64_t kSlot = 6;
  std::mt19937_64 random(1);
  std::vector<std::uint64_t> slots(pages / kSlot);
  for (std::uint64_t slot = 0; slot < slots.size(); ++slot) {
    slots[slot] = slot * kSlot;
  }
  std::shuffle(slots.begin(), slots.end(), random);
  std::vector<std::uint64_t> pattern;
  for (const std::uint64_t slot : slots) {
    const std::uint64_t length = 1 + random() % kSlot;
    for (std::uint64_t page = slot; page < slot + length && pattern.size() < touched; ++page) {
      pattern.push_back(page);
    }
  }
  return pattern;
}

struct Run {
  double ms = 0;
  double faults = 0;  // of the guest's thread, minor and major
};

class Bench {
 public:
  Bench(const std::string& directory, std::uint64_t size, std::uint64_t touched)
      : memory_path_(directory + "/working_set_bench_memory"),
        set_path_(directory + "/working_set_bench_set"),
        sorted_path_(set_path_ + "_sorted"),
        compact_path_(directory + "/working_set_bench_compact"),
        ranges_({GuestRange::make(GuestAddress(0), size).value()}),
        pattern_(make_pattern(size / kGuestPage, touched / kGuestPage)) {
    write_memory(size);
    record();
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;
  ~Bench() {
    for (const std::string& path : {memory_path_, set_path_, sorted_path_, compact_path_}) {
      ::unlink(path.c_str());
    }
  }

  void round() {
    ways_[0].runs.push_back(plain(MADV_NORMAL));
    ways_[1].runs.push_back(plain(MADV_RANDOM));
    ways_[2].runs.push_back(prefetched(set_path_));
    ways_[3].runs.push_back(prefetched(sorted_path_));
    ways_[4].runs.push_back(compact());
  }

  // Whether prefetch is worth its promise.
  bool print() const {
    std::string text = "{";
    const auto add = [&text](const std::string& name, double value, int digits) {
      std::array<char, 64> number{};
      std::snprintf(number.data(), number.size(), "%.*f", digits, value);
      text.append("\"").append(name).append("\": ").append(number.data()).append(", ");
    };
    std::array<double, 5> times{};
    for (std::size_t way = 0; way < ways_.size(); ++way) {
      std::vector<double> ms;
      std::vector<double> faults;
      for (const Run& run : ways_[way].runs) {
        ms.push_back(run.ms);
        faults.push_back(run.faults);
      }
      times[way] = median(ms);
      add(std::string(ways_[way].name) + "_ms", times[way], 1);
      add(std::string(ways_[way].name) + "_faults", median(faults), 0);
    }
    add("touched_pages", static_cast<double>(pattern_.size()), 0);
    add("recorded_pages", static_cast<double>(recorded_), 0);
    const double ratio = times[2] / times[0];
    add("ratio", ratio, 3);
    text.replace(text.size() - 2, 2, "}");
    std::puts(text.c_str());
    return ratio <= kMostRatio;
  }

 private:
  struct Way {
    const char* name;
    std::vector<Run> runs;
  };

  void write_memory(std::uint64_t size) {
    memory_file_ = must(open_file(memory_path_, O_RDWR | O_CREAT | O_TRUNC, "memory file"));
    std::mt19937_64 random(2);
    std::vector<std::uint64_t> piece(kMiB / 8);
    for (std::uint64_t at = 0; at < size; at += kMiB) {
      std::generate(piece.begin(), piece.end(), [&] { return random(); });
      must(write_at(memory_file_, at, {piece.data(), kMiB}, "memory file"));
    }
    if (::fsync(memory_file_.get()) != 0) {
      give_up("the memory file does not reach the disk");
    }
  }

  // The first run: plain, and recorded.
  void record() {
    chill();
    GuestMemory memory = map();
    const PageMap pages = must(PageMap::open());
    auto recorder = must(WorkingSetRecorder::start(memory, pages));
    run_guest(memory);
    auto recording = must(recorder->finish());
    recorded_ = recording.pages;
    write_set(set_path_, memory.size(), recording.runs);
    std::sort(recording.runs.begin(), recording.runs.end(),
              [](const PageRun& a, const PageRun& b) { return a.page < b.page; });
    write_set(sorted_path_, memory.size(), recording.runs);
    sorted_ = pattern_;
    std::sort(sorted_.begin(), sorted_.end());
    compact_file_ = must(open_file(compact_path_, O_RDWR | O_CREAT | O_TRUNC, "compact copy"));
    std::array<std::byte, kGuestPage> page{};
    for (std::uint64_t index = 0; index < sorted_.size(); ++index) {
      must(read_at(memory_file_, sorted_[index] * kGuestPage, {page.data(), page.size()}, "memory file"));
      must(write_at(compact_file_, index * kGuestPage, {page.data(), page.size()}, "compact copy"));
    }
    if (::fsync(compact_file_.get()) != 0) {
      give_up("the compact copy does not reach the disk");
    }
  }

  static void write_set(const std::string& path, std::uint64_t memory_size,
                        const std::vector<PageRun>& runs) {
    auto file = must(AtomicFile::create(path, "working set"));
    must(write_working_set({file.descriptor(), file.name()}, {.memory_size = memory_size}, runs));
    must(file.commit());
  }

  GuestMemory map() const {
    return must(GuestMemory::map_file(ranges_, must(open_file(memory_path_, O_RDONLY, "memory file")),
                                      "memory file"));
  }

  // Nothing of the files is in the page cache.
  void chill() const {
    ::posix_fadvise(memory_file_.get(), 0, 0, POSIX_FADV_DONTNEED);
    if (compact_file_) {
      ::posix_fadvise(compact_file_.get(), 0, 0, POSIX_FADV_DONTNEED);
    }
    const std::uint64_t size = ranges_[0].size();
    void* const start = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, memory_file_.get(), 0);
    std::vector<unsigned char> there(size / kGuestPage);
    if (start == MAP_FAILED || ::mincore(start, size, there.data()) != 0) {
      give_up("the page cache cannot be looked at");
    }
    ::munmap(start, size);
    if (std::any_of(there.begin(), there.end(), [](unsigned char page) { return (page & 1) != 0; })) {
      give_up("the page cache cannot be emptied: is the directory on a disk?");
    }
  }

  double run_guest(GuestMemory& memory) const {
    double faults = 0;
    std::thread([&] {
      std::uint64_t index = 0;
      for (const std::uint64_t page : pattern_) {
        const GuestAddress address(page * kGuestPage);
        if (index++ % 3 == 0) {
          static_cast<void>(memory.write_object<std::uint64_t>(address, index));
        } else {
          static_cast<void>(memory.read_object<std::uint64_t>(address));
        }
      }
      struct rusage usage {};
      ::getrusage(RUSAGE_THREAD, &usage);
      faults = static_cast<double>(usage.ru_minflt + usage.ru_majflt);
    }).join();
    return faults;
  }

  Run timed(GuestMemory& memory, const std::function<void()>& prepare) const {
    const auto start = std::chrono::steady_clock::now();
    prepare();
    Run run;
    run.faults = run_guest(memory);
    run.ms = since<std::milli>(start);
    return run;
  }

  Run plain(int advice) const {
    chill();
    GuestMemory memory = map();
    return timed(memory, [&] { ::madvise(memory.regions()[0].host, memory.size(), advice); });
  }

  Run prefetched(const std::string& set) const {
    chill();
    GuestMemory memory = map();
    std::unique_ptr<Prefetcher> prefetcher;
    const Run run = timed(memory, [&] {
      const auto file = must(open_file(set, O_RDONLY, "working set"));
      prefetcher =
          must(Prefetcher::start(memory, must(WorkingSet::read({file, "working set"}, {memory.size(), 0}))));
    });
    const auto progress = prefetcher->wait_ended();
    if (progress.failed) {
      give_up(progress.failed->message());
    }
    return run;
  }

  Run compact() const {
    chill();
    GuestMemory memory = must(GuestMemory::create(ranges_, Backing::kAnonymous));
    return timed(memory, [&] {
      constexpr std::uint64_t kAsk = 128 << 10;
      for (std::uint64_t at = 0; at < sorted_.size() * kGuestPage; at += kAsk) {
        ::readahead(compact_file_.get(), static_cast<off64_t>(at), kAsk);
      }
      std::vector<std::byte> piece(kMiB);
      for (std::uint64_t index = 0; index < sorted_.size(); index += kMiB / kGuestPage) {
        const std::uint64_t count = std::min(kMiB / kGuestPage, sorted_.size() - index);
        must(read_at(compact_file_, index * kGuestPage, {piece.data(), count * kGuestPage}, "compact copy"));
        for (std::uint64_t page = 0; page < count; ++page) {
          const auto bytes = std::span(piece).subspan(page * kGuestPage, kGuestPage);
          static_cast<void>(memory.write(GuestAddress(sorted_[index + page] * kGuestPage), bytes));
        }
      }
    });
  }

  std::string memory_path_;
  std::string set_path_;
  std::string sorted_path_;
  std::string compact_path_;
  std::vector<GuestRange> ranges_;
  std::vector<std::uint64_t> pattern_;
  std::vector<std::uint64_t> sorted_;
  std::uint64_t recorded_ = 0;
  UniqueFd memory_file_;
  UniqueFd compact_file_;
  std::array<Way, 5> ways_ = {
      {{"plain", {}}, {"no_readahead", {}}, {"prefetch", {}}, {"file_order", {}}, {"compact", {}}}};
};

int run(std::vector<std::string> words) {
  const auto found = std::find(words.begin(), words.end(), "--check");
  const bool check = found != words.end();
  if (check) {
    words.erase(found);
  }
  if (words.empty()) {
    give_up("which directory?");
  }
  Bench bench(words[0], number_at(words, 1, 1024) * kMiB, number_at(words, 2, 64) * kMiB);
  for (std::uint64_t round = number_at(words, 3, 7); round > 0; --round) {
    bench.round();
  }
  const bool good = bench.print();
  return check && !good ? 1 : 0;
}

}  // namespace
}  // namespace mayfly::bench

int main(int count, char** words) {
  return mayfly::bench::run({words + 1, words + count});
}
