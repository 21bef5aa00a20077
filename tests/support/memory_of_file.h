// Guest memory that is private to a file, as a restored machine has it.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <string_view>
#include <utility>

#include "base/unique_fd.h"
#include "memory/guest_memory.h"

namespace mayfly::testing {

// 1 MiB from address 0 on, of a file of its own that holds `text` at its start and zeros otherwise.
inline GuestMemory memory_of_file(std::string_view text = {}) {
  constexpr std::uint64_t kSize = 1U << 20;
  UniqueFd file(::memfd_create("guest_memory", MFD_CLOEXEC));
  EXPECT_EQ(::ftruncate(file.get(), static_cast<off_t>(kSize)), 0);
  EXPECT_EQ(::pwrite(file.get(), text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
  const std::array ranges = {GuestRange::make(GuestAddress(0), kSize).value()};
  return GuestMemory::map_file(ranges, std::move(file), "memory file").value();
}

}  // namespace mayfly::testing
