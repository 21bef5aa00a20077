// The guest's memory as the driver fake sees it: addresses and bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "memory/guest_memory.h"

namespace mayfly::testing {

// Every access throws std::out_of_range where there is no such memory: the driver lies to the device in what
// it writes, never by touching memory that is not there.
class DriverMemory {
 public:
  virtual ~DriverMemory() = default;

  virtual void read(std::uint64_t address, std::span<std::byte> to) const = 0;
  virtual void write(std::uint64_t address, std::span<const std::byte> from) = 0;
  // A ring's index: one little-endian access of two bytes that does not tear. A load is not overtaken by the
  // accesses behind it, and a store does not overtake those before it.
  virtual std::uint16_t load_index(std::uint64_t address) const = 0;
  virtual void store_index(std::uint64_t address, std::uint16_t value) = 0;

  // Little-endian, byte by byte.
  std::uint64_t read_le(std::uint64_t address, unsigned width) const;
  void write_le(std::uint64_t address, unsigned width, std::uint64_t value);
  std::vector<std::byte> read_bytes(std::uint64_t address, std::size_t size) const;
};

// Bytes from address `base` on. For tests of the fake itself; one thread.
class ByteMemory final : public DriverMemory {
 public:
  ByteMemory(std::uint64_t base, std::size_t size) : base_(base), bytes_(size) {}

  void read(std::uint64_t address, std::span<std::byte> to) const override;
  void write(std::uint64_t address, std::span<const std::byte> from) override;
  std::uint16_t load_index(std::uint64_t address) const override;
  void store_index(std::uint64_t address, std::uint16_t value) override;

 private:
  std::size_t offset_of(std::uint64_t address, std::size_t size) const;

  std::uint64_t base_;
  std::vector<std::byte> bytes_;
};

// Our guest RAM, which a device may use from another thread at the same time. Borrows it.
class GuestDriverMemory final : public DriverMemory {
 public:
  explicit GuestDriverMemory(GuestMemory& memory) : memory_(memory) {}

  void read(std::uint64_t address, std::span<std::byte> to) const override;
  void write(std::uint64_t address, std::span<const std::byte> from) override;
  std::uint16_t load_index(std::uint64_t address) const override;
  void store_index(std::uint64_t address, std::uint16_t value) override;

 private:
  GuestSlice index_at(std::uint64_t address) const;

  GuestMemory& memory_;
};

}  // namespace mayfly::testing
