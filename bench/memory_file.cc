// How long it takes to save a guest's memory and to have it again, beside what the host's kernel needs for
// the same bytes: no KVM, no guest.
//
//   mayfly_memory_file DIRECTORY [MIB TOUCHED_MIB ROUNDS]
//
// Writes to files in DIRECTORY, of 128 MiB of RAM of which 8 are touched unless it is told otherwise. What
// comes out is a line of JSON with the medians in milliseconds: a full file by the page map, by mincore, by
// reading all of it, and of a memfd; the plain write(2) of the touched bytes; fsync and publish; a diff of a
// tenth of the touched pages; mapping the file, and reading it into memory of its own.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/atomic_file.h"
#include "base/file.h"
#include "bench.h"
#include "memory/memory_file.h"
#include "memory/x86_64/ranges.h"

namespace mayfly::bench {
namespace {

constexpr std::uint64_t kPage = 4096;

double ms(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return since<std::milli>(start);
}

struct Figure {
  const char* name;
  std::vector<double> times;
};

class Bench {
 public:
  Bench(std::string directory, std::uint64_t size, std::uint64_t touched)
      : path_(std::move(directory) + "/memory_file_bench"),
        ranges_(must(x86_64::memory_ranges(size))),
        anonymous_(must(GuestMemory::create(ranges_, Backing::kAnonymous))),
        memfd_(must(GuestMemory::create(ranges_, Backing::kMemfd))),
        pages_(must(PageMap::open())),
        plain_(touched, std::byte{1}),
        dirty_(no_pages(anonymous_)) {
    // As a guest does that has booted: stretches of a MiB all over its memory.
    const std::uint64_t stretches = touched / kMiB;
    for (std::uint64_t stretch = 0; stretch < stretches; ++stretch) {
      const std::uint64_t offset = size / stretches * stretch / kPage * kPage;
      for (const MemoryRegion& region : anonymous_.regions()) {
        if (offset >= region.backing_offset && offset + kMiB <= region.backing_offset + region.range.size()) {
          const GuestAddress at = *region.range.base().checked_add(offset - region.backing_offset);
          static_cast<void>(anonymous_.fill(at, kMiB, std::byte{1}));
          static_cast<void>(memfd_.fill(at, kMiB, std::byte{1}));
        }
      }
      for (std::uint64_t page = offset / kPage; page < (offset + kMiB) / kPage; page += 10) {
        dirty_[0][page / 64 % dirty_[0].size()] |= 1ULL << (page % 64);
      }
    }
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;
  ~Bench() { ::unlink(path_.c_str()); }

  void round() {
    timed("plain_write", [&](const NamedFile& file) {
      must(write_at(file.fd, 0, {plain_.data(), plain_.size()}, file.name));
    });
    timed("full_by_mincore", [&](const NamedFile& file) { must(write_full(anonymous_, file, {})); });
    timed("full_memfd", [&](const NamedFile& file) { must(write_full(memfd_, file, {})); });
    timed("diff", [&](const NamedFile& file) { must(write_diff(anonymous_, dirty_, file, {})); });
    auto file = must(AtomicFile::create(path_, "memory file"));
    add("full", ms([&] {
          must(write_full(anonymous_, {file.descriptor(), file.name()}, {.pages = &pages_}));
        }));
    add("sync", ms([&] { must(file.sync()); }));
    add("publish", ms([&] { must(file.publish()); }));
    add("load_mapped", ms([&] { load(Backing::kAnonymous); }));
    add("load_read", ms([&] { load(Backing::kMemfd); }));
  }

  // Last, as it touches all of the memory.
  void read_everything() {
    timed("full_by_reading",
          [&](const NamedFile& file) { must(write_full(anonymous_, file, {.served_by_handler = true})); });
  }

  void print() const {
    std::string text = "{";
    for (const Figure& figure : figures_) {
      std::array<char, 64> value{};
      std::snprintf(value.data(), value.size(), "%s\"%s\": %.3f", text.size() > 1 ? ", " : "", figure.name,
                    median(figure.times));
      text += value.data();
    }
    std::puts((text + "}").c_str());
  }

 private:
  void add(const char* name, double time) {
    for (Figure& figure : figures_) {
      if (std::string_view(figure.name) == name) {
        figure.times.push_back(time);
        return;
      }
    }
    figures_.push_back({name, {time}});
  }

  void timed(const char* name, const std::function<void(const NamedFile&)>& write) {
    const auto file = must(AtomicFile::create(path_, "memory file"));
    add(name, ms([&] { write({file.descriptor(), file.name()}); }));
  }

  void load(Backing backing) {
    must(load_memory_file(ranges_, backing, must(open_file(path_, O_RDONLY, "memory file")), "memory file"));
  }

  std::string path_;
  std::vector<GuestRange> ranges_;
  GuestMemory anonymous_;
  GuestMemory memfd_;
  PageMap pages_;
  std::vector<std::byte> plain_;
  PageSet dirty_;
  std::vector<Figure> figures_;
};

int run(const std::vector<std::string>& words) {
  if (words.empty()) {
    give_up("which directory?");
  }
  Bench bench(words[0], number_at(words, 1, 128) * kMiB, number_at(words, 2, 8) * kMiB);
  for (std::uint64_t round = number_at(words, 3, 15); round > 0; --round) {
    bench.round();
  }
  bench.read_everything();
  bench.print();
  return 0;
}

}  // namespace
}  // namespace mayfly::bench

int main(int count, char** words) {
  return mayfly::bench::run({words + 1, words + count});
}
