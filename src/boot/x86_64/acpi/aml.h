// ACPI Machine Language, as much of it as a table of a microVM's devices takes.
//
// Each function gives the bytes of one object or term; they nest by passing one's bytes to another. The
// section numbers are those of the ACPI specification 6.5. Names are ours, never a guest's: one that is not
// well-formed is a broken invariant.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <vector>

namespace mayfly::x86_64::aml {

using Bytes = std::vector<std::uint8_t>;

Bytes join(std::initializer_list<Bytes> terms);

// 20.2.4: the encoding of the length of a package with `content` bytes after the length itself. At most
// 2^28 - 5 bytes of content.
Bytes pkg_length(std::size_t content);

// 20.2.2: a name of one segment (1 to 4 of A-Z, 0-9 and _, not starting with a digit), padded to four
// characters; a leading backslash starts at the root.
Bytes name_string(std::string_view name);

// 20.2.3: constants.
Bytes integer(std::uint64_t value);          // in its shortest form
Bytes string(std::string_view ascii);        // without a NUL in it
Bytes eisa_id(std::string_view product_id);  // "PNP0501": 19.3.4, three letters and four hex digits

// 20.2.5.1, 20.2.5.2: named objects and scopes.
Bytes name(std::string_view object, const Bytes& value);
Bytes scope(std::string_view object, const Bytes& terms);
Bytes device(std::string_view object, const Bytes& terms);
Bytes method(std::string_view object, std::uint8_t argument_count, const Bytes& terms);  // not serialized

// 20.2.5.3, 20.2.5.4: the few statements and operators that a method here uses.
Bytes argument(std::uint8_t index);  // Arg0 .. Arg6
Bytes if_equal(const Bytes& left, const Bytes& right, const Bytes& terms);
Bytes notify(std::string_view object, std::uint64_t value);

Bytes package(std::initializer_list<Bytes> elements);

// 6.4: resource descriptors, and the buffer that _CRS is made of.
Bytes memory32_fixed(std::uint32_t base, std::uint32_t size);  // read-write
Bytes io_ports(std::uint16_t base, std::uint8_t count);        // fixed, all 16 address bits decoded
Bytes edge_interrupt(std::uint32_t gsi);                       // active high, exclusive
Bytes resource_template(std::initializer_list<Bytes> descriptors);

}  // namespace mayfly::x86_64::aml
