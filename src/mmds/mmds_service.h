// What a guest's HTTP client is answered.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "mmds/mmds.h"

namespace mayfly {

struct HttpAnswer {
  std::size_t used = 0;  // bytes of the input that were the request: 0 where it is not complete yet
  bool close = false;    // the connection ends with this answer
  std::string bytes{};   // the whole response
};

// Answers the request at the start of `bytes`, if that is complete. `full` says that there will be no more
// bytes, for want of room: then what is not complete is refused. The path, the headers and the methods are
// those of EC2's service in both of its versions: GET reads, PUT /latest/api/token makes a session token.
// Counts what the tokens of reading requests are like.
HttpAnswer answer_guest(Mmds& mmds, std::string_view bytes, bool full);

}  // namespace mayfly
