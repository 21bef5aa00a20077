// The control API as a part of a running monitor: its socket, and the thread that serves it.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "api/http/http_server.h"
#include "base/result.h"
#include "base/side_thread.h"

namespace mayfly::api {

struct ApiServerConfig {
  std::string socket_path;  // empty: listen() is to say
  HttpLimits limits{};
  // Called on the server's thread before it serves anybody: what it takes away is missing from then on. Where
  // it fails so does the start. May be empty.
  std::function<Result<void>()> confine{};
};

class ApiServer {
 public:
  // Makes the socket and starts the thread, named <program>_api. `handler` is called on it alone, until the
  // end of stop(). Errors: those of UnixListener::bind() and of `confine`; kExhausted where the host has no
  // thread left.
  static Result<std::unique_ptr<ApiServer>> start(const ApiServerConfig& config, HttpHandler handler);
  ApiServer(const ApiServer&) = delete;
  ApiServer& operator=(const ApiServer&) = delete;
  // Stops.
  ~ApiServer();

  // Makes the socket of one that was started without; once. Errors: those of UnixListener::bind().
  Result<void> listen(const std::string& socket_path);

  // Waits for the request under way and ends the thread; removes the socket. Idempotent. What the handler
  // waits for must come.
  void stop();

  // As HttpServer::publish().
  void publish(std::string_view name, std::string_view data) { server_->publish(name, data); }

 private:
  explicit ApiServer(std::unique_ptr<HttpServer> server) : server_(std::move(server)) {}

  std::unique_ptr<HttpServer> server_;
  SideThread thread_;
};

}  // namespace mayfly::api
