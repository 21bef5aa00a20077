#include "api/api_server.h"

#include <system_error>
#include <utility>

#include "base/log.h"
#include "base/thread_name.h"

namespace mayfly::api {

Result<std::unique_ptr<ApiServer>> ApiServer::start(const ApiServerConfig& config, HttpHandler handler) {
  MAYFLY_TRY_ASSIGN(auto http, HttpServer::create(config.limits, "Mayfly API", std::move(handler)));
  std::unique_ptr<ApiServer> server(new ApiServer(std::move(http)));
  try {
    server->thread_ = std::thread([self = server.get(), confine = config.confine] { self->serve(confine); });
  } catch (const std::system_error& error) {
    return fail_errno(error.code().value(), "start the API's thread");
  }
  return server;
}

void ApiServer::serve(const std::function<Result<void>()>& confine) noexcept {
  set_thread_name("mayfly_api");
  auto confined = confine ? confine() : Result<void>();
  const bool fit = confined.has_value();
  {
    const MutexLock lock(mutex_);
    confined_ = std::move(confined);
    changed_.notify_all();
  }
  if (!fit) {
    return;
  }
  if (const auto ended = server_->run(); !ended) {
    LOG_ERROR("API: %s", ended.error().message().c_str());
  }
  server_->close();
}

Result<void> ApiServer::wait_confined() {
  const MutexLock lock(mutex_);
  while (!confined_) {
    changed_.wait(mutex_);
  }
  return *confined_;
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
