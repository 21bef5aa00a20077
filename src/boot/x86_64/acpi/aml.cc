#include "boot/x86_64/acpi/aml.h"

#include "base/check.h"

namespace mayfly::x86_64::aml {
namespace {

// 20.3: the opcodes.
constexpr std::uint8_t kZeroOp = 0x00;
constexpr std::uint8_t kOneOp = 0x01;
constexpr std::uint8_t kNameOp = 0x08;
constexpr std::uint8_t kBytePrefix = 0x0a;
constexpr std::uint8_t kWordPrefix = 0x0b;
constexpr std::uint8_t kDWordPrefix = 0x0c;
constexpr std::uint8_t kStringPrefix = 0x0d;
constexpr std::uint8_t kQWordPrefix = 0x0e;
constexpr std::uint8_t kScopeOp = 0x10;
constexpr std::uint8_t kBufferOp = 0x11;
constexpr std::uint8_t kPackageOp = 0x12;
constexpr std::uint8_t kMethodOp = 0x14;
constexpr std::uint8_t kExtOpPrefix = 0x5b;
constexpr std::uint8_t kArg0Op = 0x68;
constexpr std::uint8_t kDeviceOp = 0x82;  // after kExtOpPrefix
constexpr std::uint8_t kNotifyOp = 0x86;
constexpr std::uint8_t kLEqualOp = 0x93;
constexpr std::uint8_t kIfOp = 0xa0;

constexpr std::uint8_t low_byte(std::uint64_t value) {
  return static_cast<std::uint8_t>(value & 0xff);
}

void append(Bytes& to, const Bytes& from) {
  to.insert(to.end(), from.begin(), from.end());
}

void append_little_endian(Bytes& to, std::uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) {
    to.push_back(low_byte(value >> (8 * i)));
  }
}

// An opcode, the length of all that follows, and what follows.
Bytes with_length(std::initializer_list<std::uint8_t> opcode, const Bytes& content) {
  Bytes term(opcode);
  append(term, pkg_length(content.size()));
  append(term, content);
  return term;
}

std::uint32_t hex_digit(char c) {
  MAYFLY_CHECK((c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'), "a hexadecimal digit, upper case");
  return static_cast<std::uint32_t>(c <= '9' ? c - '0' : c - 'A' + 10);
}

}  // namespace

Bytes join(std::initializer_list<Bytes> terms) {
  Bytes all;
  for (const Bytes& term : terms) {
    append(all, term);
  }
  return all;
}

Bytes pkg_length(std::size_t content) {
  // The length counts its own bytes. One byte holds 6 bits of it; of more, the first holds 4 and how many
  // bytes follow, each of them 8.
  if (content + 1 < 1U << 6) {
    return {low_byte(content + 1)};
  }
  std::size_t following = 1;
  while (content + 1 + following >= std::size_t{1} << (4 + 8 * following)) {
    ++following;
  }
  MAYFLY_CHECK(following <= 3, "a package of less than 2^28 bytes");
  const std::size_t length = content + 1 + following;
  Bytes encoded{low_byte(following << 6 | (length & 0xf))};
  append_little_endian(encoded, length >> 4, static_cast<int>(following));
  return encoded;
}

Bytes name_string(std::string_view name) {
  Bytes encoded;
  if (name.starts_with('\\')) {
    encoded.push_back('\\');
    name.remove_prefix(1);
  }
  MAYFLY_CHECK(!name.empty() && name.size() <= 4, "a name segment has one to four characters");
  MAYFLY_CHECK(name[0] < '0' || name[0] > '9', "a name segment does not start with a digit");
  for (const char c : name) {
    MAYFLY_CHECK((c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_',
                 "a character of a name segment");
    encoded.push_back(static_cast<std::uint8_t>(c));
  }
  encoded.insert(encoded.end(), 4 - name.size(), '_');
  return encoded;
}

Bytes integer(std::uint64_t value) {
  if (value <= 1) {
    return {value == 0 ? kZeroOp : kOneOp};
  }
  Bytes encoded;
  if (value <= 0xff) {
    encoded.push_back(kBytePrefix);
    append_little_endian(encoded, value, 1);
  } else if (value <= 0xffff) {
    encoded.push_back(kWordPrefix);
    append_little_endian(encoded, value, 2);
  } else if (value <= 0xffffffff) {
    encoded.push_back(kDWordPrefix);
    append_little_endian(encoded, value, 4);
  } else {
    encoded.push_back(kQWordPrefix);
    append_little_endian(encoded, value, 8);
  }
  return encoded;
}

Bytes string(std::string_view ascii) {
  Bytes encoded{kStringPrefix};
  for (const char c : ascii) {
    MAYFLY_CHECK(c > 0, "an ASCII character other than NUL");
    encoded.push_back(static_cast<std::uint8_t>(c));
  }
  encoded.push_back(0);
  return encoded;
}

Bytes eisa_id(std::string_view product_id) {
  MAYFLY_CHECK(product_id.size() == 7, "three letters and four digits");
  std::uint32_t id = 0;
  for (const char c : product_id.substr(0, 3)) {
    MAYFLY_CHECK(c >= 'A' && c <= 'Z', "an upper case letter");
    id = id << 5 | static_cast<std::uint32_t>(c - 'A' + 1);
  }
  for (const char c : product_id.substr(3)) {
    id = id << 4 | hex_digit(c);
  }
  // The most significant byte comes first, unlike in any other integer.
  Bytes encoded{kDWordPrefix};
  append_little_endian(encoded, __builtin_bswap32(id), 4);
  return encoded;
}

Bytes name(std::string_view object, const Bytes& value) {
  return join({{kNameOp}, name_string(object), value});
}

Bytes scope(std::string_view object, const Bytes& terms) {
  return with_length({kScopeOp}, join({name_string(object), terms}));
}

Bytes device(std::string_view object, const Bytes& terms) {
  return with_length({kExtOpPrefix, kDeviceOp}, join({name_string(object), terms}));
}

Bytes method(std::string_view object, std::uint8_t argument_count, const Bytes& terms) {
  MAYFLY_CHECK(argument_count <= 7, "a method has up to seven arguments");
  return with_length({kMethodOp}, join({name_string(object), {argument_count}, terms}));
}

Bytes argument(std::uint8_t index) {
  MAYFLY_CHECK(index <= 6, "Arg0 to Arg6");
  return {low_byte(kArg0Op + std::uint32_t{index})};
}

Bytes if_equal(const Bytes& left, const Bytes& right, const Bytes& terms) {
  return with_length({kIfOp}, join({{kLEqualOp}, left, right, terms}));
}

Bytes notify(std::string_view object, std::uint64_t value) {
  return join({{kNotifyOp}, name_string(object), integer(value)});
}

Bytes package(std::initializer_list<Bytes> elements) {
  MAYFLY_CHECK(elements.size() <= 0xff, "a package of up to 255 elements");
  return with_length({kPackageOp}, join({{low_byte(elements.size())}, join(elements)}));
}

// 6.4.3.4, 32-bit Fixed Memory Range Descriptor.
Bytes memory32_fixed(std::uint32_t base, std::uint32_t size) {
  constexpr std::uint8_t kReadWrite = 1;
  Bytes descriptor{0x86, 9, 0, kReadWrite};
  append_little_endian(descriptor, base, 4);
  append_little_endian(descriptor, size, 4);
  return descriptor;
}

// 6.4.2.5, I/O Port Descriptor.
Bytes io_ports(std::uint16_t base, std::uint8_t count) {
  constexpr std::uint8_t kDecode16 = 1;
  constexpr std::uint8_t kAlignment = 1;
  Bytes descriptor{0x47, kDecode16};
  append_little_endian(descriptor, base, 2);  // lowest and ...
  append_little_endian(descriptor, base, 2);  // ... highest base
  descriptor.push_back(kAlignment);
  descriptor.push_back(count);
  return descriptor;
}

// 6.4.3.6, Extended Interrupt Descriptor.
Bytes edge_interrupt(std::uint32_t gsi) {
  constexpr std::uint8_t kConsumer = 1U << 0;
  constexpr std::uint8_t kEdge = 1U << 1;  // bits 2 and 3 clear: active high, exclusive
  Bytes descriptor{0x89, 6, 0, kConsumer | kEdge, 1};
  append_little_endian(descriptor, gsi, 4);
  return descriptor;
}

Bytes resource_template(std::initializer_list<Bytes> descriptors) {
  // 6.4.2.9, End Tag; a checksum of 0 counts as right.
  const Bytes contents = join({join(descriptors), {0x79, 0}});
  return with_length({kBufferOp}, join({integer(contents.size()), contents}));
}

}  // namespace mayfly::x86_64::aml
