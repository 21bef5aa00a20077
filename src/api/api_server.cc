#include "api/api_server.h"

#include <utility>

#include "base/log.h"

namespace mayfly::api {

Result<std::unique_ptr<ApiServer>> ApiServer::start(const ApiServerConfig& config, HttpHandler handler) {
  MAYFLY_TRY_ASSIGN(auto http, HttpServer::create(config.limits, "Mayfly API", std::move(handler)));
  std::unique_ptr<ApiServer> server(new ApiServer(std::move(http)));
  if (!config.socket_path.empty()) {
    MAYFLY_TRY(server->listen(config.socket_path));
  }
  const auto serve = [http_server = server->server_.get()] {
    if (const auto ended = http_server->run(); !ended) {
      LOG_ERROR("API: %s", ended.error().message().c_str());
    }
    http_server->close();
  };
  MAYFLY_TRY(server->thread_.start("mayfly_api", config.confine, serve));
  MAYFLY_TRY(server->thread_.wait_confined());
  return server;
}

Result<void> ApiServer::listen(const std::string& socket_path) {
  MAYFLY_TRY_ASSIGN(auto listener, UnixListener::bind(socket_path));
  server_->listen(std::move(listener));
  return {};
}

ApiServer::~ApiServer() {
  stop();
}

void ApiServer::stop() {
  server_->stop();
  thread_.stop();
}

}  // namespace mayfly::api
