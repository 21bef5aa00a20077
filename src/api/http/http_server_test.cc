#include "api/http/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "support/temp_dir.h"

namespace mayfly::api {
namespace {

using namespace std::chrono_literals;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr std::string_view kGet = "GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n";

std::string put(std::string_view path, std::string_view body) {
  return "PUT " + std::string(path) +
         " HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" +
         std::string(body);
}

int status_of(std::string_view answer) {
  return answer.starts_with("HTTP/1.1 ") ? std::atoi(answer.substr(9, 3).data()) : 0;
}

std::string body_of(const std::string& answer) {
  const std::size_t end = answer.find("\r\n\r\n");
  return end == std::string::npos ? std::string() : answer.substr(end + 4);
}

// A client as simple as can be: blocking, with a limit that only a failing test meets.
class Client {
 public:
  explicit Client(const std::string& path) : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof(address.sun_path) - 1);
    const timeval limit{.tv_sec = 60, .tv_usec = 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    // SAFETY: the socket calls take every family's address by this type.
    EXPECT_EQ(::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  }

  // False where the server does not take it all.
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t count = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (count <= 0) {
        return false;
      }
      bytes.remove_prefix(static_cast<std::size_t>(count));
    }
    return true;
  }
  void end_sending() { ::shutdown(fd_.get(), SHUT_WR); }

  // Everything up to the end of the connection; nothing may be left to come after the time limit.
  std::string read_to_end() {
    while (read_more()) {
    }
    return std::exchange(received_, {});
  }

  // Everything up to and with `end`, or what there is where the connection ends before.
  std::string read_until(std::string_view end) {
    std::size_t found = 0;
    while ((found = received_.find(end)) == std::string::npos) {
      if (!read_more()) {
        return std::exchange(received_, {});
      }
    }
    return take(found + end.size());
  }

  // One answer, its body by its Content-Length.
  std::string read_answer() {
    std::string answer = read_until("\r\n\r\n");
    constexpr std::string_view kName = "Content-Length: ";
    const std::size_t length = answer.find(kName);
    if (length == std::string::npos) {
      return answer;
    }
    const auto size = static_cast<std::size_t>(std::atol(answer.c_str() + length + kName.size()));
    while (received_.size() < size && read_more()) {
    }
    return answer + take(size);
  }

  // Of the last reading: 0 where it ended orderly.
  int error() const { return error_; }

  std::string call(std::string_view request) { return send(request) ? read_answer() : std::string(); }

 private:
  bool read_more() {
    std::array<char, 4096> chunk{};
    const ssize_t count = ::recv(fd_.get(), chunk.data(), chunk.size(), 0);
    error_ = count < 0 ? errno : 0;
    EXPECT_NE(error_, EAGAIN) << "the server neither answers nor closes";
    if (count > 0) {
      received_.append(chunk.data(), static_cast<std::size_t>(count));
    }
    return count > 0;
  }
  std::string take(std::size_t size) {
    std::string taken = received_.substr(0, size);
    received_.erase(0, size);
    return taken;
  }

  UniqueFd fd_;
  std::string received_;
  int error_ = 0;
};

// GET: 200 with the path, "/big" with a long body, "/events" a stream; PUT: 204; "/throw" throws; the rest:
// 400 that tells the method, as the server's user would do.
HttpResponse example(const HttpRequest& request) {
  if (request.path == "/throw") {
    throw std::runtime_error("the secret");
  }
  if (request.path == "/events") {
    return {.status = 200, .body = "not seen", .content_type = "not/seen", .stream_events = true};
  }
  if (request.method == "GET") {
    return {.status = 200, .body = request.path == "/big" ? std::string(300'000, 'b') : request.path};
  }
  if (request.method == "PUT") {
    return {.status = 204, .body = "not seen"};
  }
  return {.status = 400, .body = request.method + " " + request.path + " " + request.body};
}

class Server {
 public:
  explicit Server(const HttpLimits& limits = {}, HttpHandler handler = example,
                  const Clock& clock = kSystemClock) {
    auto listener = UnixListener::bind(path());
    EXPECT_TRUE(listener.has_value());
    auto server = HttpServer::create(
        std::move(*listener), limits, "Test API",
        [this, handler = std::move(handler)](const HttpRequest& request) {
          ++calls_;
          return handler(request);
        },
        clock);
    EXPECT_TRUE(server.has_value());
    server_ = std::move(*server);
    thread_ = std::thread([this] { EXPECT_TRUE(server_->run().has_value()); });
  }
  ~Server() {
    server_->stop();
    thread_.join();
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  std::string path() const { return folder_.file("api.sock"); }
  HttpServer& operator*() { return *server_; }
  HttpServer* operator->() { return server_.get(); }
  int calls() const { return calls_; }

 private:
  testing::TempDir folder_;
  std::atomic<int> calls_{0};
  std::unique_ptr<HttpServer> server_;
  std::thread thread_;
};

// Time goes by where a test says so.
std::atomic<std::uint64_t> g_now;
constexpr Clock kTestClock{[]() -> std::uint64_t { return g_now.load(); },
                           []() -> std::uint64_t { return 0; }};
void let_time_go_by(std::chrono::nanoseconds time) {
  g_now += static_cast<std::uint64_t>(time.count());
}

std::size_t open_descriptors() {
  return static_cast<std::size_t>(std::ranges::distance(std::filesystem::directory_iterator("/proc/self/fd"),
                                                        std::filesystem::directory_iterator()));
}

TEST(HttpServer, a_get_is_answered_with_json_and_the_servers_name) {
  Server server;
  const std::string answer = Client(server.path()).call("GET /a%20b?c=d HTTP/1.1\r\nHost: localhost\r\n\r\n");
  EXPECT_THAT(answer, AllOf(StartsWith("HTTP/1.1 200 OK\r\n"), HasSubstr("\r\nContent-Length: 6\r\n"),
                            HasSubstr("\r\nContent-Type: application/json\r\n"),
                            HasSubstr("\r\nServer: Test API\r\n"), EndsWith("\r\n\r\n/a%20b")));
  EXPECT_EQ(std::ranges::count(answer, '\n'), 5) << answer;  // and no header more
}

TEST(HttpServer, a_204_has_neither_body_nor_length_nor_type) {
  Server server;
  Client client(server.path());
  EXPECT_EQ(client.call(put("/x", "{}")), "HTTP/1.1 204 No Content\r\nServer: Test API\r\n\r\n");
  EXPECT_EQ(body_of(client.call(kGet)), "/x");  // nothing is between the answers
}

TEST(HttpServer, an_answer_without_a_body_that_is_no_204_says_so) {
  Server server({}, [](const HttpRequest&) { return HttpResponse{.status = 200}; });
  EXPECT_THAT(Client(server.path()).call(kGet), HasSubstr("Content-Length: 0\r\n"));
}

TEST(HttpServer, any_method_and_path_of_proper_form_reach_the_handler_with_the_body) {
  Server server;
  Client client(server.path());
  for (const std::string method : {"POST", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"}) {
    const std::string answer = client.call(method + " /no/such HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody");
    EXPECT_EQ(status_of(answer), 400);
    EXPECT_EQ(body_of(answer), method + " /no/such body");
  }
}

TEST(HttpServer, the_answer_to_head_has_no_body) {
  Server server;
  Client client(server.path());
  EXPECT_TRUE(client.send("HEAD /x HTTP/1.1\r\n\r\n"));
  EXPECT_EQ(status_of(client.read_until("\r\n\r\n")), 400);
  EXPECT_EQ(status_of(client.call(kGet)), 200);
}

TEST(HttpServer, what_it_does_not_support_in_a_get_is_ignored) {
  Server server;
  Client client(server.path());
  const std::string answer = client.call(
      "GET /x HTTP/1.1\r\nRange: bytes=0-0\r\nAccept-Encoding: gzip, br\r\nUpgrade: h2c\r\n"
      "Connection: Upgrade, HTTP2-Settings\r\nIf-None-Match: *\r\nREMOTE_ADDR: 1.2.3.4\r\n\r\n");
  EXPECT_EQ(status_of(answer), 200);
  EXPECT_EQ(body_of(answer), "/x");
}

TEST(HttpServer, a_connection_is_kept_or_closed_as_the_client_asks) {
  Server server;
  {
    Client client(server.path());
    client.send("GET /x HTTP/1.1\r\nConnection: Close\r\n\r\n");
    EXPECT_THAT(client.read_to_end(), AllOf(HasSubstr("Connection: close\r\n"), EndsWith("/x")));
  }
  {
    Client client(server.path());
    client.send("GET /x HTTP/1.0\r\n\r\n");
    EXPECT_THAT(client.read_to_end(), AllOf(HasSubstr("Connection: close\r\n"), EndsWith("/x")));
  }
  {
    Client client(server.path());
    for (int i = 0; i < 2; ++i) {
      EXPECT_THAT(client.call("GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
                  AllOf(HasSubstr("Connection: keep-alive\r\n"), EndsWith("/x")));
    }
    // The answer to the first request with "close" is the last.
    client.send("PUT /x HTTP/1.1\r\nConnection: close\r\n\r\n" + std::string(kGet));
    EXPECT_THAT(client.read_to_end(), AllOf(StartsWith("HTTP/1.1 204"), Not(HasSubstr("200 OK"))));
  }
}

TEST(HttpServer, a_body_at_the_limit_is_read_and_a_longer_one_refused_before_it_is_sent) {
  Server server;
  EXPECT_EQ(status_of(Client(server.path()).call(put("/x", std::string(51200, 'x')))), 204);
  Client client(server.path());
  client.send("PUT /x HTTP/1.1\r\nContent-Length: 51201\r\n");  // not even the head is complete
  const std::string answer = client.read_to_end();
  EXPECT_EQ(status_of(answer), 413);
  EXPECT_THAT(answer, AllOf(HasSubstr("Connection: close\r\n"), HasSubstr("{\"fault_message\": \""),
                            HasSubstr("51200 bytes at most")));
  EXPECT_EQ(server.calls(), 1);
}

TEST(HttpServer, a_client_that_sends_a_body_too_long_all_the_same_gets_to_see_the_refusal) {
  Server server;
  Client client(server.path());
  EXPECT_TRUE(client.send("PUT /x HTTP/1.1\r\nContent-Length: 700000\r\n\r\n"));
  EXPECT_EQ(status_of(client.read_answer()), 413);
  EXPECT_TRUE(client.send(std::string(700'000, 'x')));
  EXPECT_EQ(client.read_to_end(), "");
}

TEST(HttpServer, a_client_that_goes_on_for_ever_after_its_refusal_is_cut_off) {
  Server server;
  Client client(server.path());
  client.send("nonsense\r\n");
  while (client.send(std::string(65536, 'x'))) {
  }
  EXPECT_EQ(status_of(Client(server.path()).call(kGet)), 200);
}

TEST(HttpServer, a_client_that_expects_100_continue_gets_it_before_the_body_and_once) {
  Server server;
  Client client(server.path());
  const std::string head = "PUT /x HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
  for (int i = 0; i < 2; ++i) {
    client.send(head);
    EXPECT_EQ(client.read_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
    EXPECT_EQ(status_of(client.call("{}")), 204);
  }
  // Who does not wait for it gets the answer alone.
  EXPECT_EQ(status_of(client.call(head + "{}")), 204);
  EXPECT_EQ(
      status_of(client.call("PUT /x HTTP/1.1\r\nContent-Length: 51201\r\nExpect: 100-continue\r\n\r\n")),
      413);
}

TEST(HttpServer, a_request_in_single_bytes_is_answered) {
  Server server;
  Client client(server.path());
  const std::string request = put("/x", "{}");
  for (const char byte : request) {
    ASSERT_TRUE(client.send({&byte, 1}));
  }
  EXPECT_EQ(status_of(client.read_answer()), 204);
}

TEST(HttpServer, pipelined_requests_are_answered_in_order) {
  Server server;
  Client client(server.path());
  constexpr int kCount = 500;
  std::string requests;
  for (int i = 0; i < kCount; ++i) {
    requests += i % 3 == 0 ? put("/x", std::string(static_cast<std::size_t>(i), 'x'))
                           : "GET /" + std::to_string(i) + " HTTP/1.1\r\n\r\n";
  }
  std::thread sender([&] { EXPECT_TRUE(client.send(requests)); });
  for (int i = 0; i < kCount; ++i) {
    const std::string answer = client.read_answer();
    if (i % 3 == 0) {
      EXPECT_EQ(status_of(answer), 204);
    } else {
      EXPECT_EQ(body_of(answer), "/" + std::to_string(i));
    }
  }
  sender.join();
}

TEST(HttpServer, a_client_that_closes_its_side_gets_its_answers_and_the_end) {
  Server server;
  Client client(server.path());
  std::string requests;
  for (int i = 0; i < 20; ++i) {
    requests += kGet;
  }
  client.send(requests);
  client.end_sending();
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(body_of(client.read_answer()), "/x");
  }
  EXPECT_EQ(client.read_to_end(), "");

  Client silent(server.path());
  silent.end_sending();
  EXPECT_EQ(silent.read_to_end(), "");
}

TEST(HttpServer, a_request_that_ends_in_the_middle_is_refused) {
  Server server;
  for (const std::string& part : {std::string("GE"), std::string("GET / HTTP/1.1\r\nHost: x\r\n"),
                                  std::string("PUT / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{")}) {
    Client client(server.path());
    client.send(part);
    client.end_sending();
    EXPECT_EQ(status_of(client.read_to_end()), 400) << part;
  }
  EXPECT_EQ(server.calls(), 0);
}

TEST(HttpServer, a_client_that_is_silent_in_the_middle_is_dropped_while_others_are_served) {
  HttpLimits limits;
  limits.client_timeout = 100ms;
  Server server(limits);
  Client idle(server.path());
  EXPECT_EQ(status_of(idle.call(kGet)), 200);
  Client slow(server.path());
  slow.send("PUT / HTTP/1.1\r\nContent-Le");
  std::atomic<bool> dropped = false;
  std::thread other([&] {
    Client busy(server.path());
    while (!dropped) {
      EXPECT_EQ(status_of(busy.call(kGet)), 200);
    }
  });
  EXPECT_EQ(slow.read_to_end(), "");
  dropped = true;
  other.join();
  // Between two requests there is no limit.
  EXPECT_EQ(status_of(idle.call(kGet)), 200);
}

TEST(HttpServer, a_client_that_drips_its_request_is_dropped) {
  HttpLimits limits;
  limits.client_timeout = 100ms;
  Server server(limits);
  Client client(server.path());
  ASSERT_TRUE(client.send("GET / HTTP/1.1\r\nX: "));
  while (client.send("x")) {
    std::this_thread::sleep_for(10ms);
  }
}

TEST(HttpServer, time_that_the_handler_takes_is_not_the_other_clients) {
  std::promise<void> called;
  std::promise<void> release;
  const HttpLimits limits;
  const auto work = [&](const HttpRequest& request) {
    if (request.path == "/slow") {
      called.set_value();
      release.get_future().wait();
      let_time_go_by(2 * limits.client_timeout);
    }
    return HttpResponse{};
  };
  Server server(limits, work, kTestClock);
  // The head is read before the handler is kept busy: this client's time runs.
  Client other(server.path());
  const std::string body(51200, 'x');
  ASSERT_TRUE(other.send("PUT /x HTTP/1.1\r\nContent-Length: 51200\r\nExpect: 100-continue\r\n\r\n"));
  EXPECT_EQ(other.read_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  Client silent(server.path());
  ASSERT_TRUE(silent.send("PUT /x HTTP/1.1\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n"));
  EXPECT_EQ(silent.read_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  Client slow(server.path());
  ASSERT_TRUE(slow.send("GET /slow HTTP/1.1\r\n\r\n"));
  called.get_future().wait();
  ASSERT_TRUE(other.send(body));
  release.set_value();
  EXPECT_EQ(status_of(slow.read_answer()), 200);
  EXPECT_EQ(status_of(other.read_answer()), 200);
  EXPECT_EQ(silent.read_to_end(), "");
}

// Answers "/later" when "/answer" is asked for, whose own answer says whether there was somebody to tell.
class LateAnswers {
 public:
  // Called on the server's thread.
  HttpResponse operator()(HttpServer& server, const HttpRequest& request) {
    if (request.path == "/later") {
      ticket_ = request.ticket;
      asked_.set_value();
      return {.later = true};
    }
    if (request.path == "/answer") {
      return {.body = server.answer(ticket_, {.body = "late"}) ? "told" : "gone"};
    }
    return example(request);
  }
  void wait_asked() { asked_.get_future().wait(); }

 private:
  std::uint64_t ticket_ = 0;
  std::promise<void> asked_;
};

constexpr std::string_view kLater = "GET /later HTTP/1.1\r\n\r\n";
constexpr std::string_view kAnswer = "GET /answer HTTP/1.1\r\n\r\n";

TEST(HttpServer, an_answer_that_comes_later_holds_up_nobody_and_pipelined_requests_wait_for_it) {
  LateAnswers late;
  Server server({}, [&](const HttpRequest& request) { return late(*server, request); });
  Client slow(server.path());
  ASSERT_TRUE(slow.send("PUT /later HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}GET /next HTTP/1.1\r\n\r\n"));
  late.wait_asked();
  EXPECT_EQ(body_of(Client(server.path()).call(kGet)), "/x");
  EXPECT_EQ(server.calls(), 2);  // "/next" waits
  EXPECT_EQ(body_of(Client(server.path()).call(kAnswer)), "told");
  EXPECT_THAT(slow.read_answer(), AllOf(StartsWith("HTTP/1.1 200 OK\r\n"), EndsWith("\r\n\r\nlate")));
  EXPECT_EQ(body_of(slow.read_answer()), "/next");
  EXPECT_EQ(body_of(Client(server.path()).call(kAnswer)), "gone");  // once
}

TEST(HttpServer, a_client_that_waits_for_an_answer_has_no_limit_and_is_not_sent_away) {
  const HttpLimits limits{.max_connections = 2, .max_streams = 1};
  LateAnswers late;
  Server server(
      limits,
      [&](const HttpRequest& request) {
        let_time_go_by(2 * limits.client_timeout);
        return late(*server, request);
      },
      kTestClock);
  Client slow(server.path());
  ASSERT_TRUE(slow.send(kLater));
  late.wait_asked();
  for (int client = 0; client < 3; ++client) {
    EXPECT_EQ(body_of(Client(server.path()).call(kGet)), "/x");
  }
  Client idle(server.path());
  EXPECT_EQ(body_of(idle.call(kGet)), "/x");
  EXPECT_EQ(body_of(Client(server.path()).call(kAnswer)), "told");
  EXPECT_EQ(body_of(slow.read_answer()), "late");
}

TEST(HttpServer, who_answers_a_client_that_has_gone_is_told_and_its_place_is_free) {
  LateAnswers late;
  const HttpLimits limits{.max_connections = 1, .max_streams = 0};
  Server server(limits, [&](const HttpRequest& request) { return late(*server, request); });
  {
    Client client(server.path());
    ASSERT_TRUE(client.send(kLater));
    late.wait_asked();
  }
  EXPECT_EQ(body_of(Client(server.path()).call(kAnswer)), "gone");
}

TEST(HttpServer, a_client_that_has_closed_its_side_gets_an_answer_that_comes_later_and_the_end) {
  LateAnswers late;
  Server server({}, [&](const HttpRequest& request) { return late(*server, request); });
  Client client(server.path());
  ASSERT_TRUE(client.send(kLater));
  client.end_sending();
  late.wait_asked();
  EXPECT_EQ(body_of(Client(server.path()).call(kAnswer)), "told");
  EXPECT_THAT(client.read_to_end(), EndsWith("\r\n\r\nlate"));
}

TEST(HttpServer, one_that_is_refused_too_late_may_displace_another_whose_time_is_over_too) {
  std::promise<void> called;
  std::promise<void> release;
  const HttpLimits limits;
  const auto work = [&](const HttpRequest& request) {
    if (request.path == "/slow") {
      called.set_value();
      release.get_future().wait();
      let_time_go_by(2 * limits.client_timeout);  // a refused connection lingers for less
    }
    return HttpResponse{};
  };
  Server server(limits, work, kTestClock);
  std::vector<std::unique_ptr<Client>> late;
  for (int i = 0; i < 5; ++i) {
    late.push_back(std::make_unique<Client>(server.path()));
    ASSERT_TRUE(late.back()->send("GET / HT"));
  }
  std::vector<std::unique_ptr<Client>> lingering;
  for (int i = 0; i < 8; ++i) {
    lingering.push_back(std::make_unique<Client>(server.path()));
    EXPECT_EQ(status_of(lingering.back()->call("\n\n\n")), 400);
  }
  Client slow(server.path());
  ASSERT_TRUE(slow.send("GET /slow HTTP/1.1\r\n\r\n"));
  called.get_future().wait();
  // All their times are over before the server looks again; and then there is something to refuse.
  for (const auto& client : late) {
    ASSERT_TRUE(client->send("\n\n\n\n"));
  }
  release.set_value();
  EXPECT_EQ(status_of(slow.read_answer()), 200);
  EXPECT_EQ(status_of(slow.call(kGet)), 200);
}

TEST(HttpServer, the_connection_without_a_request_for_longest_makes_room_for_a_new_one) {
  Server server;
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 10; ++i) {
    clients.push_back(std::make_unique<Client>(server.path()));
    EXPECT_EQ(status_of(clients.back()->call(kGet)), 200);
  }
  EXPECT_EQ(status_of(clients[0]->call(kGet)), 200);
  ASSERT_TRUE(clients[2]->send("GET "));  // has something under way
  Client eleventh(server.path());
  EXPECT_EQ(status_of(eleventh.call(kGet)), 200);
  EXPECT_EQ(clients[1]->read_to_end(), "");
  for (int i : {0, 3, 4, 5, 6, 7, 8, 9}) {
    EXPECT_EQ(status_of(clients[static_cast<std::size_t>(i)]->call(kGet)), 200) << i;
  }
  EXPECT_EQ(body_of(clients[2]->call("/last HTTP/1.1\r\n\r\n")), "/last");
}

TEST(HttpServer, clients_that_begin_requests_and_do_not_go_on_cannot_keep_others_out) {
  Server server({}, example, kTestClock);
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 10; ++i) {
    clients.push_back(std::make_unique<Client>(server.path()));
    ASSERT_TRUE(clients.back()->send("GET /x HTTP/1.1\r\n"));
  }
  for (int i = 0; i < 30; ++i) {
    EXPECT_EQ(status_of(Client(server.path()).call(kGet)), 200);
  }
  // The one that began first had to go, and was told; one was enough.
  const std::string answer = clients[0]->read_to_end();
  EXPECT_EQ(status_of(answer), 503);
  EXPECT_THAT(answer, HasSubstr("{\"fault_message\": \""));
  for (std::size_t i = 1; i < clients.size(); ++i) {
    EXPECT_EQ(status_of(clients[i]->call("\r\n")), 200) << i;
  }
}

TEST(HttpServer, where_all_connections_are_being_answered_the_next_is_told_so) {
  Server server;
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 10; ++i) {
    clients.push_back(std::make_unique<Client>(server.path()));
    ASSERT_TRUE(clients.back()->send("GET /big HTTP/1.1\r\n\r\n"));
    clients.back()->read_until("\r\n\r\n");  // more than the kernel holds is to come
  }
  // Whether or not it has sent its request by then.
  for (int i = 0; i < 30; ++i) {
    Client late(server.path());
    if (i % 2 == 0) {
      late.send(kGet);
    }
    const std::string answer = late.read_to_end();
    EXPECT_EQ(status_of(answer), 503);
    EXPECT_THAT(answer, HasSubstr("{\"fault_message\": \""));
  }
  for (const auto& client : clients) {
    client->send("GET /last HTTP/1.1\r\nConnection: close\r\n\r\n");
    EXPECT_THAT(client->read_to_end(), EndsWith("/last"));
  }
  EXPECT_EQ(server.calls(), 20);
}

TEST(HttpServer, a_client_that_does_not_read_is_answered_no_more_and_dropped_in_the_end) {
  HttpLimits limits;
  limits.client_timeout = 200ms;
  Server server(limits);
  Client deaf(server.path());
  std::thread sender([&] {
    while (deaf.send("GET /big HTTP/1.1\r\n\r\n")) {
    }
  });
  sender.join();  // dropped: the kernel takes no more of it
  EXPECT_LT(server.calls(), 10);
  EXPECT_EQ(status_of(Client(server.path()).call(kGet)), 200);
}

TEST(HttpServer, an_answer_longer_than_the_kernel_holds_arrives_whole) {
  Server server;
  Client client(server.path());
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(body_of(client.call("GET /big HTTP/1.1\r\n\r\n")), std::string(300'000, 'b'));
  }
}

TEST(HttpServer, connections_that_die_at_any_byte_leave_nothing_behind) {
  Server server;
  const std::string request = put("/x", "{}") + "GET /big HTTP/1.1\r\n\r\n";
  EXPECT_EQ(status_of(Client(server.path()).call(kGet)), 200);
  const std::size_t before = open_descriptors();
  for (std::size_t size = 0; size <= request.size(); ++size) {
    Client(server.path()).send(request.substr(0, size));
  }
  // When this one is answered, all that died before it have been accepted; the last may still be noticed.
  int asked = 0;
  do {
    EXPECT_EQ(status_of(Client(server.path()).call(kGet)), 200);
  } while (++asked < 1000 && open_descriptors() > before);
  EXPECT_LE(open_descriptors(), before);
}

TEST(HttpServer, what_the_handler_throws_is_a_500_that_does_not_tell_it) {
  Server server;
  Client client(server.path());
  const std::string answer = client.call("GET /throw HTTP/1.1\r\n\r\n");
  EXPECT_EQ(status_of(answer), 500);
  EXPECT_THAT(answer, AllOf(HasSubstr("{\"fault_message\": \""), Not(HasSubstr("secret")),
                            Not(HasSubstr("EXCEPTION"))));
  EXPECT_EQ(status_of(client.call(kGet)), 200);
}

TEST(HttpServer, a_thousand_calls_on_one_connection_and_on_as_many_leave_no_descriptor) {
  Server server;
  Client client(server.path());
  EXPECT_EQ(status_of(client.call(kGet)), 200);
  const std::size_t before = open_descriptors();
  for (int i = 0; i < 1000; ++i) {
    ASSERT_EQ(status_of(client.call(i % 2 == 0 ? std::string(kGet) : put("/x", "{}"))),
              i % 2 == 0 ? 200 : 204);
  }
  EXPECT_EQ(open_descriptors(), before);
  for (int i = 0; i < 1000; ++i) {
    Client one(server.path());
    ASSERT_EQ(status_of(one.call("GET /x HTTP/1.1\r\nConnection: close\r\n\r\n")), 200);
    EXPECT_EQ(one.read_to_end(), "");
  }
  EXPECT_EQ(status_of(client.call(kGet)), 200);
  EXPECT_EQ(open_descriptors(), before);
}

TEST(HttpServer, without_descriptors_it_serves_who_is_there_and_later_who_waited) {
  Server server;
  Client client(server.path());
  EXPECT_EQ(status_of(client.call(std::string(kGet) + "GET /x HTTP/1.1\r\n")), 200);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  {
    Client waiting(server.path());
    // Below what is open already: nothing more can be opened. What is open stays.
    rlimit none = before;
    none.rlim_cur = 3;
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
    EXPECT_TRUE(waiting.send(kGet));
    // One request after the other: never without one.
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(status_of(client.call("\r\nGET /x HTTP/1.1\r\n")), 200);
    }
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
    EXPECT_EQ(status_of(waiting.read_answer()), 200);
  }
}

TEST(HttpServer, stops_from_any_thread_keeps_connections_and_runs_again) {
  testing::TempDir folder;
  auto listener = UnixListener::bind(folder.file("s"));
  ASSERT_TRUE(listener.has_value());
  auto server = HttpServer::create(std::move(*listener), {}, "Test API", example);
  ASSERT_TRUE(server.has_value());
  Client client(folder.file("s"));  // waits to be accepted
  for (int i = 0; i < 3; ++i) {
    std::thread runner([&] { EXPECT_TRUE((*server)->run().has_value()); });
    EXPECT_EQ(status_of(client.call(kGet)), 200);
    (*server)->stop();
    runner.join();
  }
  server->reset();
  EXPECT_EQ(client.read_to_end(), "");
  EXPECT_FALSE(std::filesystem::exists(folder.file("s")));
}

TEST(HttpServer, at_its_end_whoever_has_asked_or_waits_is_told_so) {
  testing::TempDir folder;
  auto server = HttpServer::create(UnixListener::bind(folder.file("s")).value(), {}, "Test API", example);
  ASSERT_TRUE(server.has_value());
  Client idle(folder.file("s"));
  Client asking(folder.file("s"));
  Client begun(folder.file("s"));
  std::thread runner([&] { EXPECT_TRUE((*server)->run().has_value()); });
  const std::string expecting = "PUT /x HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
  EXPECT_EQ(status_of(idle.call(kGet)), 200);
  EXPECT_EQ(status_of(asking.call(kGet)), 200);
  EXPECT_EQ(status_of(begun.call(expecting)), 100);
  (*server)->stop();
  runner.join();
  ASSERT_TRUE(asking.send(kGet));
  std::vector<std::unique_ptr<Client>> waiting;
  for (int i = 0; i < UnixListener::kBacklog; ++i) {
    waiting.push_back(std::make_unique<Client>(folder.file("s")));
    ASSERT_TRUE(i % 2 == 0 || waiting.back()->send(put("/x", std::string(51200, 'x'))));
  }
  server->reset();
  EXPECT_FALSE(std::filesystem::exists(folder.file("s")));
  EXPECT_EQ(idle.read_to_end(), "");
  waiting.push_back(std::make_unique<Client>(std::move(asking)));
  waiting.push_back(std::make_unique<Client>(std::move(begun)));
  for (const auto& client : waiting) {
    const std::string answer = client->read_to_end();
    EXPECT_EQ(status_of(answer), 503);
    EXPECT_THAT(answer, AllOf(HasSubstr("Connection: close\r\n"), HasSubstr("{\"fault_message\": \"")));
    EXPECT_EQ(client->error(), 0) << "the connection was reset";
  }
}

TEST(HttpServer, limits_that_leave_no_connection_for_requests_are_refused) {
  testing::TempDir folder;
  const auto refused = [&](auto change) {
    HttpLimits limits;
    change(limits);
    auto listener = UnixListener::bind(folder.file("s"));
    return HttpServer::create(std::move(*listener), limits, "Test API", example).error().code() ==
           ErrorCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused([](HttpLimits& limits) { limits.max_connections = limits.max_streams; }));
  EXPECT_TRUE(refused([](HttpLimits& limits) { limits.max_connections = limits.max_streams = 0; }));
  EXPECT_TRUE(refused([](HttpLimits& limits) { limits.max_header_bytes = 8193; }));
  EXPECT_TRUE(refused([](HttpLimits& limits) { limits.max_stream_backlog_bytes = 65535; }));
}

// Malformed requests: each gets a 400, a 413 or the end of its connection; none reaches the handler.
struct Malformed {
  std::string_view why;
  std::string request;
};

std::vector<Malformed> malformed_requests() {
  const auto get = [](const std::string& headers) { return "GET / HTTP/1.1\r\n" + headers + "\r\n\r\n"; };
  const auto with_body = [](const std::string& headers) {
    return "PUT / HTTP/1.1\r\nHost: x\r\n" + headers + "\r\n\r\n{}";
  };
  std::vector<Malformed> all = {
      {"an empty line first", "\r\nGET / HTTP/1.1\r\n\r\n"},
      {"empty lines only", "\r\n\r\n"},
      {"a line feed alone", "\n"},
      {"NUL bytes", std::string(20, '\0') + "\r\n\r\n"},
      {"TLS", std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x0a\x0d\x0a", 14)},
      {"a word", "hello\r\n\r\n"},
      {"HTTP/0.9", "GET /\r\n\r\n"},
      {"HTTP/2's preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
      {"HTTP/2.0", "GET / HTTP/2.0\r\n\r\n"},
      {"HTTP/1.2", "GET / HTTP/1.2\r\n\r\n"},
      {"HTTP/1", "GET / HTTP/1\r\n\r\n"},
      {"HTTP/1.10", "GET / HTTP/1.10\r\n\r\n"},
      {"HTTP/01.1", "GET / HTTP/01.1\r\n\r\n"},
      {"http/1.1", "GET / http/1.1\r\n\r\n"},
      {"a version with a space behind", "GET / HTTP/1.1 \r\n\r\n"},
      {"another protocol", "GET / RTSP/1.0\r\n\r\n"},
      {"no path", "GET HTTP/1.1\r\n\r\n"},
      {"no path, two spaces", "GET  HTTP/1.1\r\n\r\n"},
      {"two spaces before the path", "GET  / HTTP/1.1\r\n\r\n"},
      {"two spaces behind the path", "GET /  HTTP/1.1\r\n\r\n"},
      {"tabs between the words", "GET\t/\tHTTP/1.1\r\n\r\n"},
      {"a space first", " GET / HTTP/1.1\r\n\r\n"},
      {"a path with a space", "GET /a b HTTP/1.1\r\n\r\n"},
      {"a path without a slash", "GET x HTTP/1.1\r\n\r\n"},
      {"a whole URL", "GET http://localhost/ HTTP/1.1\r\n\r\n"},
      {"an asterisk", "OPTIONS * HTTP/1.1\r\n\r\n"},
      {"an authority", "CONNECT localhost:80 HTTP/1.1\r\n\r\n"},
      {"a fragment", "GET /#a HTTP/1.1\r\n\r\n"},
      {"a path with NUL", std::string("GET /\0 HTTP/1.1\r\n\r\n", 19)},
      {"a path with a tab", "GET /\t HTTP/1.1\r\n\r\n"},
      {"a path with a carriage return", "GET /\r HTTP/1.1\r\n\r\n"},
      {"a path with DEL", "GET /\x7f HTTP/1.1\r\n\r\n"},
      {"a path not in ASCII", "GET /\xc3\xa4 HTTP/1.1\r\n\r\n"},
      {"no method", " / HTTP/1.1\r\n\r\n"},
      {"an unknown method", "BREW / HTTP/1.1\r\n\r\n"},
      {"a method in lower case", "get / HTTP/1.1\r\n\r\n"},
      {"a method with brackets", "G(E)T / HTTP/1.1\r\n\r\n"},
      {"a method with NUL", std::string("GE\0T / HTTP/1.1\r\n\r\n", 19)},
      {"a method without end", std::string(9000, 'A')},
      {"a path without end", "GET /" + std::string(9000, 'a')},
      {"a path too long", "GET /" + std::string(9000, 'a') + " HTTP/1.1\r\n\r\n"},
      {"lines that end with LF", "GET / HTTP/1.1\nHost: x\n\n"},
      {"a header that ends with LF", "GET / HTTP/1.1\r\nHost: x\n\r\n"},
      {"an end of LF LF", "GET / HTTP/1.1\r\nHost: x\r\n\n"},
      {"a lone CR in a header", get("X: a\rContent-Length: 5")},
      {"CR CR LF", "GET / HTTP/1.1\r\r\n\r\n"},
      {"a header without a colon", get("Host")},
      {"a header without a name", get(": x")},
      {"a space before the colon", get("Host : x")},
      {"a tab before the colon", get("Content-Length\t: 0")},
      {"a space before the name", get(" Host: x")},
      {"a line that continues another", get("X: a\r\n b")},
      {"a line that continues with a tab", get("X: a\r\n\tContent-Length: 5")},
      {"a name with a bracket", get("X[]: a")},
      {"a name with NUL", get(std::string("X\0: a", 5))},
      {"a name not in ASCII", get("\xc3\xa4: a")},
      {"a value with NUL", get(std::string("X: \0", 4))},
      {"a value with a control character", get("X: \x01")},
      {"a value with DEL", get("X: \x7f")},
      {"a value with an escape sequence", get("X: \x1b[2J")},
      {"two hosts", get("Host: a\r\nhost: b")},
      {"a header too long", get("X: " + std::string(9000, 'a'))},
      {"a header without end", "GET / HTTP/1.1\r\nX: " + std::string(9000, 'a')},
      {"chunks", with_body("Transfer-Encoding: chunked")},
      {"chunks and a length", with_body("Content-Length: 2\r\nTransfer-Encoding: chunked")},
      {"a length and chunks", with_body("Transfer-Encoding: chunked\r\nContent-Length: 2")},
      {"a transfer encoding of none", with_body("Transfer-Encoding: identity")},
      {"a transfer encoding of nothing", with_body("Transfer-Encoding:")},
      {"a transfer encoding in another case", with_body("tRANSFER-eNCODING: xchunked")},
      {"two lengths that agree", with_body("Content-Length: 2\r\nContent-Length: 2")},
      {"two lengths that do not", with_body("Content-Length: 2\r\ncontent-length: 0")},
      {"a list of lengths", with_body("Content-Length: 2, 2")},
      {"a length of nothing", with_body("Content-Length:")},
      {"a length of a space", with_body("Content-Length:  ")},
      {"a negative length", with_body("Content-Length: -2")},
      {"a length with a plus", with_body("Content-Length: +2")},
      {"a hexadecimal length", with_body("Content-Length: 0x2")},
      {"a length with a point", with_body("Content-Length: 2.0")},
      {"a length with an exponent", with_body("Content-Length: 2e0")},
      {"a length in two words", with_body("Content-Length: 2 2")},
      {"a length with a letter", with_body("Content-Length: 2a")},
      {"a length in words", with_body("Content-Length: two")},
      {"a length in other digits", with_body("Content-Length: \xd9\xa2")},
      {"a length in quotes", with_body("Content-Length: \"2\"")},
      {"a length one above the limit", with_body("Content-Length: 51201")},
      {"a length above 32 bits", with_body("Content-Length: 4294967298")},
      {"a length above 64 bits", with_body("Content-Length: 18446744073709551618")},
      {"a length of a thousand digits", with_body("Content-Length: " + std::string(1000, '9'))},
      {"an unknown expectation", with_body("Expect: 200-maybe\r\nContent-Length: 2")},
      {"an expectation of nothing", with_body("Expect:\r\nContent-Length: 2")},
      {"a head that does not end", "GET / HTTP/1.1\r\nHost: x\r\n"},
      {"a body that does not come", "PUT / HTTP/1.1\r\nContent-Length: 50000\r\n\r\n{}"},
      {"half a word", "G"},
  };
  std::string many = "GET / HTTP/1.1\r\n";
  for (int i = 0; i < 100; ++i) {
    many += "X: y\r\n";
  }
  all.push_back({"a hundred headers", many + "\r\n"});
  return all;
}

TEST(HttpServer, malformed_requests_are_refused_and_the_server_goes_on) {
  Server server;
  const std::vector<Malformed> all = malformed_requests();
  EXPECT_GE(all.size(), 60U);
  int calls = 0;
  for (const auto& [why, request] : all) {
    Client client(server.path());
    // A request of good form behind it must not be taken for one: nothing after a refusal is trusted.
    if (client.send(request)) {
      client.end_sending();
    }
    const std::string answer = client.read_to_end();
    EXPECT_THAT(status_of(answer), AnyOf(400, 413, 0)) << why << ": " << answer;
    if (!answer.empty()) {
      EXPECT_THAT(answer,
                  AllOf(HasSubstr("Content-Type: application/json\r\n"), HasSubstr("Server: Test API"),
                        HasSubstr("\r\n\r\n{\"fault_message\": \""), EndsWith("\"}")))
          << why;
      EXPECT_EQ(answer.find("Server:"), answer.rfind("Server:"))
          << why << ": more than one answer: " << answer;
    }
    EXPECT_EQ(server.calls(), calls) << why;
    EXPECT_EQ(status_of(Client(server.path()).call(kGet)), 200) << why;
    ++calls;
  }
}

TEST(HttpServer, a_request_smuggled_behind_a_malformed_one_is_not_read) {
  Server server;
  for (const auto& [why, request] : malformed_requests()) {
    if (request.ends_with("\r\n\r\n") || request.ends_with("{}")) {
      Client client(server.path());
      client.send(request + "PUT /smuggled HTTP/1.1\r\nConnection: close\r\n\r\n");
      client.end_sending();
      EXPECT_THAT(client.read_to_end(), Not(HasSubstr("204"))) << why;
    }
  }
}

TEST(HttpServer, a_stream_begins_with_the_past_and_goes_on_with_what_happens) {
  Server server;
  server->publish("starting", R"({"a": 1})");
  Client early(server.path());
  early.send("GET /events HTTP/1.1\r\nHost: x\r\n\r\n");
  const std::string head = early.read_until("\r\n\r\n");
  EXPECT_THAT(head, AllOf(StartsWith("HTTP/1.1 200 OK\r\n"), HasSubstr("Content-Type: text/event-stream\r\n"),
                          HasSubstr("Cache-Control: no-store\r\n"), HasSubstr("Connection: close\r\n"),
                          Not(HasSubstr("Content-Length"))));
  EXPECT_EQ(early.read_until("\n\n"), "id: 1\nevent: starting\ndata: {\"a\": 1}\n\n");
  server->publish("running", "{}");
  EXPECT_EQ(early.read_until("\n\n"), "id: 2\nevent: running\ndata: {}\n\n");
  server->publish("paused", "{}");
  EXPECT_EQ(early.read_until("\n\n"), "id: 3\nevent: paused\ndata: {}\n\n");

  Client late(server.path());
  late.send("GET /events HTTP/1.0\r\nLast-Event-ID: 2\r\n\r\n");
  late.read_until("\r\n\r\n");
  EXPECT_EQ(late.read_until("\n\n"), "id: 3\nevent: paused\ndata: {}\n\n");
  server->publish("resumed", "{}");
  EXPECT_EQ(late.read_until("\n\n"), "id: 4\nevent: resumed\ndata: {}\n\n");
  EXPECT_EQ(early.read_until("\n\n"), "id: 4\nevent: resumed\ndata: {}\n\n");
}

TEST(HttpServer, events_from_before_there_is_an_entrance_and_after_reach_a_stream_in_order) {
  const testing::TempDir folder;
  const auto made = HttpServer::create({}, "Test API", example);
  ASSERT_TRUE(made.has_value());
  HttpServer& server = **made;
  std::thread thread([&server] { EXPECT_TRUE(server.run().has_value()); });
  server.publish("starting", "{}");
  server.publish("running", "{}");
  auto listener = UnixListener::bind(folder.file("api.sock"));
  ASSERT_TRUE(listener.has_value());
  server.listen(std::move(*listener));
  Client client(folder.file("api.sock"));
  client.send("GET /events HTTP/1.1\r\nHost: x\r\n\r\n");
  client.read_until("\r\n\r\n");
  EXPECT_EQ(client.read_until("\n\n"), "id: 1\nevent: starting\ndata: {}\n\n");
  EXPECT_EQ(client.read_until("\n\n"), "id: 2\nevent: running\ndata: {}\n\n");
  server.publish("paused", "{}");
  EXPECT_EQ(client.read_until("\n\n"), "id: 3\nevent: paused\ndata: {}\n\n");
  server.stop();
  thread.join();
}

TEST(HttpServer, events_from_many_threads_reach_a_stream_in_the_order_of_their_ids) {
  Server server;
  Client client(server.path());
  client.send("GET /events HTTP/1.1\r\n\r\n");
  client.read_until("\r\n\r\n");
  constexpr int kThreads = 4;
  constexpr int kEach = 40;  // all together fewer than may wait
  std::vector<std::thread> publishers;
  publishers.reserve(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    publishers.emplace_back([&] {
      for (int k = 0; k < kEach; ++k) {
        server->publish("tick", "x");
      }
    });
  }
  for (int id = 1; id <= kThreads * kEach; ++id) {
    ASSERT_THAT(client.read_until("\n\n"), StartsWith("id: " + std::to_string(id) + "\n"));
  }
  for (std::thread& publisher : publishers) {
    publisher.join();
  }
}

TEST(HttpServer, streams_leave_connections_for_requests) {
  Server server;
  std::vector<std::unique_ptr<Client>> streams;
  for (int i = 0; i < 4; ++i) {
    streams.push_back(std::make_unique<Client>(server.path()));
    streams.back()->send("GET /events HTTP/1.1\r\n\r\n");
    EXPECT_EQ(status_of(streams.back()->read_until("\r\n\r\n")), 200);
  }
  Client fifth(server.path());
  EXPECT_EQ(status_of(fifth.call("GET /events HTTP/1.1\r\n\r\n")), 503);
  EXPECT_EQ(status_of(fifth.call(kGet)), 200);  // an ordinary connection as before
  // Idle connections make room, streams do not.
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(status_of(Client(server.path()).call(kGet)), 200);
  }
  server->publish("still", "here");
  for (const auto& stream : streams) {
    EXPECT_THAT(stream->read_until("\n\n"), HasSubstr("event: still"));
  }
  // One that ends makes room for another. It may take the server a moment to see it.
  streams.pop_back();
  std::string answer;
  do {
    answer = Client(server.path()).call("GET /events HTTP/1.1\r\nConnection: close\r\n\r\n");
  } while (status_of(answer) == 503);
  EXPECT_EQ(status_of(answer), 200);
}

TEST(HttpServer, what_a_stream_client_says_is_not_listened_to) {
  Server server;
  Client client(server.path());
  client.send("GET /events HTTP/1.1\r\n\r\n" + std::string(kGet));
  client.read_until("\r\n\r\n");
  EXPECT_TRUE(client.send(kGet));
  EXPECT_EQ(status_of(Client(server.path()).call(kGet)), 200);
  server->publish("next", "");
  EXPECT_THAT(client.read_until("\n\n"), StartsWith("id: 1\n"));
  EXPECT_EQ(server.calls(), 2);
}

TEST(HttpServer, a_client_that_has_closed_its_side_gets_the_events_there_are) {
  Server server;
  server->publish("only", "one");
  Client client(server.path());
  client.end_sending();
  EXPECT_EQ(client.read_to_end(), "");
  Client asking(server.path());
  asking.send("GET /events HTTP/1.1\r\n\r\n");
  asking.end_sending();
  EXPECT_THAT(asking.read_to_end(), EndsWith("id: 1\nevent: only\ndata: one\n\n"));
}

TEST(HttpServer, a_stream_that_is_not_read_is_dropped_and_the_others_go_on) {
  Server server;
  Client deaf(server.path());
  deaf.send("GET /events HTTP/1.1\r\n\r\n");
  deaf.read_until("\r\n\r\n");
  Client attentive(server.path());
  attentive.send("GET /events HTTP/1.1\r\n\r\n");
  attentive.read_until("\r\n\r\n");
  const std::string data(HttpServer::kMaxEventBytes, 'x');
  constexpr int kCount = 2000;  // far more than kernel and backlog hold
  for (int id = 1; id <= kCount; ++id) {
    server->publish("tick", data);
    ASSERT_THAT(attentive.read_until("\n\n"), StartsWith("id: " + std::to_string(id) + "\n"));
  }
  EXPECT_LT(deaf.read_to_end().size(), data.size() * kCount / 2);
}

TEST(HttpServer, an_event_that_is_too_long_or_misnamed_is_left_out) {
  Server server;
  Client client(server.path());
  client.send("GET /events HTTP/1.1\r\n\r\n");
  client.read_until("\r\n\r\n");
  server->publish("long", std::string(HttpServer::kMaxEventBytes + 1, 'x'));
  server->publish("two words", "");
  server->publish("fine", std::string(HttpServer::kMaxEventBytes, 'x'));
  EXPECT_THAT(client.read_until("\n\n"), StartsWith("id: 1\nevent: fine\n"));
}

}  // namespace
}  // namespace mayfly::api
