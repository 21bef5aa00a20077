#include "base/unforked_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <map>
#include <new>
#include <string>

namespace mayfly {
namespace {

// Whether there is a page, which mincore(2) tells without touching it.
bool is_mapped(const void* address) {
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  // SAFETY: an address as a number, rounded down to its page's; the kernel looks at no contents.
  auto* const begin = reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(address) / page * page);
  unsigned char resident = 0;
  return ::mincore(begin, 1, &resident) == 0;
}

TEST(UnforkedMemory, is_not_there_in_a_fork) {
  UnforkedMemory memory;
  std::pmr::unsynchronized_pool_resource pool(&memory);
  std::pmr::map<int, std::pmr::string> records(&pool);
  for (int number = 0; number < 100; ++number) {
    records.emplace(number, "a text that is too long to lie in the string itself");
  }
  const void* const node = &records.at(99);
  const void* const text = records.at(99).data();
  EXPECT_TRUE(is_mapped(node) && is_mapped(text));
  const pid_t fork = ::fork();
  if (fork == 0) {
    ::_exit((is_mapped(node) ? 1 : 0) + (is_mapped(text) ? 2 : 0));
  }
  ASSERT_GT(fork, 0);
  int status = -1;
  ASSERT_EQ(::waitpid(fork, &status, 0), fork);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(records.at(99), "a text that is too long to lie in the string itself");
}

TEST(UnforkedMemory, given_back_is_unmapped) {
  UnforkedMemory memory;
  void* const piece = memory.allocate(1);
  EXPECT_TRUE(is_mapped(piece));
  memory.deallocate(piece, 1);
  EXPECT_FALSE(is_mapped(piece));
}

TEST(UnforkedMemory, more_than_there_is_throws_as_any_memory) {
  UnforkedMemory memory;
  EXPECT_THROW(static_cast<void>(memory.allocate(std::size_t{1} << 60)), std::bad_alloc);
  EXPECT_THROW(static_cast<void>(memory.allocate(1, std::size_t{1} << 30)), std::bad_alloc);
}

}  // namespace
}  // namespace mayfly
