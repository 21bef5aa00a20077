// Where the driver fake gets the memory for its buffers and indirect tables.
#pragma once

#include <cstdint>
#include <map>

namespace mayfly::testing {

// Hands out pieces of one stretch of guest memory, the lowest that fits first, aligned to 16 bytes.
class BufferArena {
 public:
  BufferArena(std::uint64_t base, std::uint64_t size);

  // Throws std::bad_alloc where no free piece is large enough. A piece of no bytes has an address of its own.
  std::uint64_t take(std::uint64_t size);
  void give_back(std::uint64_t address, std::uint64_t size);

  std::uint64_t free_bytes() const;

 private:
  std::map<std::uint64_t, std::uint64_t> free_;  // address to size; neighbours are joined
};

}  // namespace mayfly::testing
