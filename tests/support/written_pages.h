// Holds a guest memory's record of writes (GuestMemory::take_noted) to the truth: which bytes changed.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "memory/guest_memory.h"

namespace mayfly::testing {

class WrittenPages {
 public:
  explicit WrittenPages(GuestMemory& memory) : memory_(memory) { memory_.note_writes(true); }

  // Addresses of pages.
  struct Found {
    std::vector<std::uint64_t> changed;
    std::vector<std::uint64_t> noted;
  };

  // What was written in `act`. All of it must be noted. Nothing but the device is to write meanwhile: what
  // the driver fake writes notes itself.
  Found during(std::string_view what, const std::function<void()>& act) {
    const auto before = contents();
    take();
    act();
    const auto noted = take();
    const auto after = contents();
    Found found;
    for (std::size_t index = 0; index < before.size(); ++index) {
      const std::uint64_t base = memory_.regions()[index].range.base().value();
      for (std::uint64_t at = 0; at < before[index].size(); at += kGuestPage) {
        const auto page = [at](const std::vector<std::byte>& bytes) {
          return std::span(bytes).subspan(at, kGuestPage);
        };
        const std::uint64_t number = at / kGuestPage;
        const bool is_noted = (noted[index][number / 64] >> (number % 64) & 1) != 0;
        const bool is_changed = !std::ranges::equal(page(before[index]), page(after[index]));
        if (is_noted) {
          found.noted.push_back(base + at);
        }
        if (is_changed) {
          found.changed.push_back(base + at);
        }
        EXPECT_TRUE(is_noted || !is_changed)
            << what << ": page " << std::hex << base + at << " was written and not noted";
      }
    }
    return found;
  }

 private:
  std::vector<std::vector<std::byte>> contents() const {
    std::vector<std::vector<std::byte>> all;
    for (const MemoryRegion& region : memory_.regions()) {
      all.emplace_back(region.range.size());
      EXPECT_TRUE(memory_.read(region.range.base(), all.back()));
    }
    return all;
  }
  std::vector<std::vector<std::uint64_t>> take() {
    std::vector<std::vector<std::uint64_t>> all;
    for (std::size_t index = 0; index < memory_.regions().size(); ++index) {
      all.push_back(memory_.take_noted(index).value());
    }
    return all;
  }

  GuestMemory& memory_;
};

}  // namespace mayfly::testing
