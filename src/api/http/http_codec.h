// From a framed request to an answer's bytes: the parser and writer behind it are cpp-httplib's, and no other
// file knows that library.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "api/http/http_server.h"
#include "api/http/request_framing.h"

namespace mayfly::api {

class HttpCodec {
 public:
  // What the server adds to the handler's view of a request.
  struct Context {
    std::uint64_t last_event_id = 0;  // Last-Event-ID, where it is a number
  };
  struct Answer {
    std::string bytes;       // none where even an answer could not be made
    bool keep_alive = true;  // false: it says that the connection is closed after it
  };
  using Responder = std::function<HttpResponse(HttpRequest, const Context&)>;

  // `server_name` is the Server header of all answers.
  explicit HttpCodec(const std::string& server_name);
  HttpCodec(const HttpCodec&) = delete;
  HttpCodec& operator=(const HttpCodec&) = delete;
  ~HttpCodec();

  // The answer to a whole request. Calls `respond` at most once: not for a request that the library does not
  // take although the framing did; where they disagree, the connection is not kept. Nothing that is thrown
  // behind it gets out, neither as an exception nor as text.
  Answer answer(const RequestHead& head, std::string body, bool keep_alive, const Responder& respond);

  // The answer to what is no request, or to one that cannot be served; the connection is closed after it.
  std::string refuse(const Refusal& refusal);

  static HttpResponse refusal_response(const Refusal& refusal);

 private:
  class Library;
  std::unique_ptr<Library> library_;
};

}  // namespace mayfly::api
