#include "api/http/http_codec.h"

#include <httplib.h>
#include <signal.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "base/text.h"

namespace mayfly::api {
namespace {

constexpr std::string_view kJson = "application/json";

// A whole request to read from, an answer to write to; there is no socket.
class MemoryStream final : public httplib::Stream {
 public:
  explicit MemoryStream(std::string_view input) : input_(input) {}

  bool is_readable() const override { return true; }
  bool is_writable() const override { return true; }
  ssize_t read(char* destination, size_t size) override {
    const std::size_t count = std::min(size, input_.size());
    std::memcpy(destination, input_.data(), count);
    input_.remove_prefix(count);
    return static_cast<ssize_t>(count);
  }
  ssize_t write(const char* source, size_t size) override {
    output_.append(source, size);
    return static_cast<ssize_t>(size);
  }
  void get_remote_ip_and_port(std::string& /*ip*/, int& /*port*/) const override {}
  void get_local_ip_and_port(std::string& /*ip*/, int& /*port*/) const override {}
  socket_t socket() const override { return INVALID_SOCKET; }

  std::string take_output() { return std::move(output_); }

 private:
  std::string_view input_;
  std::string output_;
};

HttpResponse internal_error() {
  return HttpCodec::refusal_response({500, "The server failed to answer; its log may say why."});
}

}  // namespace

// Only the library's reading of one request and writing of one answer are used. Every request is answered
// where the library would begin to route it: its routes, its reading of bodies, its threads and its sockets
// never come into play.
class HttpCodec::Library final : public httplib::Server {
 public:
  explicit Library(const std::string& server_name) {
    set_default_headers({{"Server", server_name}});
    set_pre_routing_handler([this](const httplib::Request& request, httplib::Response& response) {
      respond(request, response);
      return HandlerResponse::Handled;
    });
    set_error_handler(
        [this](const httplib::Request&, httplib::Response& response) { return complete_refusal(response); });
    set_post_routing_handler(
        [this](const httplib::Request&, httplib::Response& response) { correct_headers(response); });
  }

  Answer process(const RequestHead& head, std::string body, bool keep_alive, const Responder& responder) {
    head_ = &head;
    body_ = std::move(body);
    keep_alive_ = keep_alive;
    responder_ = &responder;
    responded_ = false;
    streams_ = false;
    MemoryStream stream(head.text);
    bool closed = false;
    if (!process_request(stream, {}, 0, {}, 0, !keep_alive, closed, {})) {
      return {.bytes = {}, .keep_alive = false};
    }
    return {.bytes = stream.take_output(), .keep_alive = keep_alive_};
  }

 private:
  void respond(const httplib::Request& request, httplib::Response& response) {
    responded_ = true;
    HttpRequest plain{.method = request.method,
                      .path = request.target.substr(0, request.target.find('?')),
                      .body = std::move(body_)};
    const Context context{
        .last_event_id = parse_integer<std::uint64_t>(request.get_header_value("Last-Event-ID")).value_or(0)};
    HttpResponse ours = call(std::move(plain), context);
    response.status = ours.status;
    streams_ = ours.stream_events;
    if (streams_) {
      keep_alive_ = false;  // the connection's end is the stream's
      response.set_header("Content-Type", "text/event-stream");
      response.set_header("Cache-Control", "no-store");
    } else if (ours.status != 204 && !ours.body.empty()) {
      response.set_content(std::move(ours.body), ours.content_type);
    }
  }

  HttpResponse call(HttpRequest request, const Context& context) {
    // The library would put an exception's text into a header of the answer.
    try {
      return (*responder_)(std::move(request), context);
    } catch (...) {
      LOG_ERROR_LIMITED("an API request's handler threw an exception");
      return internal_error();
    }
  }

  // The library's own refusals have other statuses than this API's, and no body.
  HandlerResponse complete_refusal(httplib::Response& response) {
    if (responded_) {
      return HandlerResponse::Unhandled;
    }
    keep_alive_ = false;
    HttpResponse ours = refusal_response({400, "The request's method or form is not supported."});
    response.status = ours.status;
    response.set_content(std::move(ours.body), ours.content_type);
    return HandlerResponse::Handled;
  }

  // The library means well: it announces how long it keeps connections, and gives every answer a length.
  void correct_headers(httplib::Response& response) const {
    response.headers.erase("Keep-Alive");
    response.headers.erase("Connection");
    response.headers.erase("Accept-Ranges");
    if (response.status == 204 || streams_) {
      response.headers.erase("Content-Length");
    }
    if (!keep_alive_) {
      response.set_header("Connection", "close");
    } else if (head_->http_1_0) {
      // Its connections end where nobody says otherwise (RFC 9112, C.2.2).
      response.set_header("Connection", "keep-alive");
    }
  }

  // Of the request under way.
  const RequestHead* head_ = nullptr;
  std::string body_;
  const Responder* responder_ = nullptr;
  bool keep_alive_ = false;
  bool responded_ = false;
  bool streams_ = false;
};

HttpCodec::HttpCodec(const std::string& server_name) {
  // The library's constructor ignores SIGPIPE, which is the program's to decide.
  struct sigaction before {};
  ::sigaction(SIGPIPE, nullptr, &before);
  library_ = std::make_unique<Library>(server_name);
  ::sigaction(SIGPIPE, &before, nullptr);
}

HttpCodec::~HttpCodec() = default;

HttpCodec::Answer HttpCodec::answer(const RequestHead& head, std::string body, bool keep_alive,
                                    const Responder& respond) {
  try {
    return library_->process(head, std::move(body), keep_alive, respond);
  } catch (...) {
    LOG_ERROR_LIMITED("an API request could not be answered: the HTTP library threw an exception");
    return {.bytes = {}, .keep_alive = false};
  }
}

std::string HttpCodec::refuse(const Refusal& refusal) {
  RequestHead head;
  head.text = "GET / HTTP/1.1\r\n\r\n";
  return answer(head, {}, false,
                [&refusal](const HttpRequest&, const Context&) { return refusal_response(refusal); })
      .bytes;
}

HttpResponse HttpCodec::refusal_response(const Refusal& refusal) {
  HttpResponse response;
  response.status = refusal.status;
  response.body.append(R"({"fault_message": ")").append(refusal.reason).append(R"("})");
  response.content_type = kJson;
  return response;
}

}  // namespace mayfly::api
