#include "vmm/boot_mark.h"

#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <string>

#include "support/temp_dir.h"

namespace mayfly {
namespace {

class BootMarkTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto trace = BootTrace::create(path_, BootTrace::Clock::now());
    ASSERT_TRUE(trace.has_value());
    trace_ = std::move(*trace);
    mark_ = std::make_unique<BootMark>(*trace_);
  }

  template <typename... Bytes>
  void write(std::uint64_t offset, Bytes... bytes) {
    const std::array<std::uint8_t, sizeof...(Bytes)> data{static_cast<std::uint8_t>(bytes)...};
    mark_->bus_write(offset, data);
  }

  // How often the mark stands in the trace.
  int marks() {
    EXPECT_TRUE(trace_->write());
    const std::string text = testing::read_file(path_);
    int count = 0;
    for (auto at = text.find("guest boot mark"); at != std::string::npos;
         at = text.find("guest boot mark", at + 1)) {
      ++count;
    }
    return count;
  }

  const testing::TempDir dir_;
  const std::string path_ = dir_.file("trace.json");
  std::unique_ptr<BootTrace> trace_;
  std::unique_ptr<BootMark> mark_;
};

TEST_F(BootMarkTest, the_magic_byte_at_the_first_address_is_the_mark_once) {
  write(0, BootMark::kMagic);
  write(0, BootMark::kMagic);
  EXPECT_EQ(marks(), 1);
}

TEST_F(BootMarkTest, the_magic_byte_counts_in_an_access_of_any_size) {
  write(0, BootMark::kMagic, 0, 0, 0, 0, 0, 0, 0);
  EXPECT_EQ(marks(), 1);
}

TEST_F(BootMarkTest, every_other_byte_and_address_is_ignored) {
  for (int byte = 0; byte < 256; ++byte) {
    if (byte != BootMark::kMagic) {
      write(0, byte);
    }
  }
  write(0, 0, BootMark::kMagic);
  for (std::uint64_t offset = 1; offset < BootMark::kSize; ++offset) {
    write(offset, BootMark::kMagic);
  }
  EXPECT_EQ(marks(), 0);
}

TEST_F(BootMarkTest, reads_give_zeros) {
  std::array<std::uint8_t, 8> data;
  data.fill(0xa5);
  mark_->bus_read(0, data);
  EXPECT_EQ(data, (std::array<std::uint8_t, 8>{}));
}

}  // namespace
}  // namespace mayfly
