// What it costs to take the dirty log of a large guest of which little was written: for each size of memory,
// how long the log's parts take, for which the guest stands still at the end of a live snapshot and at a
// diff.
//
//   mayfly_dirty_log [PAGES ROUNDS]
//
// PAGES, 1,024 unless it is told otherwise, are written all over the memory before each round, by the
// monitor: their bits take the way that KVM's take. Needs /dev/kvm of any kind, no guest. For each size comes
// out a line of JSON with medians in microseconds: `kvm`, KVM_GET_DIRTY_LOG alone; `take`, that and the
// monitor's record, joined and kept in the ledger of the next diff; `count`, going over all bits once.
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "bench.h"
#include "kvm/kvm.h"
#include "memory/precopy.h"
#include "memory/x86_64/ranges.h"
#include "vmm/dirty_log.h"

namespace mayfly::bench {
namespace {

using Clock = std::chrono::steady_clock;

void measure(Kvm& kvm, std::uint64_t mib, std::uint64_t pages, std::uint64_t rounds) {
  GuestMemory memory =
      must(GuestMemory::create(must(x86_64::memory_ranges(mib * kMiB)), Backing::kAnonymous));
  Vm vm = must(kvm.complete_vm(must(kvm.create_empty_vm()), memory.regions(), {.pmu = false}));
  DirtyLog log(vm, memory);
  DirtyLedger ledger(memory, log);
  must(log.start());
  std::array<std::vector<double>, 3> taken;
  for (std::uint64_t round = 0; round < rounds; ++round) {
    const GuestRange range = memory.regions().back().range;
    const std::uint64_t step = range.size() / pages / kGuestPage * kGuestPage;
    for (std::uint64_t page = 0; page < pages; ++page) {
      // Always in RAM.
      static_cast<void>(memory.write_object(GuestAddress(range.base().value() + page * step), page));
    }
    auto start = Clock::now();
    for (std::size_t region = 0; region < memory.regions().size(); ++region) {
      must(vm.take_dirty_pages(region));
    }
    taken[0].push_back(since<std::micro>(start));
    start = Clock::now();
    const PageSet dirty = must(take_dirty_pages(memory, ledger));
    taken[1].push_back(since<std::micro>(start));
    start = Clock::now();
    if (count_pages(dirty) != pages) {
      give_up(std::to_string(count_pages(dirty)) + " pages were told");
    }
    taken[2].push_back(since<std::micro>(start));
  }
  std::printf(R"({"mib": %llu, "pages": %llu, "kvm_us": %.1f, "take_us": %.1f, "count_us": %.1f})"
              "\n",
              static_cast<unsigned long long>(mib), static_cast<unsigned long long>(pages), median(taken[0]),
              median(taken[1]), median(taken[2]));
}

int run(const std::vector<std::string>& words) {
  Kvm kvm = must(Kvm::open());
  for (const std::uint64_t mib : {128U, 1024U, 16384U}) {
    measure(kvm, mib, number_at(words, 0, 1024), number_at(words, 1, 51));
  }
  return 0;
}

}  // namespace
}  // namespace mayfly::bench

int main(int count, char** words) {
  return mayfly::bench::run({words + 1, words + count});
}
