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
  HttpLimits limits{};
  // Called on the server's thread before it serves anybody: what it takes away is missing from then on. Where
  // it fails nobody is served. May be empty.
  std::function<Result<void>()> confine{};
};

class ApiServer {
 public:
  // Starts the thread, named <program>_api. `handler` is called on it alone, from listen() to the end of
  // stop(). Error kExhausted where the host has no thread left.
  static Result<std::unique_ptr<ApiServer>> start(const ApiServerConfig& config, HttpHandler handler);
  ApiServer(const ApiServer&) = delete;
  ApiServer& operator=(const ApiServer&) = delete;
  // Stops.
  ~ApiServer();

  // Waits until `confine` has been called, and answers its error.
  Result<void> wait_confined() { return thread_.wait_confined(); }

  // Who connects there is served from now on. Once.
  void listen(UnixListener listener) { server_->listen(std::move(listener)); }

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
