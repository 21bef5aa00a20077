// Memory that a process keeps to itself when it forks.
#pragma once

#include <cstddef>
#include <memory_resource>

namespace mayfly {

// For records that last, of a process whose forks live long. As any other memory these would be shared with
// each fork until they are written to, and all that is written between two forks is copied: for the writer,
// and once more for every fork that keeps what was there before. A fork must not touch what lies here: it is
// not mapped there. Hands out whole pages; a pool resource makes small pieces of them. One thread at a time.
class UnforkedMemory final : public std::pmr::memory_resource {
 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override;
  void do_deallocate(void* memory, std::size_t bytes, std::size_t alignment) override;
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override { return this == &other; }
};

}  // namespace mayfly
