#include "base/http_text.h"

#include <algorithm>

#include "base/text.h"

namespace mayfly {

std::string_view trim_blanks(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) {
    return {};
  }
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

bool is_http_token(std::string_view text) {
  return !text.empty() && std::ranges::all_of(text, [](char character) {
    const char small = ascii_lower(character);
    return (small >= 'a' && small <= 'z') || (character >= '0' && character <= '9') ||
           std::string_view("!#$%&'*+-.^_`|~").find(character) != std::string_view::npos;
  });
}

bool is_http_field_value(std::string_view text) {
  return std::ranges::all_of(text, [](char character) {
    const auto code = static_cast<unsigned char>(character);
    return code == '\t' || (code >= 0x20 && code != 0x7f);
  });
}

}  // namespace mayfly
