#include "api/api_server.h"

#include <optional>
#include <system_error>
#include <utility>

#include "base/log.h"
#include "base/mutex.h"
#include "base/thread_name.h"

namespace mayfly::api {
namespace {

// What one thread finds out and another waits for.
class Answer {
 public:
  void give(Result<void> result) {
    const MutexLock lock(mutex_);
    result_ = std::move(result);
    given_.notify_all();
  }
  Result<void> wait() {
    const MutexLock lock(mutex_);
    while (!result_) {
      given_.wait(mutex_);
    }
    return *result_;
  }

 private:
  Mutex mutex_;
  CondVar given_;
  std::optional<Result<void>> result_ MAYFLY_GUARDED_BY(mutex_);
};

}  // namespace

Result<std::unique_ptr<ApiServer>> ApiServer::start(const ApiServerConfig& config, HttpHandler handler) {
  MAYFLY_TRY_ASSIGN(auto http, HttpServer::create(config.limits, "Mayfly API", std::move(handler)));
  std::unique_ptr<ApiServer> server(new ApiServer(std::move(http)));
  if (!config.socket_path.empty()) {
    MAYFLY_TRY_ASSIGN(UnixListener listener, UnixListener::bind(config.socket_path));
    server->listen(std::move(listener));
  }
  Answer confined;
  try {
    server->thread_ =
        std::thread([http_server = server->server_.get(), &confined, confine = config.confine]() noexcept {
          set_thread_name("mayfly_api");
          auto done = confine ? confine() : Result<void>();
          const bool serves = done.has_value();
          confined.give(std::move(done));
          if (!serves) {
            return;
          }
          if (const auto ended = http_server->run(); !ended) {
            LOG_ERROR("API: %s", ended.error().message().c_str());
          }
          http_server->close();
        });
  } catch (const std::system_error& error) {
    return fail_errno(error.code().value(), "start the API's thread");
  }
  MAYFLY_TRY(confined.wait());
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
