#include "mmds/mmds.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "base/text.h"
#include "json/parse_json.h"

namespace mayfly {

using nlohmann::json;

// NOLINTNEXTLINE(bugprone-exception-escape): of json's destructor, which allocates for deep values
struct Mmds::Document {
  explicit Document(json from) : value(std::move(from)), text(value.dump()) {}

  json value;
  std::string text;  // compact
};

namespace {

// Merging and writing a value recurse into its depth: no deeper than this. EC2's metadata has 10 levels.
constexpr int kMaxLevels = 100;

Result<json> parse(std::string_view text) {
  return parse_json(text, "metadata", kMaxLevels);
}

// RFC 7396, section 2.
void merge(json& target, const json& patch) {
  if (!patch.is_object()) {
    target = patch;
    return;
  }
  if (!target.is_object()) {
    target = json::object();
  }
  for (const auto& [key, value] : patch.items()) {
    if (value.is_null()) {
      target.erase(key);
    } else {
      merge(target[key], value);
    }
  }
}

std::optional<unsigned> hex_digit(char character) {
  if (character >= '0' && character <= '9') {
    return static_cast<unsigned>(character - '0');
  }
  const char lower = static_cast<char>(character | 0x20);
  return lower >= 'a' && lower <= 'f' ? std::optional(static_cast<unsigned>(lower - 'a') + 10) : std::nullopt;
}

// A name as it stands in a path. An escape that is none stands for itself.
std::string unescape(std::string_view name) {
  std::string bytes;
  bytes.reserve(name.size());
  for (std::size_t index = 0; index < name.size(); ++index) {
    if (name[index] == '%' && index + 2 < name.size()) {
      const auto high = hex_digit(name[index + 1]);
      const auto low = hex_digit(name[index + 2]);
      if (high && low) {
        bytes += static_cast<char>(*high << 4 | *low);
        index += 2;
        continue;
      }
    }
    bytes += name[index];
  }
  std::string plain;
  plain.reserve(bytes.size());
  for (std::size_t index = 0; index < bytes.size(); ++index) {
    const char next = index + 1 < bytes.size() ? bytes[index + 1] : '\0';
    if (bytes[index] == '~' && (next == '0' || next == '1')) {
      plain += next == '0' ? '~' : '/';
      ++index;
    } else {
      plain += bytes[index];
    }
  }
  return plain;
}

// "2021-03-23", or the oldest version of all.
bool is_version_of_ec2(std::string_view name) {
  constexpr std::string_view kShape = "dddd-dd-dd";
  const auto fits = [](char character, char shape) {
    return shape == 'd' ? character >= '0' && character <= '9' : character == shape;
  };
  return name == "1.0" || (name.size() == kShape.size() && std::ranges::equal(name, kShape, fits));
}

const json* child(const json& value, const std::string& name) {
  if (value.is_object()) {
    const auto found = value.find(name);
    return found == value.end() ? nullptr : &*found;
  }
  if (!value.is_array() || (name.size() > 1 && name.front() == '0')) {
    return nullptr;
  }
  const bool decimal = std::ranges::all_of(name, [](char digit) { return digit >= '0' && digit <= '9'; });
  const auto index = decimal ? parse_integer<std::size_t>(name) : std::nullopt;
  return index && *index < value.size() ? &value[*index] : nullptr;
}

const json* find(const json& root, std::string_view path) {
  const json* place = &root;
  while (place != nullptr && !path.empty()) {
    const std::size_t end = std::min(path.find('/'), path.size());
    if (end != 0) {
      const std::string name = unescape(path.substr(0, end));
      const json* next = child(*place, name);
      if (next == nullptr && place == &root && is_version_of_ec2(name)) {
        next = child(root, "latest");
      }
      place = next;
    }
    path.remove_prefix(std::min(end + 1, path.size()));
  }
  return place;
}

std::optional<std::string> as_text(const json& value) {
  if (value.is_string()) {
    return value.get<std::string>();
  }
  if (!value.is_object()) {
    return std::nullopt;
  }
  std::string list;
  for (const auto& [key, item] : value.items()) {
    list += (list.empty() ? "" : "\n") + key + (item.is_object() ? "/" : "");
  }
  return list;
}

}  // namespace

Mmds::Mmds(std::size_t size_limit, const Clock& clock) : size_limit_(size_limit), clock_(clock) {}

Mmds::~Mmds() = default;

void Mmds::configure(const MmdsConfig& config) {
  const MutexLock lock(mutex_);
  version_ = config.version;
  imds_compat_ = config.imds_compat;
}

MmdsVersion Mmds::version() const {
  const MutexLock lock(mutex_);
  return version_;
}

std::shared_ptr<const Mmds::Document> Mmds::document() const {
  const MutexLock lock(mutex_);
  return document_;
}

Result<void> Mmds::replace(std::shared_ptr<const Document> document) {
  if (document->text.size() > size_limit_) {
    return fail(ErrorCode::kExhausted, "metadata: " + std::to_string(document->text.size()) +
                                           " bytes are more than the limit of " +
                                           std::to_string(size_limit_));
  }
  const MutexLock lock(mutex_);
  document_.swap(document);  // the former value goes after the lock
  return {};
}

Result<void> Mmds::put(std::string_view json_text) {
  MAYFLY_TRY_ASSIGN(json value, parse(json_text));
  auto document = std::make_shared<const Document>(std::move(value));
  const MutexLock lock(writer_);
  return replace(std::move(document));
}

Result<void> Mmds::patch(std::string_view json_text) {
  MAYFLY_TRY_ASSIGN(const json change, parse(json_text));
  const MutexLock lock(writer_);
  const auto former = document();
  if (!former) {
    return fail(ErrorCode::kNotFound, "metadata: there is none yet to be changed; put some first");
  }
  json value = former->value;
  merge(value, change);
  return replace(std::make_shared<const Document>(std::move(value)));
}

Result<std::string> Mmds::get() const {
  const auto current = document();
  if (!current) {
    return fail(ErrorCode::kNotFound, "metadata: there is none yet; put some first");
  }
  return current->text;
}

Mmds::Reading Mmds::read(std::string_view path, Format format) const {
  bool text_only = false;
  {
    const MutexLock lock(mutex_);
    text_only = imds_compat_;
  }
  const auto current = document();
  const json* const value = current ? find(current->value, path) : nullptr;
  if (value == nullptr) {
    return {};
  }
  if (format == Format::kJson && !text_only) {
    return {.status = Reading::Status::kFound, .json = true, .text = value->dump()};
  }
  auto text = as_text(*value);
  if (!text) {
    return {.status = Reading::Status::kNoText};
  }
  return {.status = Reading::Status::kFound, .text = std::move(*text)};
}

Result<std::string> Mmds::make_token(std::uint32_t ttl_seconds) {
  const std::uint64_t now = clock_.monotonic_ns();
  const MutexLock lock(mutex_);
  return tokens_.make(ttl_seconds, now);
}

bool Mmds::use_token(std::string_view token) {
  const std::uint64_t now = clock_.monotonic_ns();
  const MutexLock lock(mutex_);
  return tokens_.use(token, now);
}

}  // namespace mayfly
