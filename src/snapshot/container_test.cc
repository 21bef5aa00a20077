#include "snapshot/container.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

#include "base/crc64.h"

namespace mayfly {
namespace {

using testing::HasSubstr;

constexpr std::size_t kHeader = 64;

std::span<const std::byte> payload(std::string_view text) {
  return std::as_bytes(std::span(text));
}

const SnapshotHeader kSample{
    .architecture = 1, .vendor = 2, .memory_size = 1 << 27, .created_ns = 12345, .vcpu_count = 4};

std::vector<std::byte> sample(const SnapshotHeader& header = kSample) {
  const std::array<SnapshotSection, 3> sections = {
      {{.name = "machine", .index = 0, .version = 1, .optional = false, .payload = payload("four")},
       {.name = "vcpu", .index = 1, .version = 3, .optional = false, .payload = payload("registers")},
       {.name = "platform", .index = 0, .version = 1, .optional = true, .payload = {}}}};
  return write_container(header, sections);
}

Error error_of(std::span<const std::byte> bytes) {
  const auto read = read_container(bytes);
  EXPECT_FALSE(read.has_value());
  return read ? Error(ErrorCode::kInternal, "") : read.error();
}

void put(std::vector<std::byte>& bytes, std::size_t at, std::uint64_t value, std::size_t width) {
  for (std::size_t index = 0; index < width; ++index) {
    bytes.at(at + index) = static_cast<std::byte>(value >> (8 * index));
  }
}

// The header's checksum, made right again.
void seal(std::vector<std::byte>& bytes) {
  put(bytes, kHeader - 8, crc64(std::span(bytes).first(kHeader - 8)), 8);
}

// The same of the first section's.
void seal_first_section(std::vector<std::byte>& bytes) {
  const std::span<const std::byte> section = std::span(bytes).subspan(kHeader, 32 + 4);
  put(bytes, kHeader + 24, crc64(section.subspan(32), crc64(section.first(24))), 8);
}

TEST(Container, what_was_written_is_read) {
  const auto bytes = sample();
  const auto read = read_container(bytes);
  ASSERT_TRUE(read.has_value()) << read.error().message();
  EXPECT_EQ(read->header, kSample);
  ASSERT_EQ(read->sections.size(), 3U);
  EXPECT_EQ(read->sections[1].title(), "vcpu 1");
  EXPECT_EQ(read->sections[1].version, 3);
  EXPECT_FALSE(read->sections[1].optional);
  EXPECT_EQ(read->sections[1].payload.size(), 9U);
  EXPECT_EQ(read->sections[2].name, "platform") << "eight letters";
  EXPECT_TRUE(read->sections[2].optional);
}

TEST(Container, every_bit_that_flips_is_noticed) {
  const auto whole = sample();
  for (std::size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    auto bytes = whole;
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    ASSERT_FALSE(read_container(bytes).has_value()) << "byte " << bit / 8 << ", bit " << bit % 8;
  }
}

TEST(Container, every_byte_that_is_missing_at_the_end_is_noticed_and_so_is_one_too_many) {
  auto bytes = sample();
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    ASSERT_FALSE(read_container(std::span(bytes).first(size)).has_value()) << size;
  }
  EXPECT_THAT(error_of(std::span(bytes).first(70)).message(), HasSubstr("it is cut off: 70 bytes are there"));
  bytes.push_back(std::byte{0});
  EXPECT_THAT(error_of(bytes).message(), HasSubstr("something follows it"));
}

TEST(Container, what_is_something_else_is_said_to_be_that) {
  EXPECT_EQ(error_of({}).message(), "it is no snapshot of a microVM's state");
  EXPECT_EQ(error_of(payload("{\"json\": true}")).code(), ErrorCode::kInvalidImage);
}

TEST(Container, damage_is_named_by_where_it_is) {
  auto bytes = sample();
  bytes[20] ^= std::byte{1};
  EXPECT_THAT(error_of(bytes).message(), HasSubstr("its header is damaged"));
  bytes = sample();
  bytes.back() ^= std::byte{1};
  EXPECT_THAT(error_of(bytes).message(), HasSubstr("section 2 of the file is damaged"));
}

TEST(Container, a_newer_version_is_refused_by_name_and_so_is_one_too_old) {
  for (const SnapshotVersion version : {SnapshotVersion{.major = 1, .minor = 1, .patch = 0},
                                        SnapshotVersion{.major = 2, .minor = 0, .patch = 0}}) {
    SnapshotHeader header = kSample;
    header.version = version;
    const Error error = error_of(sample(header));
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    EXPECT_EQ(error.message(),
              "the file has format " + version.to_string() + ", this program reads 1.0.0: it is newer");
  }
  SnapshotHeader old = kSample;
  old.version = {.major = 0, .minor = 9, .patch = 3};
  EXPECT_THAT(error_of(sample(old)).message(), HasSubstr("0.9.3, this program reads 1.0.0: it is too old"));
}

TEST(Container, a_version_that_differs_in_nothing_to_know_is_read) {
  SnapshotHeader header = kSample;
  header.version.patch = 7;
  EXPECT_TRUE(read_container(sample(header)).has_value());
}

TEST(Container, a_newer_header_of_another_size_is_newer_and_not_damaged) {
  auto bytes = sample();
  bytes.insert(bytes.begin() + kHeader - 8, 16, std::byte{0x77});
  put(bytes, 10, 5, 2);  // minor
  put(bytes, 14, kHeader + 16, 2);
  put(bytes, kHeader + 8, crc64(std::span(bytes).first(kHeader + 8)), 8);
  EXPECT_THAT(error_of(bytes).message(), HasSubstr("it is newer"));
  put(bytes, 10, 0, 2);
  put(bytes, kHeader + 8, crc64(std::span(bytes).first(kHeader + 8)), 8);
  EXPECT_THAT(error_of(bytes).message(), HasSubstr("its header has 80 bytes"));
}

TEST(Container, a_header_that_lies_with_a_right_checksum_is_refused) {
  for (const std::size_t at : {18U, 52U}) {  // reserved
    auto bytes = sample();
    put(bytes, at, 1, 1);
    seal(bytes);
    EXPECT_THAT(error_of(bytes).message(), HasSubstr("reserved")) << at;
  }
  auto bytes = sample();
  put(bytes, 20, 0xffffffff, 4);  // sections
  seal(bytes);
  EXPECT_THAT(error_of(bytes).message(), HasSubstr("more than there can be"));
  bytes = sample();
  put(bytes, 20, 4, 4);
  seal(bytes);
  EXPECT_THAT(error_of(bytes).message(), HasSubstr("section 3 of the file is cut off"));
  bytes = sample();
  put(bytes, 20, 2, 4);
  seal(bytes);
  EXPECT_THAT(error_of(bytes).message(), HasSubstr("32 bytes follow its last section"));
  for (const std::uint64_t size : {0U, 8U, 23U, 65535U}) {
    bytes = sample();
    put(bytes, 14, size, 2);
    seal(bytes);
    EXPECT_EQ(error_of(bytes).code(), ErrorCode::kInvalidImage) << size;
  }
}

TEST(Container, a_section_longer_than_the_file_is_cut_off) {
  for (const std::uint64_t size : {std::uint64_t{1000}, ~std::uint64_t{0}, ~std::uint64_t{0} - 31}) {
    auto bytes = sample();
    put(bytes, kHeader + 16, size, 8);
    EXPECT_THAT(error_of(bytes).message(), HasSubstr("section 0 of the file is cut off")) << size;
  }
}

TEST(Container, names_and_flags_that_none_has_are_refused) {
  for (const char* name : {"", "Vcpu", "a b", "v1", "vcpu\n"}) {
    const std::array<SnapshotSection, 1> sections = {{{.name = name, .version = 1}}};
    EXPECT_THAT(error_of(write_container(kSample, sections)).message(), HasSubstr("that none can have"))
        << name;
  }
  auto bytes = sample();
  put(bytes, kHeader + 14, 2, 2);  // flags
  seal_first_section(bytes);
  EXPECT_THAT(error_of(bytes).message(), HasSubstr("that none can have"));
  bytes = sample();
  put(bytes, kHeader + 3, 0, 1);  // "mac", and something behind the padding
  seal_first_section(bytes);
  EXPECT_THAT(error_of(bytes).message(), HasSubstr("that none can have"));
}

TEST(Container, more_than_a_state_can_be_is_not_looked_at) {
  const std::vector<std::byte> bytes(kMaxSnapshotState + 1);
  EXPECT_THAT(error_of(bytes).message(), HasSubstr("more than a snapshot's state can have"));
}

}  // namespace
}  // namespace mayfly
