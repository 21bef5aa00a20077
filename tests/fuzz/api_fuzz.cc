// What a client says to the control API: the input is the bytes of requests, through framing, HTTP, routes
// and JSON to the microVM that is put together. What is refused has changed nothing; what is shown can be
// read back.
//
// It stays in a folder of its own: no byte of a body is a slash or a backslash, no tap is opened, no passt
// started, and no guest.
#include <fcntl.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "api/config_file.h"
#include "api/http/http_codec.h"
#include "api/http/request_framing.h"
#include "api/router.h"
#include "base/check.h"
#include "support/fake_event.h"

namespace mayfly::api {
namespace {

constexpr std::size_t kMaxHead = 1024;
constexpr std::size_t kMaxBody = 4096;
constexpr int kMaxRequests = 16;

struct InlineGate final : MonitorGate {
  bool run(const std::function<void()>& task) override {
    task();
    return true;
  }
  bool ending() const override { return false; }
};

// A folder with files that requests may name, in which the process stays.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "mayfly_api_fuzz_XXXXXX").string();
    MAYFLY_CHECK(::mkdtemp(name.data()) != nullptr, "a folder");
    path_ = name;
    MAYFLY_CHECK(::chdir(name.c_str()) == 0, "a folder to be in");
    fill();
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() { std::filesystem::remove_all(path_); }

  // As it was at first.
  void fill() const {
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) {
      std::filesystem::remove_all(entry.path(), ignored);
    }
    for (const char* file : {"k", "d", "e"}) {
      std::ofstream(path_ / file) << std::string(4096, 'x');
    }
  }

 private:
  std::filesystem::path path_;
};

class Session {
 public:
  // How many bytes the request at the beginning of `input` has; 0 where there is no more to read.
  std::size_t serve(std::string_view input) {
    RequestFramer framer(kMaxHead, kMaxBody);
    if (!framer.advance(input) || framer.refusal() ||
        input.size() - framer.head().size < framer.head().body_size) {
      return 0;
    }
    const RequestHead& head = framer.head();
    std::string body(input.substr(head.size, head.body_size));
    for (char& byte : body) {
      byte = byte == '/' || byte == '\\' ? '_' : byte;
    }
    codec_.answer(head, std::move(body), head.keep_alive,
                  [this](const HttpRequest& request, const HttpCodec::Context&) { return answer(request); });
    return head.size + head.body_size;
  }

 private:
  HttpResponse answer(const HttpRequest& request) {
    const bool opens_a_network = request.method == "PUT" && request.path.starts_with("/network-interfaces");
    const bool starts = request.body.find("InstanceStart") != std::string::npos;
    // Of one process there is one log and one metrics file.
    const bool lasts = request.method == "PUT" && (request.path == "/metrics" || request.path == "/logger");
    if (opens_a_network || starts || lasts) {
      return {.status = 204, .body = {}};
    }
    const std::string before = configuration();
    HttpResponse response = router_.handle(request);
    const std::string after = configuration();
    MAYFLY_CHECK(response.status == 200 || response.status == 204 || response.status == 400 ||
                     (response.status == 413 && request.path == "/mmds"),
                 "an answer is one of the dialect's");
    if (response.status == 400 || response.status == 413) {
      MAYFLY_CHECK(response.body.starts_with(R"({"fault_message":")"), "a refusal says why");
      MAYFLY_CHECK(before == after, "a refused call has changed nothing");
    }
    MAYFLY_CHECK(response.status != 204 || response.body.empty(), "204 has no body");
    if (request.method == "GET") {
      MAYFLY_CHECK(before == after, "a GET changes nothing");
    }
    if (after.find(R"("kernel_image_path")") != std::string::npos) {
      const auto read = parse_config_file(after, "shown");
      MAYFLY_CHECK(read.has_value(), "what is shown is a configuration file");
    }
    return response;
  }

  std::string configuration() {
    return router_.handle({.method = "GET", .path = "/vm/config", .body = {}}).body;
  }

  testing::ManualRegistrar registrar_;
  SerialMetrics serial_metrics_;
  InlineGate gate_;
  MicroVm vm_{{.registrar = registrar_,
               .serial_metrics = serial_metrics_,
               .console = {},
               .on_outcome = [](const Outcome&) {}}};
  std::unique_ptr<WorkerThread> files_ = WorkerThread::start("files", {}).value();
  Router router_{
      {.instance_id = "f", .monitor_version = "0"}, gate_, *files_, vm_, std::nullopt, std::nullopt};
  HttpCodec codec_{"F"};
};

}  // namespace
}  // namespace mayfly::api

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const mayfly::api::Folder folder;
  // SAFETY: bytes, seen as characters.
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  {
    mayfly::api::Session session;
    for (int count = 0; count < mayfly::api::kMaxRequests && !rest.empty(); ++count) {
      const std::size_t served = session.serve(rest);
      if (served == 0) {
        break;
      }
      rest.remove_prefix(served);
    }
  }
  folder.fill();
  return 0;
}
