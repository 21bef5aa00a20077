#include "api/http/http_client.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "api/http/http_server.h"
#include "api/http/unix_listener.h"
#include "support/temp_dir.h"

namespace mayfly::api {
namespace {

using namespace std::chrono_literals;

// A server of ours on a thread, as long as it lives.
class Served {
 public:
  Served(const std::string& path, HttpHandler handler)
      : server_(HttpServer::create(UnixListener::bind(path).value(), HttpLimits{}, "Test", std::move(handler))
                    .value()),
        thread_([this] { EXPECT_TRUE(server_->run()); }) {}
  Served(const Served&) = delete;
  Served& operator=(const Served&) = delete;
  ~Served() {
    server_->stop();
    thread_.join();
  }

 private:
  std::unique_ptr<HttpServer> server_;
  std::thread thread_;
};

// Says one fixed text to the first client, whatever it asks, and stays connected until the client goes.
class Scripted {
 public:
  Scripted(const std::string& path, std::string text)
      : listener_(UnixListener::bind(path).value()),
        thread_([this, text = std::move(text)] { serve(text); }) {}
  Scripted(const Scripted&) = delete;
  Scripted& operator=(const Scripted&) = delete;
  ~Scripted() {
    ::shutdown(listener_.fd(), SHUT_RDWR);
    thread_.join();
  }

 private:
  void serve(const std::string& text) {
    int fd = -1;
    while (fd < 0) {
      fd = ::accept4(listener_.fd(), nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0 && errno != EAGAIN) {
        return;
      }
      std::this_thread::yield();
    }
    const UniqueFd client(fd);
    ::send(client.get(), text.data(), text.size(), MSG_NOSIGNAL);
    std::array<char, 512> buffer{};
    while (::recv(client.get(), buffer.data(), buffer.size(), 0) > 0) {
    }
  }

  UnixListener listener_;
  std::thread thread_;
};

std::string error_of(const std::string& answer, HttpClientLimits limits) {
  const testing::TempDir dir;
  const Scripted server(dir.file("s"), answer);
  const auto result = HttpClient(dir.file("s"), limits).call("GET", "/");
  return result ? "" : result.error().message();
}

TEST(HttpClient, sends_a_request_and_gives_the_answer) {
  const testing::TempDir dir;
  const Served server(dir.file("s"), [](const HttpRequest& request) {
    return HttpResponse{.status = request.method == "PUT" ? 400 : 200,
                        .body = request.method + " " + request.path + " " + request.body};
  });
  const HttpClient client(dir.file("s"));
  const auto got = client.call("GET", "/a/b");
  ASSERT_TRUE(got) << got.error().message();
  EXPECT_EQ(got->status, 200);
  EXPECT_EQ(got->body, "GET /a/b ");
  const auto refused = client.call("PUT", "/c", "{}");
  ASSERT_TRUE(refused) << refused.error().message();
  EXPECT_EQ(refused->status, 400);
  EXPECT_EQ(refused->body, "PUT /c {}");
}

TEST(HttpClient, an_answer_without_a_body_is_one) {
  const testing::TempDir dir;
  const Served server(dir.file("s"), [](const HttpRequest&) { return HttpResponse{.status = 204}; });
  const auto answer = HttpClient(dir.file("s")).call("PATCH", "/vm", "{}");
  ASSERT_TRUE(answer) << answer.error().message();
  EXPECT_EQ(answer->status, 204);
  EXPECT_EQ(answer->body, "");
}

TEST(HttpClient, a_path_that_is_too_long_for_an_address_leads_to_its_socket_all_the_same) {
  const testing::TempDir dir;
  const Served server(dir.file("s"), [](const HttpRequest&) { return HttpResponse{.status = 204}; });
  const std::string folder = dir.file(std::string(100, 'f'));
  std::filesystem::create_directory_symlink(dir.file(""), folder);
  const auto answer = HttpClient(folder + "/s").call("PATCH", "/vm", "{}");
  ASSERT_TRUE(answer) << answer.error().message();
  EXPECT_EQ(answer->status, 204);
}

TEST(HttpClient, where_nobody_listens_the_hosts_error_says_so) {
  const testing::TempDir dir;
  const auto answer = HttpClient(dir.file("none")).call("GET", "/");
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().os_errno(), ENOENT);
  EXPECT_FALSE(HttpClient("").call("GET", "/"));
  EXPECT_FALSE(HttpClient(std::string(200, 'x')).call("GET", "/"));
}

TEST(HttpClient, a_server_that_says_nothing_or_stops_in_the_middle_is_given_up) {
  const HttpClientLimits limits{.timeout = 50ms};
  for (const char* answer :
       {"", "HTTP/1.1 200 OK\r\nContent-Le", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n12"}) {
    EXPECT_EQ(error_of(answer, limits), "it did not answer in time") << answer;
  }
}

TEST(HttpClient, an_answer_that_is_too_long_or_no_http_is_an_error) {
  const HttpClientLimits limits{.max_body_bytes = 100};
  const std::string ok = "HTTP/1.1 200 OK\r\n";
  for (const std::string& answer :
       {std::string("SSH-2.0-OpenSSH_9.2\r\n"), ok + "Content-Length: 101\r\n\r\n" + std::string(101, 'x'),
        ok + "Content-Length: 18446744073709551615\r\n\r\n" + std::string(101, 'x'),
        ok + "Transfer-Encoding: chunked\r\n\r\n65\r\n" + std::string(101, 'x') + "\r\n0\r\n\r\n",
        ok + "X: " + std::string(70'000, 'x')}) {
    EXPECT_NE(error_of(answer, limits), "") << answer.substr(0, 60);
    EXPECT_NE(error_of(answer, limits), "it did not answer in time") << answer.substr(0, 60);
  }
}

}  // namespace
}  // namespace mayfly::api
