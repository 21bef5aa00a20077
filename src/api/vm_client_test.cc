#include "api/vm_client.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "api/http/http_server.h"
#include "api/http/unix_listener.h"
#include "support/temp_dir.h"

namespace mayfly::api {
namespace {

// A monitor's stand-in: answers by "METHOD /path body".
class FakeMonitor {
 public:
  using Answers = std::map<std::string, HttpResponse>;

  explicit FakeMonitor(Answers answers)
      : answers_(std::move(answers)),
        server_(HttpServer::create(UnixListener::bind(dir_.file("s")).value(), HttpLimits{}, "Test",
                                   [this](const HttpRequest& request) { return answer(request); })
                    .value()),
        thread_([this] { EXPECT_TRUE(server_->run()); }) {}
  FakeMonitor(const FakeMonitor&) = delete;
  FakeMonitor& operator=(const FakeMonitor&) = delete;
  ~FakeMonitor() {
    server_->stop();
    thread_.join();
  }

  VmClient client() const { return client_of(::getpid()); }
  VmClient client_of(pid_t listener) const {
    return {dir_.file("s"), {.timeout = std::chrono::seconds(60), .listener = listener}};
  }

 private:
  HttpResponse answer(const HttpRequest& request) const {
    const auto found = answers_.find(request.method + " " + request.path + " " + request.body);
    return found == answers_.end()
               ? HttpResponse{.status = 400, .body = R"({"fault_message": "not\u001b now"})"}
               : found->second;
  }

  const testing::TempDir dir_;
  const Answers answers_;
  std::unique_ptr<HttpServer> server_;
  std::thread thread_;
};

HttpResponse ok(std::string body) {
  return {.status = 200, .body = std::move(body)};
}

TEST(VmClient, speaks_to_no_other_process_than_the_wanted_one) {
  const FakeMonitor monitor({{"GET / ", ok(R"({"id": "web", "state": "Paused"})")}});
  EXPECT_EQ(monitor.client().id().value(), "web");
  const auto id = monitor.client_of(::getpid() + 1).id();
  ASSERT_FALSE(id);
  EXPECT_EQ(id.error().message(), "it is the socket of process " + std::to_string(::getpid()));
}

TEST(VmClient, tells_state_vcpus_and_memory) {
  const FakeMonitor monitor({{"GET / ", ok(R"({"id": "web", "state": "Paused", "new": 1})")},
                             {"GET /machine-config ", ok(R"({"vcpu_count": 2, "mem_size_mib": 64})")}});
  const auto status = monitor.client().status();
  ASSERT_TRUE(status) << status.error().message();
  EXPECT_EQ(status->state, "Paused");
  EXPECT_EQ(status->vcpu_count, 2U);
  EXPECT_EQ(status->mem_size_mib, 64U);
}

TEST(VmClient, an_answer_that_is_no_status_is_an_error) {
  const std::string machine = R"({"vcpu_count": 2, "mem_size_mib": 64})";
  for (const auto& [instance, config] : std::map<std::string, std::string>{
           {"", machine},
           {"[]", machine},
           {"{}", machine},
           {R"({"id": "web", "state": 1})", machine},
           {R"({"id": "web", "state": ")" + std::string(65, 'x') + "\"}", machine},
           {R"({"id": "web", "state": "a"})", "{}"},
           {R"({"id": "web", "state": "b"})", R"({"vcpu_count": -1, "mem_size_mib": 1})"},
           {R"({"id": "web", "state": "c"})", R"({"vcpu_count": 1, "mem_size_mib": "1"})"}}) {
    const FakeMonitor monitor({{"GET / ", ok(instance)}, {"GET /machine-config ", ok(config)}});
    EXPECT_FALSE(monitor.client().status()) << instance << config;
  }
}

TEST(VmClient, changes_are_the_apis_own_calls) {
  const HttpResponse done{.status = 204};
  const FakeMonitor monitor({{R"(PATCH /vm {"state": "Paused"})", done},
                             {R"(PATCH /vm {"state": "Resumed"})", done},
                             {R"(PUT /actions {"action_type": "SendCtrlAltDel"})", done}});
  EXPECT_TRUE(monitor.client().pause());
  EXPECT_TRUE(monitor.client().resume());
  EXPECT_TRUE(monitor.client().send_ctrl_alt_del());
}

TEST(VmClient, a_refusal_is_told_in_the_monitors_words) {
  const FakeMonitor monitor({{"GET /metrics ", HttpResponse{.status = 500, .body = "<html>"}}});
  const auto paused = monitor.client().pause();
  ASSERT_FALSE(paused);
  EXPECT_EQ(paused.error().code(), ErrorCode::kUnsupported);
  EXPECT_EQ(paused.error().message(), "not\x1b now");
  EXPECT_EQ(monitor.client().metrics().error().message(), "it answered with HTTP status 500");
}

TEST(VmClient, a_configuration_is_indented_ascii_and_metrics_are_as_they_came) {
  const FakeMonitor monitor({{"GET /vm/config ", ok("{\"drives\":[],\"b\":\"\xc3\xa9\"}")},
                             {"GET /metrics ", ok("# HELP a b\na 1\n")}});
  EXPECT_EQ(monitor.client().configuration().value(), "{\n  \"b\": \"\\u00e9\",\n  \"drives\": []\n}\n");
  EXPECT_EQ(monitor.client().metrics().value(), "# HELP a b\na 1\n");
}

}  // namespace
}  // namespace mayfly::api
