#include "api/api_server.h"

#include <system_error>
#include <utility>

#include "base/log.h"
#include "base/thread_name.h"

namespace mayfly::api {

Result<std::unique_ptr<ApiServer>> ApiServer::start(const ApiServerConfig& config, HttpHandler handler) {
  MAYFLY_TRY_ASSIGN(auto listener, UnixListener::bind(config.socket_path));
  MAYFLY_TRY_ASSIGN(auto http,
                    HttpServer::create(std::move(listener), config.limits, "Mayfly API", std::move(handler)));
  std::unique_ptr<ApiServer> server(new ApiServer(std::move(http)));
  try {
    server->thread_ = std::thread([http_server = server->server_.get()]() noexcept {
      set_thread_name("mayfly_api");
      if (const auto ended = http_server->run(); !ended) {
        LOG_ERROR("API: %s", ended.error().message().c_str());
      }
    });
  } catch (const std::system_error& error) {
    return fail_errno(error.code().value(), "start the API's thread");
  }
  return server;
}

ApiServer::~ApiServer() {
  stop();
}

void ApiServer::stop() {
  server_->stop();
  if (thread_.joinable()) {
    thread_.join();
  }
}

}  // namespace mayfly::api
