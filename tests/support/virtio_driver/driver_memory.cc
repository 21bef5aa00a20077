#include "support/virtio_driver/driver_memory.h"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

namespace mayfly::testing {
namespace {

[[noreturn]] void outside(std::uint64_t address, std::size_t size) {
  throw std::out_of_range("the driver touches " + std::to_string(size) + " bytes at " +
                          std::to_string(address) + ", where there is no memory for that");
}

}  // namespace

std::uint64_t DriverMemory::read_le(std::uint64_t address, unsigned width) const {
  std::array<std::byte, 8> bytes{};
  read(address, std::span(bytes).first(width));
  std::uint64_t value = 0;
  for (unsigned i = 0; i < width; ++i) {
    value |= std::to_integer<std::uint64_t>(bytes.at(i)) << (8 * i);
  }
  return value;
}

void DriverMemory::write_le(std::uint64_t address, unsigned width, std::uint64_t value) {
  std::array<std::byte, 8> bytes{};
  for (unsigned i = 0; i < width; ++i) {
    bytes.at(i) = static_cast<std::byte>(value >> (8 * i));
  }
  write(address, std::span(bytes).first(width));
}

std::vector<std::byte> DriverMemory::read_bytes(std::uint64_t address, std::size_t size) const {
  std::vector<std::byte> bytes(size);
  read(address, bytes);
  return bytes;
}

std::size_t ByteMemory::offset_of(std::uint64_t address, std::size_t size) const {
  if (address < base_ || address - base_ > bytes_.size() || size > bytes_.size() - (address - base_)) {
    outside(address, size);
  }
  return address - base_;
}

void ByteMemory::read(std::uint64_t address, std::span<std::byte> to) const {
  std::ranges::copy(std::span(bytes_).subspan(offset_of(address, to.size()), to.size()), to.begin());
}

void ByteMemory::write(std::uint64_t address, std::span<const std::byte> from) {
  std::ranges::copy(from, std::span(bytes_).subspan(offset_of(address, from.size())).begin());
}

std::uint16_t ByteMemory::load_index(std::uint64_t address) const {
  return static_cast<std::uint16_t>(read_le(address, 2));
}

void ByteMemory::store_index(std::uint64_t address, std::uint16_t value) {
  write_le(address, 2, value);
}

void GuestDriverMemory::read(std::uint64_t address, std::span<std::byte> to) const {
  if (!memory_.read(GuestAddress(address), to)) {
    outside(address, to.size());
  }
}

void GuestDriverMemory::write(std::uint64_t address, std::span<const std::byte> from) {
  if (!memory_.write(GuestAddress(address), from)) {
    outside(address, from.size());
  }
}

GuestSlice GuestDriverMemory::index_at(std::uint64_t address) const {
  const auto slice = memory_.slice(GuestAddress(address), 2);
  if (!slice) {
    outside(address, 2);
  }
  return *slice;
}

std::uint16_t GuestDriverMemory::load_index(std::uint64_t address) const {
  return index_at(address).load<std::uint16_t>(0);
}

void GuestDriverMemory::store_index(std::uint64_t address, std::uint16_t value) {
  index_at(address).store<std::uint16_t>(0, value);
  memory_.note_written(GuestAddress(address), sizeof(value));
}

}  // namespace mayfly::testing
