#include "api/api_server.h"

#include <utility>

#include "base/log.h"

namespace mayfly::api {

Result<std::unique_ptr<ApiServer>> ApiServer::start(const ApiServerConfig& config, HttpHandler handler) {
  MAYFLY_TRY_ASSIGN(auto http, HttpServer::create(config.limits, "Mayfly API", std::move(handler)));
  std::unique_ptr<ApiServer> server(new ApiServer(std::move(http)));
  const auto serve = [http_server = server->server_.get()] {
    if (const auto ended = http_server->run(); !ended) {
      LOG_ERROR("API: %s", ended.error().message().c_str());
    }
    http_server->close();
  };
  MAYFLY_TRY(server->thread_.start("mayfly_api", config.confine, serve));
  return server;
}

ApiServer::~ApiServer() {
  stop();
}

void ApiServer::stop() {
  server_->stop();
  thread_.stop();
}

}  // namespace mayfly::api
