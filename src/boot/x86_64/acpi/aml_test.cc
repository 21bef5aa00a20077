#include "boot/x86_64/acpi/aml.h"

#include <gtest/gtest.h>

#include <string>

namespace mayfly::x86_64::aml {
namespace {

// ACPI 6.5, 20.2.4, read the way an interpreter reads it: how long the package is, its length field included,
// and how many bytes the field has.
struct Length {
  std::size_t package;
  std::size_t field;
};
Length read_length(const Bytes& bytes) {
  const std::size_t following = bytes.at(0) >> 6;
  std::size_t length = following == 0 ? bytes[0] & 0x3fU : bytes[0] & 0x0fU;
  EXPECT_TRUE(following == 0 || (bytes[0] & 0x30) == 0) << "bits 4 and 5 are reserved";
  for (std::size_t i = 0; i < following; ++i) {
    length |= std::size_t{bytes.at(1 + i)} << (4 + 8 * i);
  }
  EXPECT_EQ(bytes.size(), 1 + following);
  return {length, 1 + following};
}

TEST(Aml, pkg_length_counts_itself_and_the_content_for_every_size) {
  for (std::size_t content = 0; content < 5000; ++content) {
    const Length length = read_length(pkg_length(content));
    ASSERT_EQ(length.package, length.field + content);
  }
  for (const std::size_t content : {std::size_t{0xffff}, std::size_t{0xffffc}, std::size_t{0xffffd},
                                    std::size_t{0x100000}, (std::size_t{1} << 28) - 5}) {
    const Length length = read_length(pkg_length(content));
    ASSERT_EQ(length.package, length.field + content);
  }
}

TEST(Aml, pkg_length_is_as_short_as_it_can_be) {
  EXPECT_EQ(pkg_length(0), (Bytes{0x01}));
  EXPECT_EQ(pkg_length(62), (Bytes{0x3f}));
  EXPECT_EQ(pkg_length(63), (Bytes{0x41, 0x04}));
  EXPECT_EQ(pkg_length(0xffd), (Bytes{0x4f, 0xff}));
  EXPECT_EQ(pkg_length(0xffe), (Bytes{0x81, 0x00, 0x01}));
  EXPECT_EQ(pkg_length(0xffffc), (Bytes{0x8f, 0xff, 0xff}));
  EXPECT_EQ(pkg_length(0xffffd), (Bytes{0xc1, 0x00, 0x00, 0x01}));
}

TEST(AmlDeathTest, pkg_length_past_its_28_bits_is_our_bug) {
  EXPECT_DEATH(pkg_length((std::size_t{1} << 28) - 4), "2\\^28");
}

TEST(Aml, integers_take_their_shortest_form) {
  EXPECT_EQ(integer(0), (Bytes{0x00}));
  EXPECT_EQ(integer(1), (Bytes{0x01}));
  EXPECT_EQ(integer(2), (Bytes{0x0a, 0x02}));
  EXPECT_EQ(integer(0xff), (Bytes{0x0a, 0xff}));
  EXPECT_EQ(integer(0x100), (Bytes{0x0b, 0x00, 0x01}));
  EXPECT_EQ(integer(0xffff), (Bytes{0x0b, 0xff, 0xff}));
  EXPECT_EQ(integer(0x10000), (Bytes{0x0c, 0x00, 0x00, 0x01, 0x00}));
  EXPECT_EQ(integer(0xffffffff), (Bytes{0x0c, 0xff, 0xff, 0xff, 0xff}));
  EXPECT_EQ(integer(0x100000000), (Bytes{0x0e, 0, 0, 0, 0, 1, 0, 0, 0}));
}

TEST(Aml, names_are_padded_and_rooted) {
  EXPECT_EQ(name_string("_SB"), (Bytes{'_', 'S', 'B', '_'}));
  EXPECT_EQ(name_string("\\_S5_"), (Bytes{'\\', '_', 'S', '5', '_'}));
}

TEST(AmlDeathTest, malformed_names_are_our_bug) {
  for (const std::string name : {"", "\\", "ABCDE", "1ABC", "abcd", "A.BC", "A\\"}) {
    EXPECT_DEATH(name_string(name), "check failed") << name;
  }
}

// 19.3.4: PNP0C0C compresses to 0x0C0CD041 as an integer.
TEST(Aml, eisa_ids_compress) {
  EXPECT_EQ(eisa_id("PNP0C0C"), (Bytes{0x0c, 0x41, 0xd0, 0x0c, 0x0c}));
  EXPECT_EQ(eisa_id("PNP0501"), (Bytes{0x0c, 0x41, 0xd0, 0x05, 0x01}));
  EXPECT_EQ(eisa_id("ZZZFFFF"), (Bytes{0x0c, 0x6b, 0x5a, 0xff, 0xff}));
}

TEST(AmlDeathTest, malformed_eisa_ids_are_our_bug) {
  for (const std::string id : {"PNP050", "PNP05011", "pnp0501", "PNP050g", "1NP0501"}) {
    EXPECT_DEATH(eisa_id(id), "check failed") << id;
  }
}

TEST(Aml, terms_are_what_the_grammar_says) {
  EXPECT_EQ(string("AB"), (Bytes{0x0d, 'A', 'B', 0}));
  EXPECT_EQ(name("_UID", integer(3)), (Bytes{0x08, '_', 'U', 'I', 'D', 0x0a, 3}));
  EXPECT_EQ(scope("\\_SB_", {0xaa}), (Bytes{0x10, 0x07, '\\', '_', 'S', 'B', '_', 0xaa}));
  EXPECT_EQ(device("DEV0", {0xaa}), (Bytes{0x5b, 0x82, 0x06, 'D', 'E', 'V', '0', 0xaa}));
  EXPECT_EQ(method("_EVT", 1, {0xaa}), (Bytes{0x14, 0x07, '_', 'E', 'V', 'T', 0x01, 0xaa}));
  EXPECT_EQ(if_equal(argument(0), integer(5), notify("PWRB", 0x80)),
            (Bytes{0xa0, 0x0c, 0x93, 0x68, 0x0a, 5, 0x86, 'P', 'W', 'R', 'B', 0x0a, 0x80}));
  EXPECT_EQ(package({integer(5), integer(0)}), (Bytes{0x12, 0x05, 0x02, 0x0a, 5, 0x00}));
}

TEST(Aml, resources_are_what_the_descriptors_say) {
  EXPECT_EQ(memory32_fixed(0xc0001000, 0x1000),
            (Bytes{0x86, 0x09, 0x00, 0x01, 0x00, 0x10, 0x00, 0xc0, 0x00, 0x10, 0x00, 0x00}));
  EXPECT_EQ(io_ports(0x3f8, 8), (Bytes{0x47, 0x01, 0xf8, 0x03, 0xf8, 0x03, 0x01, 0x08}));
  EXPECT_EQ(edge_interrupt(0x105), (Bytes{0x89, 0x06, 0x00, 0x03, 0x01, 0x05, 0x01, 0x00, 0x00}));
  EXPECT_EQ(resource_template({{0xaa}}), (Bytes{0x11, 0x06, 0x0a, 0x03, 0xaa, 0x79, 0x00}));
}

}  // namespace
}  // namespace mayfly::x86_64::aml
