// HTTP/1.0 and 1.1 on a UNIX socket: requests in, answers out, and streams of events.
//
//   MAYFLY_TRY_ASSIGN(auto listener, UnixListener::bind("/run/vm.sock"));
//   MAYFLY_TRY_ASSIGN(auto server,
//                     HttpServer::create(std::move(listener), HttpLimits{}, "Mayfly API", handler));
//   server->run();  // on the API's thread, until another calls server->stop()
//
// What is no proper HTTP is answered here, with 400, 413 or 503 and {"fault_message": "..."}, or by closing
// the connection. The handler sees every request that is, of any path and of the methods GET, HEAD, POST,
// PUT, DELETE, CONNECT, OPTIONS, TRACE, PRI and PATCH: it refuses those it does not know, and a GET with a
// body.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "api/http/unix_listener.h"
#include "base/clock.h"
#include "base/result.h"
#include "event/event_loop.h"

namespace mayfly::api {

// All of it is the client's, checked for HTTP's form only.
struct HttpRequest {
  std::string method;        // "GET"
  std::string path;          // from its first '/' to the query, as sent: escapes (%41) are not decoded
  std::string body;          // empty where there is none; at most HttpLimits::max_body_bytes
  std::uint64_t ticket = 0;  // for HttpServer::answer(), where the response is to come later
};

struct HttpResponse {
  // 200 to 599. 204 has neither body nor Content-Length, whatever `body` holds.
  int status = 200;
  std::string body{};
  std::string content_type = "application/json";
  // The connection becomes a stream of events (text/event-stream): `status` has to be 200, `body` and
  // `content_type` do not matter. Where HttpLimits::max_streams are open already, the client gets a 503.
  bool stream_events = false;
  // There is none yet: HttpServer::answer() will bring it. Until then other clients are served, and nothing
  // more is read from this one; nothing else here matters.
  bool later = false;
};

// Called on the thread that runs the server, one request at a time: while it works, all other clients wait.
// Must not throw; what it throws all the same becomes a 500 that tells nothing of it.
using HttpHandler = std::function<HttpResponse(const HttpRequest&)>;

struct HttpLimits {
  // A longer body is a 413, decided by its Content-Length before any of it is read.
  std::size_t max_body_bytes = 51200;
  // Request line and headers; a 400. At most 8192.
  std::size_t max_header_bytes = 8192;
  // At one more, the connection that has been without a request for longest is closed; where none is without,
  // the one whose request has been incomplete for longest gets a 503; and where all are being answered or are
  // streams, the new one does.
  std::size_t max_connections = 10;
  // Of these, how many may be streams of events: fewer than max_connections.
  std::size_t max_streams = 4;
  // From the first byte of a request to its last, and for as long again until the answer is read; then the
  // client is dropped. A connection between two requests, and a stream, may be silent for ever.
  std::chrono::milliseconds client_timeout{10'000};
  // A stream whose client leaves more than this unread, beyond what the kernel holds, is dropped. At least
  // 65536: a stream begins with as much.
  std::size_t max_stream_backlog_bytes = 65536;
};

// One thread at a time runs it; stop() and publish() are for any thread.
class HttpServer {
 public:
  // The longest `data` of an event; how many events a new stream gets to see of the past.
  static constexpr std::size_t kMaxEventBytes = 1024;
  static constexpr std::size_t kEventsKept = 32;

  // `name` is the Server header of all answers. Errors: kInvalidArgument for limits that leave no connection
  // for requests, what the host reports otherwise. `clock`, borrowed, tells whose time is over.
  static Result<std::unique_ptr<HttpServer>> create(UnixListener listener, const HttpLimits& limits,
                                                    const std::string& name, HttpHandler handler,
                                                    const Clock& clock = kSystemClock);
  // One without an entrance yet.
  static Result<std::unique_ptr<HttpServer>> create(const HttpLimits& limits, const std::string& name,
                                                    HttpHandler handler, const Clock& clock = kSystemClock);
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;
  // Closes, where nobody did.
  ~HttpServer();

  // The entrance of one that was made without: who connects is served from now on, and its thread hears of
  // what was published. Once. Thread-safe.
  void listen(UnixListener listener);

  // Removes the socket's file and closes all connections. Clients whose request was not answered, and those
  // that wait to be accepted, get a 503 before, as far as their sockets take it at once. After run() and on
  // its thread, the only one that may be allowed to; nothing is served or published any more. Idempotent.
  void close() noexcept;

  // Serves until stop(). The answer to the request under way, and events published before stop(), are written
  // as far as the clients' sockets take them at once. Can be called again then; connections stay open
  // meanwhile. No client can make it block or fail. Errors: only what epoll itself reports (kIo).
  Result<void> run();

  // Makes run() return after the request under way, or at once if it is called only later. Thread-safe,
  // async-signal-safe.
  void stop() noexcept;

  // The answer to the request that had `ticket`, whose response was `later`: once. False where its client has
  // gone, and nobody can be told. On the thread that runs it, and not in the handler's call for that request.
  bool answer(std::uint64_t ticket, HttpResponse response);
  // Whether somebody still waits for it.
  bool is_waiting(std::uint64_t ticket) const;
  // The loop that run() runs, for what else is to be done on its thread. As long as the server lives.
  EventRegistrar& registrar();

  // Sends an event to all streams, those that are opened later included: a new stream begins with the last
  // kEventsKept events, or those of them after the client's Last-Event-ID, and misses none that follows.
  // Events carry ascending ids from 1 on; a gap means events lost. Thread-safe; never blocks on a client or
  // the handler, but the lock of a list. `name` is of a-z 0-9 '-' '_'; `data` is text (a JSON object, by this
  // API's habit) of at most kMaxEventBytes; an event that keeps to neither is left out, and logged.
  void publish(std::string_view name, std::string_view data);

 private:
  class Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace mayfly::api
