#include "api/http/http_server.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <map>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "api/http/event_log.h"
#include "api/http/http_codec.h"
#include "api/http/request_framing.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mutex.h"
#include "event/event_loop.h"

namespace mayfly::api {
namespace {

using Time = std::chrono::nanoseconds;  // of the server's clock
using Id = std::uint64_t;

constexpr std::size_t kReadChunk = 16384;
// How many requests of one client are answered before the others have their turn.
constexpr int kRequestsPerTurn = 4;
// A connection that is closed with an error is read from for a while: a client that is still sending would
// get an error from its own socket before it sees the answer. These do not count as connections.
constexpr std::size_t kMaxLingering = 8;
constexpr std::size_t kMaxLingerBytes = 1 << 20;
constexpr std::chrono::milliseconds kLingerTime{1'000};
// How long accepting pauses where the process has no descriptors left.
constexpr std::chrono::milliseconds kAcceptPause{100};

constexpr std::size_t kMaxHeaderBytes = 8192;  // what the parser takes for one line
constexpr std::size_t kMinStreamBacklog = 65536;
// What is left of a stream's head and an event's text besides its data.
static_assert(HttpServer::kEventsKept * (HttpServer::kMaxEventBytes + EventLog::kMaxName + 64) <
                  kMinStreamBacklog,
              "a stream's beginning fits into its backlog");

constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";

enum class Stage : std::uint8_t {
  kRequests,   // reads requests, answers them
  kStreaming,  // sends events; what the client says is not listened to
  kLingering,  // has sent its last; waits for the client to go
};

struct Connection {
  explicit Connection(const HttpLimits& limits) : framer(limits.max_header_bytes, limits.max_body_bytes) {}

  bool has_output() const { return sent < output.size(); }
  // Between two requests, all answered.
  bool is_idle() const { return stage == Stage::kRequests && input.empty() && !has_output(); }
  // In the middle of a request: the client has to go on.
  bool is_unfinished() const {
    return stage == Stage::kRequests && !input.empty() && !has_output() && !last && !resuming && !waiting;
  }

  UniqueFd fd;
  std::unique_ptr<Watch> watch;  // after fd: goes first
  Stage stage = Stage::kRequests;
  RequestFramer framer;
  bool framed = false;     // the head of the request under way is whole
  bool continued = false;  // its client was told to send the body
  bool ended = false;      // the client sends nothing more
  bool last = false;       // closed once the output is sent
  bool refused = false;    // and before that lingers: what the client says is not read as requests any more
  bool resuming = false;   // a task is posted to go on with input that is there
  bool waiting = false;    // for the answer to the request that its input begins with
  std::optional<Interest> interest = Interest::kReadable;  // what is watched for
  std::string input;
  std::string output;
  std::size_t sent = 0;
  std::size_t lingered = 0;
  Time active{};  // the last time something happened
  std::optional<Time> deadline;
};

}  // namespace

class HttpServer::Impl {
 public:
  Impl(const HttpLimits& limits, const std::string& name, HttpHandler handler, const Clock& clock)
      : limits_(limits),
        handler_(std::move(handler)),
        clock_(clock),
        codec_(name),
        events_(kMaxEventBytes, kEventsKept) {}
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() { close(); }

  Result<void> start() {
    MAYFLY_TRY_ASSIGN(loop_, EventLoop::create());
    MAYFLY_TRY_ASSIGN(timer_, loop_->make_timer([this] { on_timer(); }));
    return {};
  }

  // Thread that runs it, or before it runs.
  Result<void> listen(UnixListener listener) {
    listener_ = std::move(listener);
    can_have_streams_ = true;
    MAYFLY_TRY_ASSIGN(accept_watch_,
                      loop_->watch(listener_->fd(), Interest::kReadable, [this](Readiness) { on_accept(); }));
    return {};
  }
  void listen_soon(UnixListener listener) {
    {
      const MutexLock lock(mutex_);
      coming_ = std::move(listener);
    }
    can_have_streams_ = true;  // before the task: an event that comes before is delivered by it
    loop_->post([this] {
      deliver_events();
      if (auto come = take_coming()) {
        if (const auto done = listen(std::move(*come)); !done) {
          LOG_ERROR("API: %s", done.error().message().c_str());
        }
      }
    });
  }
  std::optional<UnixListener> take_coming() {
    const MutexLock lock(mutex_);
    return std::exchange(coming_, std::nullopt);
  }

  Result<void> run() {
    auto result = loop_->run();
    deliver_events();  // those that were published just before it was stopped
    return result;
  }
  void stop() { loop_->stop(); }
  void close() {
    if (!std::exchange(is_closed_, true)) {
      say_goodbye();
      connections_.clear();
      take_coming();  // the loop has ended before it took that
    }
  }

  bool answer(std::uint64_t ticket, HttpResponse response);
  bool is_waiting(std::uint64_t ticket) const {
    const auto found = connections_.find(ticket);
    return found != connections_.end() && found->second.waiting;
  }
  EventRegistrar& registrar() { return *loop_; }

  void publish(std::string_view name, std::string_view data) {
    switch (events_.add(name, data)) {
      case EventLog::Added::kRefused:
        LOG_ERROR_LIMITED("an event is left out: its name or its data of %zu bytes is not allowed",
                          data.size());
        return;
      case EventLog::Added::kFirst:
        // As long as nobody can listen, the thread is let sleep.
        if (can_have_streams_) {
          loop_->post([this] { deliver_events(); });
        }
        return;
      case EventLog::Added::kBehindOthers:
        return;
    }
  }

 private:
  // Connections by number, which is never used twice: ids order them by age.
  using Connections = std::map<Id, Connection>;

  std::size_t count(Stage stage) const {
    return static_cast<std::size_t>(std::ranges::count_if(
        connections_, [stage](const auto& entry) { return entry.second.stage == stage; }));
  }
  Time now() const { return Time(clock_.monotonic_ns()); }
  std::size_t serving() const { return connections_.size() - count(Stage::kLingering); }

  void on_accept();
  void open(UniqueFd fd);
  bool close_longest_idle();
  bool refuse_longest_unfinished();
  void pause_accepting();

  // Of these, a false says that the connection has to be closed.
  bool advance(Id id, Connection& connection, Readiness ready);
  bool receive(Connection& connection, bool& got_more);
  bool serve(Id id, Connection& connection);
  bool flush(Connection& connection);
  bool settle(Connection& connection);

  void on_ready(Id id, Readiness ready);
  // Whether there is something new to send; more input is needed where not.
  bool serve_one(Id id, Connection& connection);
  // Of the request that its input begins with.
  void answer(Id id, Connection& connection);
  void answer_by(Connection& connection, const HttpCodec::Responder& responder);
  HttpResponse respond(Id id, Connection& connection, HttpRequest request, HttpCodec::Context context);
  void refuse(Connection& connection, const Refusal& refusal);
  void send(Connection& connection, std::string_view bytes);
  void resume_later(Id id, Connection& connection);
  void linger(Connection& connection);
  void watch_for_what_matters(Connection& connection);
  void deliver_events();
  // At the end of every callback.
  void look_at_the_clock();
  void on_timer();
  void last_look(Id id, Time time);
  void arm_timer();
  void close(Id id);
  void say_goodbye();
  std::size_t drain(int fd);

  Mutex mutex_;                                                   // a leaf
  std::optional<UnixListener> coming_ MAYFLY_GUARDED_BY(mutex_);  // from listen_soon() to the loop
  std::optional<UnixListener> listener_;                          // none: nobody can connect yet
  std::atomic<bool> can_have_streams_{false};
  const HttpLimits limits_;
  HttpHandler handler_;
  const Clock& clock_;
  HttpCodec codec_;
  EventLog events_;
  std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<EventRegistrar::Timer> timer_;  // of the loop, as are all below: they go first
  std::unique_ptr<Watch> accept_watch_;
  std::optional<Time> accept_again_;  // while accepting pauses
  std::optional<Time> armed_;         // when the timer fires
  Connections connections_;
  Id next_id_ = 1;
  bool is_closed_ = false;
  std::array<char, kReadChunk> chunk_{};
};

void HttpServer::Impl::on_accept() {
  UniqueFd fd(::accept4(listener_->fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (fd) {
    open(std::move(fd));
    look_at_the_clock();
    return;
  }
  // Of a client that has gone meanwhile there is nothing to do.
  const bool exhausted = errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS;
  if (exhausted && !close_longest_idle()) {
    LOG_WARN_LIMITED(
        "the API cannot accept a connection: the process or the host is out of descriptors or memory");
    pause_accepting();
    look_at_the_clock();
  }
}

// The listener stays readable, and would keep the loop busy.
void HttpServer::Impl::pause_accepting() {
  accept_again_ = now() + kAcceptPause;
  [[maybe_unused]] const auto paused = accept_watch_->update(Interest::kReadable, false);
}

void HttpServer::Impl::open(UniqueFd fd) {
  // A client between two requests has to expect its connection's end (RFC 9112, 9.5), and comes back at once;
  // one that asks for its first time would have to know how to wait. And a request arrives at once from who
  // means it: clients that begin some and do not go on could keep all others out. So the newest client is
  // served as long as one of the others is not owed an answer.
  const bool served =
      serving() < limits_.max_connections || close_longest_idle() || refuse_longest_unfinished();
  const Id id = next_id_++;
  Connection& connection = connections_.try_emplace(id, limits_).first->second;
  connection.fd = std::move(fd);
  connection.active = now();
  auto watched = loop_->watch(connection.fd.get(), Interest::kReadable,
                              [this, id](Readiness ready) { on_ready(id, ready); });
  if (!watched) {
    LOG_WARN_LIMITED("an API connection is closed: %s", watched.error().message().c_str());
    close(id);
    return;
  }
  connection.watch = std::move(*watched);
  if (!served) {
    refuse(connection, {503, "All connections of this server are in use."});
    if (!flush(connection) || !settle(connection)) {
      close(id);
    }
  }
}

bool HttpServer::Impl::close_longest_idle() {
  auto longest = connections_.end();
  for (auto it = connections_.begin(); it != connections_.end(); ++it) {
    if (!it->second.is_idle() ||
        (longest != connections_.end() && longest->second.active <= it->second.active)) {
      continue;
    }
    // A request may have arrived that was not read yet.
    char first = 0;
    if (::recv(it->second.fd.get(), &first, 1, MSG_PEEK | MSG_DONTWAIT) <= 0) {
      longest = it;
    }
  }
  if (longest == connections_.end()) {
    return false;
  }
  close(longest->first);
  return true;
}

// Of those whose request is not whole. By its first byte: drops that come later buy no time.
bool HttpServer::Impl::refuse_longest_unfinished() {
  auto longest = connections_.end();
  for (auto it = connections_.begin(); it != connections_.end(); ++it) {
    if (it->second.is_unfinished() &&
        (longest == connections_.end() || it->second.deadline < longest->second.deadline)) {
      longest = it;
    }
  }
  if (longest == connections_.end()) {
    return false;
  }
  const Id id = longest->first;
  refuse(longest->second, {503, "The request was not whole when another client needed the connection."});
  if (!flush(longest->second) || !settle(longest->second)) {
    close(id);
  }
  return true;
}

void HttpServer::Impl::on_ready(Id id, Readiness ready) {
  const auto found = connections_.find(id);
  if (found == connections_.end()) {
    return;
  }
  if (!advance(id, found->second, ready)) {
    close(id);
  }
  look_at_the_clock();
}

bool HttpServer::Impl::advance(Id id, Connection& connection, Readiness ready) {
  if (ready.writable && !flush(connection)) {
    return false;
  }
  if (ready.hung_up && (connection.has_output() || connection.waiting)) {
    return false;  // nobody is left to read it
  }
  bool got_more = false;
  if ((ready.readable || ready.hung_up) && !receive(connection, got_more)) {
    return false;
  }
  return serve(id, connection) && settle(connection);
}

bool HttpServer::Impl::receive(Connection& connection, bool& got_more) {
  const ssize_t count = ::recv(connection.fd.get(), chunk_.data(), chunk_.size(), 0);
  if (count < 0) {
    return errno == EAGAIN || errno == EINTR;
  }
  const auto size = static_cast<std::size_t>(count);
  got_more = size > 0;
  connection.active = now();
  switch (connection.stage) {
    case Stage::kRequests:
      connection.ended = size == 0;
      connection.input.append(chunk_.data(), size);
      return true;
    case Stage::kStreaming:
      return size > 0;
    case Stage::kLingering:
      connection.lingered += size;
      return size > 0 && connection.lingered <= kMaxLingerBytes;
  }
  return false;
}

bool HttpServer::Impl::serve(Id id, Connection& connection) {
  // The next request is looked at when the answer to the last is sent: a client that does not read is not
  // answered more.
  for (int turn = 0; connection.stage == Stage::kRequests && !connection.last && !connection.resuming &&
                     !connection.waiting && !connection.has_output();
       ++turn) {
    if (turn == kRequestsPerTurn) {
      resume_later(id, connection);
      break;
    }
    if (!serve_one(id, connection)) {
      if (!connection.ended) {
        break;
      }
      if (connection.input.empty()) {
        return false;
      }
      refuse(connection, {400, "The request ends in the middle."});
    }
    if (!flush(connection)) {
      return false;
    }
  }
  return true;
}

bool HttpServer::Impl::serve_one(Id id, Connection& connection) {
  if (!connection.framed) {
    if (connection.input.empty()) {
      return false;
    }
    connection.framed = connection.framer.advance(connection.input);
    if (connection.framer.refusal()) {
      refuse(connection, *connection.framer.refusal());
      return true;
    }
    if (!connection.framed) {
      return false;
    }
  }
  const RequestHead& head = connection.framer.head();
  if (connection.input.size() - head.size >= head.body_size) {
    answer(id, connection);
    return true;
  }
  if (head.expects_continue && !connection.continued && connection.input.size() == head.size) {
    connection.continued = true;
    send(connection, kContinue);
    return true;
  }
  return false;
}

void HttpServer::Impl::answer(Id id, Connection& connection) {
  answer_by(connection, [this, id, &connection](HttpRequest request, HttpCodec::Context context) {
    return respond(id, connection, std::move(request), context);
  });
}

bool HttpServer::Impl::answer(std::uint64_t ticket, HttpResponse response) {
  const auto found = connections_.find(ticket);
  if (found == connections_.end() || !found->second.waiting) {
    return false;
  }
  Connection& connection = found->second;
  connection.waiting = false;
  answer_by(connection, [&response](const HttpRequest&, const HttpCodec::Context&) { return response; });
  const bool told = flush(connection);
  if (!told || !serve(ticket, connection) || !settle(connection)) {
    close(ticket);
  }
  arm_timer();  // and no more: a handler may be at work for one whose time is over
  return told;
}

void HttpServer::Impl::answer_by(Connection& connection, const HttpCodec::Responder& responder) {
  const RequestHead& head = connection.framer.head();
  const HttpCodec::Answer answer =
      codec_.answer(head, connection.input.substr(head.size, head.body_size), head.keep_alive, responder);
  if (connection.waiting) {
    return;  // the request stays: it will be gone through once more
  }
  connection.input.erase(0, head.size + head.body_size);
  if (connection.input.empty()) {
    connection.input = std::string();  // its memory as well
  }
  connection.framer.reset();
  connection.framed = false;
  connection.continued = false;
  // A stream's first events come after the head that announces them, and its connection stays.
  const std::string events = std::exchange(connection.output, {});
  if (answer.bytes.empty() || (connection.stage == Stage::kRequests && !answer.keep_alive)) {
    connection.last = true;
  }
  if (!answer.bytes.empty()) {
    send(connection, answer.bytes + events);
  }
}

HttpResponse HttpServer::Impl::respond(Id id, Connection& connection, HttpRequest request,
                                       HttpCodec::Context context) {
  request.ticket = id;
  HttpResponse response = handler_(request);
  connection.waiting = response.later;
  if (!response.stream_events) {
    return response;
  }
  if (count(Stage::kStreaming) >= limits_.max_streams) {
    return HttpCodec::refusal_response({503, "All event streams of this server are in use."});
  }
  // Who has closed its side gets what there is.
  connection.last = connection.ended;
  connection.stage = connection.ended ? Stage::kRequests : Stage::kStreaming;
  connection.output = events_.after(context.last_event_id);
  return response;
}

void HttpServer::Impl::refuse(Connection& connection, const Refusal& refusal) {
  connection.last = true;
  connection.refused = true;
  send(connection, codec_.refuse(refusal));
}

void HttpServer::Impl::send(Connection& connection, std::string_view bytes) {
  connection.output.append(bytes);
  connection.deadline.reset();
}

bool HttpServer::Impl::flush(Connection& connection) {
  while (connection.has_output()) {
    const ssize_t count =
        send_at_once(connection.fd.get(), std::string_view(connection.output).substr(connection.sent));
    if (count < 0) {
      if (errno == EINTR) {
        continue;
      }
      return errno == EAGAIN;
    }
    connection.sent += static_cast<std::size_t>(count);
    connection.active = now();
    connection.deadline.reset();
  }
  connection.output = std::string();  // its memory as well
  connection.sent = 0;
  return true;
}

// What follows from what has happened: whether the connection goes on, what is waited for, and until when.
bool HttpServer::Impl::settle(Connection& connection) {
  if (connection.last && !connection.has_output() && connection.stage != Stage::kLingering) {
    if (!connection.refused || connection.ended) {
      return false;
    }
    linger(connection);
  }
  const bool under_way = connection.stage == Stage::kRequests && !connection.is_idle() && !connection.waiting;
  if (connection.stage == Stage::kLingering || under_way) {
    if (!connection.deadline) {
      connection.deadline = now() + (under_way ? limits_.client_timeout : kLingerTime);
    }
  } else {
    connection.deadline.reset();
  }
  watch_for_what_matters(connection);
  return true;
}

void HttpServer::Impl::watch_for_what_matters(Connection& connection) {
  const bool writes = connection.has_output();
  const bool reads = connection.stage != Stage::kRequests ||
                     !(writes || connection.ended || connection.last || connection.resuming);
  std::optional<Interest> interest;
  if (connection.waiting) {
    interest = Interest::kHangUp;
  } else if (reads) {
    interest = writes ? Interest::kReadableAndWritable : Interest::kReadable;
  } else if (writes) {
    interest = Interest::kWritable;
  }
  if (interest != connection.interest) {
    // Cannot fail for a descriptor that epoll has taken before.
    [[maybe_unused]] const auto updated =
        connection.watch->update(interest.value_or(Interest::kReadable), interest.has_value());
    connection.interest = interest;
  }
}

void HttpServer::Impl::linger(Connection& connection) {
  if (count(Stage::kLingering) >= kMaxLingering) {
    const auto oldest = std::ranges::find_if(
        connections_, [](const auto& entry) { return entry.second.stage == Stage::kLingering; });
    close(oldest->first);
  }
  connection.stage = Stage::kLingering;
  connection.input = {};
  connection.deadline.reset();
  // The client sees the end of the answer now. It fails where the client is gone, which the next read tells.
  ::shutdown(connection.fd.get(), SHUT_WR);
}

void HttpServer::Impl::resume_later(Id id, Connection& connection) {
  if (connection.input.empty()) {
    return;
  }
  connection.resuming = true;
  loop_->post([this, id] {
    const auto found = connections_.find(id);
    if (found != connections_.end()) {
      found->second.resuming = false;
      on_ready(id, {});
    }
  });
}

void HttpServer::Impl::deliver_events() {
  const std::vector<StreamEvent> events = events_.take_pending();
  std::vector<Id> streams;
  for (const auto& [id, connection] : connections_) {
    if (connection.stage == Stage::kStreaming) {
      streams.push_back(id);
    }
  }
  for (const Id id : streams) {
    const auto found = connections_.find(id);
    if (found == connections_.end()) {
      continue;
    }
    Connection& connection = found->second;
    for (const StreamEvent& event : events) {
      connection.output += event.text;
    }
    const bool open = flush(connection);
    const bool keeps_up = connection.output.size() - connection.sent <= limits_.max_stream_backlog_bytes;
    if (!keeps_up) {
      LOG_WARN_LIMITED("an event stream is closed: its client does not read it");
    }
    if (!open || !keeps_up || !settle(connection)) {
      close(id);
    }
  }
}

// A handler may have worked for longer than the timer had: what is over is not left to another event's turn.
void HttpServer::Impl::look_at_the_clock() {
  if (armed_ && *armed_ <= now()) {
    on_timer();
  } else {
    arm_timer();
  }
}

void HttpServer::Impl::on_timer() {
  armed_.reset();
  const Time time = now();
  if (accept_again_ && *accept_again_ <= time) {
    accept_again_.reset();
    [[maybe_unused]] const auto resumed = accept_watch_->update(Interest::kReadable, true);
  }
  std::vector<Id> expired;
  for (const auto& [id, connection] : connections_) {
    if (connection.deadline && *connection.deadline <= time) {
      expired.push_back(id);
    }
  }
  for (const Id id : expired) {
    // One that lingers may have made room for one before it in this list.
    if (connections_.contains(id)) {
      last_look(id, time);
    }
  }
  arm_timer();
}

// A handler may have kept this thread for longer than the client had: what arrived meanwhile arrived in time.
void HttpServer::Impl::last_look(Id id, Time time) {
  Connection& connection = connections_.at(id);
  bool open = flush(connection);
  bool got_more = connection.stage == Stage::kRequests && !connection.has_output() && !connection.ended;
  while (open && got_more && connection.deadline && *connection.deadline <= time) {
    got_more = false;
    open = receive(connection, got_more) && serve(id, connection);
  }
  const bool expired = connection.deadline && *connection.deadline <= time;
  if (!open || expired || !settle(connection)) {
    close(id);
  }
}

void HttpServer::Impl::arm_timer() {
  std::optional<Time> next = accept_again_;
  for (const auto& [id, connection] : connections_) {
    if (connection.deadline && (!next || *connection.deadline < *next)) {
      next = connection.deadline;
    }
  }
  // One that is armed too early finds nothing to do and is armed again.
  if (next && (!armed_ || *next < *armed_)) {
    armed_ = next;
    // Fails for no descriptor of its own that is a timer's.
    [[maybe_unused]] const auto started = timer_->start(*next - now());
  }
}

void HttpServer::Impl::close(Id id) {
  connections_.erase(id);
  // There is a descriptor again.
  if (accept_again_) {
    accept_again_.reset();
    [[maybe_unused]] const auto resumed = accept_watch_->update(Interest::kReadable, true);
  }
}

// Who has asked is told that there will be no answer, and who waits to be accepted. All without waiting: what
// a client sends later finds no server, which is true.
void HttpServer::Impl::say_goodbye() {
  const std::string goodbye = codec_.refuse({503, "This server is ending."});
  const auto tell = [&goodbye](int fd) {
    // A client that is gone, or that has not read what was sent before, goes without.
    [[maybe_unused]] const ssize_t sent = send_at_once(fd, goodbye);
  };
  for (auto& [id, connection] : connections_) {
    // Also where nothing is said: a socket that is closed before all is read makes its client's next call an
    // error, in place of the answer's end.
    const bool has_asked = drain(connection.fd.get()) > 0 || !connection.input.empty();
    if (has_asked && connection.stage == Stage::kRequests && !connection.has_output() && !connection.last) {
      tell(connection.fd.get());
    }
  }
  if (!listener_) {
    return;
  }
  listener_->close_entrance();
  for (int waiting = 0; waiting <= UnixListener::kBacklog; ++waiting) {
    const UniqueFd fd(::accept4(listener_->fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd) {
      return;
    }
    drain(fd.get());
    tell(fd.get());
  }
}

// How many bytes there were; of a client that goes on and on only so many are read.
std::size_t HttpServer::Impl::drain(int fd) {
  std::size_t total = 0;
  while (total <= kMaxLingerBytes) {
    const ssize_t count = ::recv(fd, chunk_.data(), chunk_.size(), MSG_DONTWAIT);
    if (count <= 0) {
      break;
    }
    total += static_cast<std::size_t>(count);
  }
  return total;
}

Result<std::unique_ptr<HttpServer>> HttpServer::create(UnixListener listener, const HttpLimits& limits,
                                                       const std::string& name, HttpHandler handler,
                                                       const Clock& clock) {
  MAYFLY_TRY_ASSIGN(auto server, create(limits, name, std::move(handler), clock));
  MAYFLY_TRY(server->impl_->listen(std::move(listener)));
  return server;
}

void HttpServer::listen(UnixListener listener) {
  impl_->listen_soon(std::move(listener));
}

Result<std::unique_ptr<HttpServer>> HttpServer::create(const HttpLimits& limits, const std::string& name,
                                                       HttpHandler handler, const Clock& clock) {
  if (limits.max_connections == 0 || limits.max_streams >= limits.max_connections) {
    return fail(ErrorCode::kInvalidArgument, "API server: its streams leave no connection for requests");
  }
  if (limits.max_header_bytes > kMaxHeaderBytes) {
    return fail(ErrorCode::kInvalidArgument,
                "API server: a request's headers are limited to 8192 bytes at most");
  }
  if (limits.max_stream_backlog_bytes < kMinStreamBacklog) {
    return fail(ErrorCode::kInvalidArgument, "API server: a stream's backlog is at least 65536 bytes");
  }
  auto impl = std::make_unique<Impl>(limits, name, std::move(handler), clock);
  MAYFLY_TRY(impl->start());
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;

Result<void> HttpServer::run() {
  return impl_->run();
}
void HttpServer::stop() noexcept {
  impl_->stop();
}
void HttpServer::close() noexcept {
  impl_->close();
}
bool HttpServer::answer(std::uint64_t ticket, HttpResponse response) {
  return impl_->answer(ticket, std::move(response));
}
bool HttpServer::is_waiting(std::uint64_t ticket) const {
  return impl_->is_waiting(ticket);
}
EventRegistrar& HttpServer::registrar() {
  return impl_->registrar();
}
void HttpServer::publish(std::string_view name, std::string_view data) {
  impl_->publish(name, data);
}

}  // namespace mayfly::api
