// What every reader of HTTP says of characters (RFC 9110), however much more it reads.
#pragma once

#include <string_view>

namespace mayfly {

// Without the blanks and tabs around it (5.6.3: OWS).
std::string_view trim_blanks(std::string_view text);

// 5.6.2: one tchar or more. What a method and a field's name are made of.
bool is_http_token(std::string_view text);

// 5.5: field-value. No control characters but the tab; NUL, CR and LF least of all.
bool is_http_field_value(std::string_view text);

}  // namespace mayfly
