// Values to bytes and back: the one encoding of everything in a snapshot file.
//
//   integer, enumeration   little-endian, as wide as its type
//   bool                   a byte, 0 or 1
//   text                   32-bit length, bytes; none of them NUL
//   list                   32-bit count, elements
//   optional               a byte, 0 or 1; the value where it is 1
//   one of several         a byte that says which, from 0 on; the value
//   array of bytes         the bytes
//   structure              its fields in their order
//   structure of KVM's     32-bit size, the bytes: the kernel's ABI, which does not change
//
// One function, fields(), describes a structure for both directions. It names every field by a structured
// binding, so that a structure with a new field does not compile before its encoding is thought about.
//
// Decoding trusts nothing: no allocation is larger than the bytes that are left allow, every loop ends with
// them, and each value has one encoding only.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace mayfly::snapshot_detail {

using Bytes = std::vector<std::byte>;

// The last enumerator of E: what lies beyond is refused. One for each that is encoded.
template <typename E>
struct LastOf;

// Whether T is a structure of KVM's own, to be kept as it is.
template <typename T>
struct IsKernelStructure : std::false_type {};

template <typename Codec, typename T>
using Coded = std::conditional_t<Codec::kReads, T, const T>;

class Encoder {
 public:
  static constexpr bool kReads = false;

  explicit Encoder(Bytes& out) : out_(out) {}

  template <std::unsigned_integral T>
  void integer(const T& value) {
    for (unsigned shift = 0; shift < 8 * sizeof(T); shift += 8) {
      out_.push_back(static_cast<std::byte>(static_cast<std::uint64_t>(value) >> shift));
    }
  }
  void raw(std::span<const std::byte> bytes) { out_.insert(out_.end(), bytes.begin(), bytes.end()); }

 private:
  Bytes& out_;
};

// Stops at the first thing that is wrong: what is read from then on is zero.
class Decoder {
 public:
  static constexpr bool kReads = true;

  explicit Decoder(std::span<const std::byte> bytes) : bytes_(bytes) {}

  // What was wrong first, as a clause, or nothing.
  const std::optional<std::string>& error() const { return error_; }
  std::size_t remaining() const { return bytes_.size(); }
  void refuse(std::string why) {
    if (!error_) {
      error_ = std::move(why);
      bytes_ = {};
    }
  }

  template <std::unsigned_integral T>
  void integer(T& value) {
    std::array<std::byte, sizeof(T)> bytes{};
    raw(bytes);
    std::uint64_t whole = 0;
    for (std::size_t index = 0; index < bytes.size(); ++index) {
      whole |= static_cast<std::uint64_t>(bytes.at(index)) << (8 * index);
    }
    value = static_cast<T>(whole);
  }
  void raw(std::span<std::byte> bytes) {
    if (bytes.size() > bytes_.size()) {
      refuse("it ends in the middle of a value");
      return;
    }
    std::copy_n(bytes_.begin(), bytes.size(), bytes.begin());
    bytes_ = bytes_.subspan(bytes.size());
  }
  // How many elements follow, each of a byte or more; 0 where there cannot be so many.
  std::uint32_t count() {
    std::uint32_t value = 0;
    integer(value);
    if (value > bytes_.size()) {
      refuse("a list or a text of " + std::to_string(value) + " where " + std::to_string(bytes_.size()) +
             " bytes are left");
      return 0;
    }
    return value;
  }

 private:
  std::span<const std::byte> bytes_;
  std::optional<std::string> error_;
};

template <typename T>
struct IsOptional : std::false_type {};
template <typename T>
struct IsOptional<std::optional<T>> : std::true_type {};
template <typename T>
struct IsVector : std::false_type {};
template <typename T>
struct IsVector<std::vector<T>> : std::true_type {};
template <typename T>
struct IsVariant : std::false_type {};
template <typename... T>
struct IsVariant<std::variant<T...>> : std::true_type {};
template <typename T>
struct IsByteArray : std::false_type {};
template <std::size_t Size>
struct IsByteArray<std::array<std::uint8_t, Size>> : std::true_type {};

template <typename Codec, typename T>
void code(Codec& codec, T& value);

// The fields of a structure, one after the other.
template <typename Codec, typename... T>
void all(Codec& codec, T&... values) {
  (code(codec, values), ...);
}

// A byte that says which of the values 0 to `last`.
template <typename Codec>
std::uint8_t choice(Codec& codec, std::uint8_t chosen, std::uint8_t last, std::string_view what) {
  codec.integer(chosen);
  if constexpr (Codec::kReads) {
    if (chosen > last) {
      codec.refuse("a byte that is " + std::to_string(chosen) + " says " + std::string(what));
      return 0;
    }
  }
  return chosen;
}

template <typename Codec, typename T>
void code_bool(Codec& codec, T& value) {
  [[maybe_unused]] const bool read = choice(codec, value ? 1 : 0, 1, "yes or no") != 0;
  if constexpr (Codec::kReads) {
    value = read;
  }
}

template <typename Codec, typename T>
void code_enum(Codec& codec, T& value) {
  using Enum = std::remove_const_t<T>;
  static_assert(std::is_same_v<std::underlying_type_t<Enum>, std::uint8_t>);
  [[maybe_unused]] const std::uint8_t read =
      choice(codec, static_cast<std::uint8_t>(value), static_cast<std::uint8_t>(LastOf<Enum>::kValue),
             "which of several things");
  if constexpr (Codec::kReads) {
    value = static_cast<Enum>(read);
  }
}

template <typename Codec, typename T>
void code_optional(Codec& codec, T& value) {
  if (choice(codec, value.has_value() ? 1 : 0, 1, "whether a value follows") != 0) {
    if constexpr (Codec::kReads) {
      value.emplace();
    }
    code(codec, *value);
  }
}

template <typename Codec, typename T>
void code_text(Codec& codec, T& value) {
  if constexpr (Codec::kReads) {
    value.resize(codec.count());
    codec.raw(std::as_writable_bytes(std::span(value)));
    if (value.find('\0') != std::string::npos) {
      codec.refuse("a text holds a NUL");
    }
  } else {
    codec.integer(static_cast<std::uint32_t>(value.size()));
    codec.raw(std::as_bytes(std::span(value)));
  }
}

template <typename Codec, typename T>
void code_list(Codec& codec, T& value) {
  if constexpr (Codec::kReads) {
    const std::uint32_t count = codec.count();
    if constexpr (std::is_same_v<typename T::value_type, std::byte>) {
      value.resize(count);
      codec.raw(value);
    } else {
      for (std::uint32_t index = 0; index < count && !codec.error(); ++index) {
        code(codec, value.emplace_back());
      }
    }
  } else {
    codec.integer(static_cast<std::uint32_t>(value.size()));
    if constexpr (std::is_same_v<typename T::value_type, std::byte>) {
      codec.raw(value);
    } else {
      for (const auto& element : value) {
        code(codec, element);
      }
    }
  }
}

template <std::size_t Index, typename Codec, typename T>
void code_alternative(Codec& codec, T& value, std::size_t chosen) {
  if constexpr (Index < std::variant_size_v<std::remove_const_t<T>>) {
    if (Index == chosen) {
      if constexpr (Codec::kReads) {
        value.template emplace<Index>();
      }
      code(codec, std::get<Index>(value));
    } else {
      code_alternative<Index + 1>(codec, value, chosen);
    }
  }
}

template <typename Codec, typename T>
void code_variant(Codec& codec, T& value) {
  const std::uint8_t chosen = choice(codec, static_cast<std::uint8_t>(value.index()),
                                     std::variant_size_v<std::remove_const_t<T>> - 1, "what kind follows");
  code_alternative<0>(codec, value, chosen);
}

template <typename Codec, typename T>
void code_kernel_structure(Codec& codec, T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  auto size = static_cast<std::uint32_t>(sizeof(T));
  codec.integer(size);
  if constexpr (Codec::kReads) {
    if (size != sizeof(T)) {
      codec.refuse("a structure of KVM's has " + std::to_string(size) + " bytes where " +
                   std::to_string(sizeof(T)) + " are right");
      return;
    }
    codec.raw(std::as_writable_bytes(std::span(&value, 1)));
  } else {
    codec.raw(std::as_bytes(std::span(&value, 1)));
  }
}

template <typename Codec, typename T>
void code(Codec& codec, T& value) {
  using Value = std::remove_const_t<T>;
  if constexpr (std::is_same_v<Value, bool>) {
    code_bool(codec, value);
  } else if constexpr (std::is_enum_v<Value>) {
    code_enum(codec, value);
  } else if constexpr (std::unsigned_integral<Value>) {
    codec.integer(value);
  } else if constexpr (std::is_same_v<Value, std::string>) {
    code_text(codec, value);
  } else if constexpr (IsOptional<Value>::value) {
    code_optional(codec, value);
  } else if constexpr (IsVector<Value>::value) {
    code_list(codec, value);
  } else if constexpr (IsVariant<Value>::value) {
    code_variant(codec, value);
  } else if constexpr (IsByteArray<Value>::value) {
    if constexpr (Codec::kReads) {
      codec.raw(std::as_writable_bytes(std::span(value)));
    } else {
      codec.raw(std::as_bytes(std::span(value)));
    }
  } else if constexpr (IsKernelStructure<Value>::value) {
    code_kernel_structure(codec, value);
  } else {
    fields(codec, value);
  }
}

}  // namespace mayfly::snapshot_detail
