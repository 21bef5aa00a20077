// Strict reading of one JSON object: every field is asked for once, by type, and what was not asked for is
// refused.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace mayfly::api {

// As mayfly::parse_json(), with 32 levels.
Result<nlohmann::json> parse_json(std::string_view text, std::string_view name);

// Reads the fields of one object. Errors accumulate nothing: the first one found is kept and every later read
// does nothing, so that a reader asks for all its fields and checks once, by finish().
class JsonObject {
 public:
  // `value` is borrowed. `path` is what errors call it: "machine-config".
  JsonObject(const nlohmann::json& value, std::string path);

  // Each gives nothing where the field is absent or null. A field of another type, or out of range, is an
  // error.
  std::optional<std::string> string(std::string_view key);
  std::optional<bool> boolean(std::string_view key);
  // Integers must be written as integers; the range is checked before they are narrowed.
  std::optional<std::uint64_t> integer(std::string_view key, std::uint64_t minimum, std::uint64_t maximum);
  // One of `names`: its index.
  std::optional<std::size_t> choice(std::string_view key, std::span<const std::string_view> names);
  // A list of strings. `what` is what errors call them: "ids".
  std::optional<std::vector<std::string>> strings(std::string_view key, std::string_view what);
  // Any value, to be read further.
  const nlohmann::json* value(std::string_view key);
  // Lets `reader` have the value, and what errors are to call it, and puts the result into `target`; without
  // a value that stays as it is. `reader` makes a Result of what the target takes. Its error is given back,
  // not kept: it names the field itself.
  template <typename Reader, typename Target>
  Result<void> read(std::string_view key, Reader reader, Target& target) {
    if (const nlohmann::json* found = value(key)) {
      MAYFLY_TRY_ASSIGN(target, reader(*found, path_ + "." + std::string(key)));
    }
    return {};
  }

  // Records that `key` must be there.
  void require(std::string_view key);
  // Of these, which nobody asks for, the error says that they are a PUT's. The names are static.
  void leave_to_put(std::span<const std::string_view> keys) { put_only_ = keys; }
  // Records an error of the reader's own about `key`.
  void refuse(std::string_view key, std::string_view why);

  // The first error, one that names a field nobody asked for, or one about a missing field.
  Result<void> finish();

 private:
  const nlohmann::json* find(std::string_view key);
  std::optional<std::string> text_of(std::string_view key, const nlohmann::json& value);
  void wrong_type(std::string_view key, std::string_view expected, const nlohmann::json& found);

  const nlohmann::json& value_;
  std::string path_;
  std::set<std::string, std::less<>> known_;
  std::span<const std::string_view> put_only_;
  std::optional<Error> error_;
  std::optional<Error> missing_;  // told last: a field that nobody asked for is likely the one, misspelled
};

}  // namespace mayfly::api
