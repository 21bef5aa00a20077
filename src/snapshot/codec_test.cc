#include "snapshot/codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "snapshot/fields.h"

namespace mayfly::snapshot_detail {
namespace {

using testing::HasSubstr;

template <typename T>
Bytes encoded(const T& value) {
  Bytes bytes;
  Encoder encoder(bytes);
  code(encoder, value);
  return bytes;
}

Bytes bytes_of(std::initializer_list<unsigned> values) {
  Bytes bytes;
  for (const unsigned value : values) {
    bytes.push_back(static_cast<std::byte>(value));
  }
  return bytes;
}

// What is wrong, or nothing.
template <typename T>
std::string refusal(const Bytes& bytes) {
  Decoder decoder(bytes);
  T value{};
  code(decoder, value);
  return decoder.error().value_or("");
}

TEST(Codec, integers_are_little_endian_and_as_wide_as_their_type) {
  EXPECT_EQ(encoded(std::uint8_t{0x12}), bytes_of({0x12}));
  EXPECT_EQ(encoded(std::uint16_t{0x1234}), bytes_of({0x34, 0x12}));
  EXPECT_EQ(encoded(std::uint32_t{0x12345678}), bytes_of({0x78, 0x56, 0x34, 0x12}));
  EXPECT_EQ(encoded(std::uint64_t{0x1122334455667788}),
            bytes_of({0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11}));
}

TEST(Codec, each_kind_of_value_has_the_bytes_that_are_written_of_it) {
  EXPECT_EQ(encoded(true), bytes_of({1}));
  EXPECT_EQ(encoded(MmdsVersion::kV2), bytes_of({1}));
  EXPECT_EQ(encoded(std::string("ab")), bytes_of({2, 0, 0, 0, 'a', 'b'}));
  EXPECT_EQ(encoded(std::vector<std::uint16_t>{1, 2}), bytes_of({2, 0, 0, 0, 1, 0, 2, 0}));
  EXPECT_EQ(encoded(std::optional<std::uint8_t>{}), bytes_of({0}));
  EXPECT_EQ(encoded(std::optional<std::uint8_t>{7}), bytes_of({1, 7}));
  EXPECT_EQ(encoded(std::variant<TapConfig, UserNetConfig>(TapConfig{.name = "t"})),
            bytes_of({0, 1, 0, 0, 0, 't'}));
  EXPECT_EQ(encoded(std::array<std::uint8_t, 2>{3, 4}), bytes_of({3, 4}));
  EXPECT_EQ(encoded(kvm_mp_state{.mp_state = 3}), bytes_of({3, 0, 0, 0}));
}

TEST(Codec, a_kernel_structure_comes_with_its_size) {
  kvm_regs registers{};
  registers.rax = 0x55;
  Bytes bytes = encoded(registers);
  ASSERT_EQ(bytes.size(), 4 + sizeof(kvm_regs));
  EXPECT_EQ(bytes[0], std::byte{144});
  EXPECT_EQ(bytes[4], std::byte{0x55});
  bytes[0] = std::byte{143};
  EXPECT_EQ(refusal<kvm_regs>(bytes), "a structure of KVM's has 143 bytes where 144 are right");
}

TEST(Codec, what_no_value_is_encoded_as_is_refused) {
  EXPECT_THAT(refusal<bool>(bytes_of({2})), HasSubstr("a byte that is 2 says yes or no"));
  EXPECT_THAT(refusal<MmdsVersion>(bytes_of({2})), HasSubstr("which of several things"));
  EXPECT_THAT(refusal<std::optional<bool>>(bytes_of({255})), HasSubstr("whether a value follows"));
  EXPECT_THAT((refusal<std::variant<TapConfig, UserNetConfig>>(bytes_of({2}))), HasSubstr("what kind"));
  EXPECT_EQ(refusal<std::string>(bytes_of({1, 0, 0, 0, 0})), "a text holds a NUL");
  EXPECT_EQ(refusal<std::uint32_t>(bytes_of({1, 2, 3})), "it ends in the middle of a value");
}

TEST(Codec, a_count_that_the_bytes_do_not_account_for_allocates_nothing) {
  const Bytes bytes = bytes_of({0xff, 0xff, 0xff, 0xff, 1});
  EXPECT_EQ(refusal<std::string>(bytes), "a list or a text of 4294967295 where 1 bytes are left");
  EXPECT_NE(refusal<std::vector<std::uint64_t>>(bytes), "");
  EXPECT_NE(refusal<std::vector<std::byte>>(bytes), "");
  // As many as there are bytes, but each takes more than one.
  Decoder decoder(bytes);
  std::vector<std::uint64_t> values;
  const Bytes few = bytes_of({3, 0, 0, 0, 1, 1, 1});
  Decoder short_decoder(few);
  code(short_decoder, values);
  EXPECT_TRUE(short_decoder.error());
  EXPECT_EQ(values.size(), 1U) << "it stops at the first that is not there";
}

TEST(Codec, the_first_thing_that_is_wrong_is_what_is_said) {
  const Bytes bytes = bytes_of({2, 1, 1});
  Decoder decoder(bytes);
  bool first = true;
  std::uint64_t second = 1;
  all(decoder, first, second);
  EXPECT_THAT(*decoder.error(), HasSubstr("yes or no"));
  EXPECT_FALSE(first);
  EXPECT_EQ(second, 0U);
  EXPECT_EQ(decoder.remaining(), 0U);
}

}  // namespace

// Makes values up where a Decoder reads them. In the namespace in which fields() is looked for.
class Filler {
 public:
  static constexpr bool kReads = true;

  explicit Filler(std::uint64_t seed) : random_(seed) {}

  template <std::unsigned_integral T>
  void integer(T& value) {
    if (value == 0) {  // a size that is given stays
      value = static_cast<T>(sizeof(T) == 1 && random_() % 2 == 0 ? random_() % 3 : random_());
    }
  }
  void raw(std::span<std::byte> bytes) {
    std::generate(bytes.begin(), bytes.end(),
                  [this] { return static_cast<std::byte>('a' + random_() % 26); });
  }
  std::uint32_t count() { return static_cast<std::uint32_t>(random_() % 4); }
  void refuse(const std::string& /*why*/) {}
  std::optional<std::string> error() const { return std::nullopt; }

 private:
  std::mt19937_64 random_;
};

namespace {

template <typename T>
class EveryStructure : public testing::Test {};

using Structures =
    testing::Types<SavedMachine, SavedRange, SavedBoot, SavedDrive, SavedNetwork, MmdsConfig, SerialState,
                   PowerState, kvm_clock_data, arch::CpuTemplate, arch::VcpuState, arch::PlatformState>;
TYPED_TEST_SUITE(EveryStructure, Structures);

TYPED_TEST(EveryStructure, is_the_same_after_a_round_trip_and_not_there_when_a_byte_is_missing) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    TypeParam value{};
    Filler filler(seed);
    code(filler, value);
    const Bytes bytes = encoded(value);
    TypeParam copy{};
    Decoder decoder(bytes);
    code(decoder, copy);
    ASSERT_FALSE(decoder.error()) << seed << ": " << *decoder.error();
    ASSERT_EQ(decoder.remaining(), 0U) << seed;
    ASSERT_EQ(encoded(copy), bytes) << seed;

    for (std::size_t size = 0; size < bytes.size(); size += 1 + bytes.size() / 64) {
      ASSERT_NE(refusal<TypeParam>(Bytes(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size))),
                "")
          << size << " of " << bytes.size();
    }
  }
}

TYPED_TEST(EveryStructure, survives_any_bytes_and_what_it_accepts_has_one_encoding) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 500; ++round) {
    TypeParam value{};
    Filler filler(random());
    code(filler, value);
    Bytes bytes = encoded(value);
    for (int change = 0; change < 4; ++change) {
      bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    }
    TypeParam copy{};
    Decoder decoder(bytes);
    code(decoder, copy);
    if (!decoder.error() && decoder.remaining() == 0) {
      ASSERT_EQ(encoded(copy), bytes);
    }
  }
}

}  // namespace
}  // namespace mayfly::snapshot_detail
