#include "mayfly/template.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <list>
#include <map>
#include <memory>
#include <memory_resource>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "api/clone_call.h"
#include "api/http/http_server.h"
#include "base/error.h"
#include "base/exit_code.h"
#include "base/log.h"
#include "base/text.h"
#include "base/unforked_memory.h"
#include "base/unique_fd.h"
#include "event/event_loop.h"
#include "mayfly/confinement.h"
#include "mayfly/monitor.h"
#include "mayfly/process_title.h"
#include "mayfly/version.h"
#include "vmm/clone_source.h"

namespace mayfly {
namespace {

using Clock = std::chrono::steady_clock;

// So many that wait end before they are born until none is made ahead any more: something is wrong with all.
constexpr unsigned kMostUnborn = 64;
// A place takes a host that is busy a tenth of a second, and so does an end; beyond this something is wrong.
constexpr std::chrono::seconds kPatience{10};
constexpr std::chrono::seconds kLastPatience{1};  // at the template's own end
// Clones of one call that are being born at a time.
constexpr std::size_t kAtATime = 4;
constexpr std::size_t kMaxOrder = std::size_t{128} << 10;  // bytes, well below what a socket takes at once
constexpr std::size_t kMaxAnswer = 4096;
// What a child says: one of these, for kMade a NewOutput, and for kFailed why.
constexpr char kReady = 'R';
constexpr char kMade = 'M';
constexpr char kBorn = 'B';
constexpr char kFailed = 'F';

constexpr std::array kHandled = {SIGTERM, SIGINT, SIGCHLD};

// The server whose run() a signal ends.
std::atomic<api::HttpServer*> g_server = nullptr;
std::atomic<bool> g_ends = false;

void on_signal(int number) {
  if (number != SIGCHLD) {
    g_ends = true;
  }
  if (api::HttpServer* const server = g_server) {
    server->stop();
  }
}

Result<void> set_handlers(void (*handler)(int)) {
  for (const int number : kHandled) {
    struct sigaction action = {};
    action.sa_handler = handler;
    action.sa_flags = SA_RESTART | (number == SIGCHLD ? SA_NOCLDSTOP : 0);
    if (::sigaction(number, &action, nullptr) != 0) {
      return fail_errno(errno, "install the handler of signal " + std::to_string(number));
    }
  }
  return {};
}
// Keeps them from being handled in the calling thread as long as it lives.
class SignalsHeld {
 public:
  SignalsHeld() {
    sigset_t held;
    ::sigemptyset(&held);
    for (const int number : kHandled) {
      ::sigaddset(&held, number);
    }
    ::pthread_sigmask(SIG_BLOCK, &held, &before_);
  }
  ~SignalsHeld() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsHeld(const SignalsHeld&) = delete;
  SignalsHeld& operator=(const SignalsHeld&) = delete;

 private:
  sigset_t before_{};
};

// The descriptors that are open, ascending. Asked one by one: a jail has no /proc, and to read it there would
// be one descriptor more.
std::vector<int> open_descriptors() {
  constexpr rlim_t kMost = 65536;  // a template has a dozen
  rlimit limit{};
  const rlim_t end = ::getrlimit(RLIMIT_NOFILE, &limit) == 0 ? std::min(limit.rlim_cur, kMost) : kMost;
  std::vector<int> open;
  for (int fd = 0; fd < static_cast<int>(end); ++fd) {
    if (::fcntl(fd, F_GETFD) >= 0) {
      open.push_back(fd);
    }
  }
  return open;
}

void say(const UniqueFd& channel, char what, std::string_view text = {}) {
  std::string message(1, what);
  message.append(text.substr(0, kMaxAnswer - 1));
  // Not by send(2), which no filter of a monitor's has to allow. A reader that has gone misses nothing.
  if (::write(channel.get(), message.data(), message.size()) < 0 && errno != EPIPE) {
    LOG_WARN_LIMITED("%s", Error::from_errno(errno, "write to a clone's channel").message().c_str());
  }
}

// The other end's next message, or nothing where it has gone.
std::string hear(const UniqueFd& channel) {
  // First how long it is: a buffer for the longest would be memory that a clone has touched for good.
  ssize_t size = 0;
  do {
    size = ::recv(channel.get(), nullptr, 0, MSG_PEEK | MSG_TRUNC);
  } while (size < 0 && errno == EINTR);
  std::string message(size < 0 ? 0 : static_cast<std::size_t>(size), '\0');
  size = ::recv(channel.get(), message.data(), message.size(), 0);
  message.resize(size < 0 ? 0 : static_cast<std::size_t>(size));
  return message;
}

// One of clone_outputs(), which was not there before, by what tells it from others of its name.
struct NewOutput {
  std::uint64_t index = 0;
  dev_t device = 0;
  ino_t inode = 0;
};

// A file that a clone is to write to is made before it is opened: then it is known whether it was there
// before, whatever becomes of the clone. What stands against it is said when it is opened.
void make_output(const UniqueFd& channel, std::uint64_t index, const std::string& path) {
  constexpr mode_t kMode = 0600;
  const UniqueFd made(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY, kMode));
  struct stat file {};
  if (made && ::fstat(made.get(), &file) == 0) {
    const auto bytes = std::bit_cast<std::array<char, sizeof(NewOutput)>>(
        NewOutput{.index = index, .device = file.st_dev, .inode = file.st_ino});
    say(channel, kMade, {bytes.data(), bytes.size()});
  }
}

// A process that waits to become a clone, or is becoming one.
struct Child {
  pid_t pid = 0;
  UniqueFd channel;
  std::unique_ptr<Watch> watch;  // of the channel: goes first
  Clock::time_point deadline;    // of what it is doing
  bool is_ready = false;
};

struct MadeFile {
  std::string path;
  NewOutput file;
};

// False where one is left.
bool remove_files(const std::vector<MadeFile>& files) {
  bool all = true;
  for (const MadeFile& made : files) {
    struct stat file {};
    if (::lstat(made.path.c_str(), &file) != 0) {
      all = all && errno == ENOENT;
    } else if (file.st_dev == made.file.device && file.st_ino == made.file.inode) {
      all = ::unlink(made.path.c_str()) == 0 && all;
    }
  }
  return all;
}

// POST /clone under way.
struct Call {
  std::uint64_t ticket = 0;
  api::CloneRequest request;
  std::vector<api::BornClone> clones{};  // told who they are, in this order
  std::vector<MadeFile> made_files{};
  std::size_t in_flight = 0;     // clones that have not said yet that they are born
  unsigned lost = 0;             // processes that ended without a word while it waited for one
  std::optional<Error> error{};  // no clone is to be left
  // Until a process is there; after an error, until all have ended, and then until the files are gone.
  Clock::time_point deadline{};
  std::size_t left = 0;  // after an error: clones that live
  pid_t remover = 0;     // after these: the process that removes made_files; 0: none
};

// A clone that lives, or is being born.
struct Life {
  std::pmr::string id;
  std::optional<std::pmr::string> socket;
  Call* call = nullptr;  // whose caller was not told of it yet
};

struct Birth {
  Child child;
  Call* call = nullptr;
  std::string id;
  std::vector<std::string> outputs;
};

class Template {
 public:
  Template(const Options& options, CloneSource source)
      : options_(options),
        source_(std::move(source)),
        socket_folder_(options.api_socket->substr(0, options.api_socket->rfind('/') + 1)) {}
  Template(const Template&) = delete;
  Template& operator=(const Template&) = delete;
  ~Template() = default;

  OrFailure<void> serve() {
    kept_ = open_descriptors();
    prepare_process_arguments();
    MAYFLY_TRY(set_handlers(on_signal));
    MAYFLY_TRY_ASSIGN(auto listener,
                      api::UnixListener::bind(*options_.api_socket).map_error(blame_flag("--api-sock")));
    MAYFLY_TRY_ASSIGN(server_,
                      api::HttpServer::create(
                          std::move(listener), {.max_body_bytes = options_.max_body_bytes}, "Mayfly template",
                          [this](const api::HttpRequest& request) { return answer(request); }));
    MAYFLY_TRY_ASSIGN(timer_, server_->registrar().make_timer([this] { on_tick(); }));
    g_server = server_.get();
    LOG_INFO("template %s at %s", options_.id.c_str(), options_.api_socket->c_str());
    Result<void> served;
    while (served && !g_ends) {
      reap();
      fill_pool();
      served = server_->run();
    }
    g_server = nullptr;
    ends_ = true;
    pool_.clear();  // the channels' ends: whoever waits at one ends
    server_->close();
    end_unanswered();
    MAYFLY_TRY(served);
    return {};
  }

 private:
  void reap() {
    for (;;) {
      int status = 0;
      const pid_t pid = ::waitpid(-1, &status, WNOHANG);
      if (pid <= 0) {
        break;
      }
      while (knows(pid)) {
        take_message(pid);  // at last that there will be none
      }
      if (const auto found = living_.find(pid); found != living_.end()) {
        Call* const call = found->second.call;
        ids_.erase(found->second.id);
        living_.erase(found);
        if (call == nullptr) {
          --told_;
        } else if (call->error) {
          --call->left;
        }
      }
      if (const auto call = std::ranges::find(calls_, pid, &Call::remover); call != calls_.end()) {
        call->remover = 0;
        if (status != 0) {
          leave_files(*call);
        }
        call->made_files.clear();
      }
    }
    go_on();
  }

  // With all calls. What is over goes first: its ids and files are free then.
  void go_on() {
    conclude();
    advance_all();
    conclude();
  }

  // Whether there is a channel to that process.
  bool knows(pid_t pid) const {
    return births_.contains(pid) || std::ranges::find(pool_, pid, &Child::pid) != pool_.end();
  }

  // Where none can be made, who asks for a clone is told why.
  void fill_pool() {
    if (!ends_ && ended_unborn_ < kMostUnborn) {
      if (const auto filled = fill(options_.clones.pool); !filled) {
        LOG_WARN_LIMITED("%s", filled.error().message().c_str());
      }
    }
  }
  Result<void> fill(std::size_t wanted) {
    while (pool_.size() < wanted) {
      MAYFLY_TRY(fork_child());
    }
    return {};
  }

  Result<void> fork_child() {
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) {
      return fail_errno(errno, "make a channel to a clone's process");
    }
    UniqueFd ours(ends[0]);
    UniqueFd theirs(ends[1]);
    const pid_t pid = fork_away(&theirs);
    if (pid < 0) {
      return fail_errno(errno, "make a clone's process");
    }
    if (pid == 0) {
      wait_for_birth(std::move(theirs));
    }
    // Where it fails, the channel's end ends the child.
    MAYFLY_TRY_ASSIGN(auto watch,
                      server_->registrar().watch(ours.get(), Interest::kReadable,
                                                 [this, pid](Readiness /*ready*/) { on_channel(pid); }));
    pool_.push_back({.pid = pid,
                     .channel = std::move(ours),
                     .watch = std::move(watch),
                     .deadline = Clock::now() + kPatience});
    look_soon();
    return {};
  }

  // fork(2), in whose child nothing is the template's any more. The channel is null where there is none.
  pid_t fork_away(const UniqueFd* channel) const {
    const SignalsHeld held;  // the child must not handle any as the template would
    const pid_t pid = ::fork();
    if (pid == 0) {
      become_child(channel);
    }
    return pid;
  }
  // Leaves what is the template's alone: its descriptors, its signals, its terminal, whose keys are not meant
  // for a clone.
  void become_child(const UniqueFd* channel) const {
    g_server = nullptr;
    static_cast<void>(set_handlers(SIG_DFL));  // which fails for no valid signal
    ::signal(SIGCHLD, SIG_IGN);                // as any monitor does
    std::vector<int> kept = kept_;
    if (channel != nullptr) {
      kept.push_back(channel->get());
    }
    std::ranges::sort(kept);
    static_cast<void>(close_all_but(kept));  // which main() has found to work
    // Who cannot be shown as what it is is taken for the template once that has ended; it is asked nothing.
    static_cast<void>(set_process_arguments({"mayfly", std::string(kForkMark) + options_.id + "]"}));
    ::setsid();
    // Who reads what the template prints must not wait for a clone's end. The log alone is shared.
    if (const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC)); null) {
      ::dup2(null.get(), STDIN_FILENO);
      ::dup2(null.get(), STDOUT_FILENO);
    }
  }

  // The child's life. Nothing of the template's is destroyed in it: its memory is shared until it is
  // written.
  [[noreturn]] void wait_for_birth(UniqueFd channel) {
    auto place = std::move(source_).make_place();
    if (!place) {
      say(channel, kFailed, place.error().message());
      ::_exit(static_cast<int>(ExitCode::kError));
    }
    const ExitCode code = live(std::move(*place), std::move(channel));
    ::_exit(static_cast<int>(code));
  }

  // From a place to the end of a clone, told by its log.
  ExitCode live(ClonePlace place, UniqueFd channel) {
    Options options = options_;
    const MachineConfig machine = place.config.machine;
    const auto outcome = run_clone(options, std::move(place),
                                   {.for_birth = [&]() -> OrFailure<CloneBirth> {
                                      rehearse();
                                      say(channel, kReady);
                                      const std::string order = hear(channel);
                                      if (order.empty()) {
                                        ::_exit(static_cast<int>(ExitCode::kOk));  // the template has ended
                                      }
                                      return read_order(order, machine, channel);
                                    },
                                    .on_born =
                                        [&] {
                                          say(channel, kBorn);
                                          channel.reset();
                                        }});
    if (!outcome) {
      if (channel) {
        say(channel, kFailed, outcome.error().message);
      } else {
        LOG_ERROR("%s", outcome.error().message.c_str());
      }
      return ExitCode::kError;
    }
    const bool well = exit_code_of(outcome->kind) == 0;
    if (well) {
      LOG_INFO("%s: %s", name_of(outcome->kind), outcome->detail.c_str());
    } else {
      LOG_ERROR("the microVM failed: %s: %s", name_of(outcome->kind), outcome->detail.c_str());
    }
    return well ? ExitCode::kOk : ExitCode::kError;
  }

  // Reads an order as the one to come will be: the code is mapped then, and the memory that it takes is this
  // process's own.
  void rehearse() const {
    if (const auto order = api::clone_order({}, options_.id, 0, socket_folder_)) {
      [[maybe_unused]] const auto read = api::parse_clone_request(*order);
    }
  }

  OrFailure<CloneBirth> read_order(const std::string& order, const MachineConfig& machine,
                                   const UniqueFd& channel) const {
    MAYFLY_TRY_ASSIGN(api::CloneRequest told, api::parse_clone_request(order));
    // Here and not by the template, which must not wait for whoever serves these files.
    const std::vector<std::string> outputs = api::clone_outputs(told, told.id.value_or(""), 0);
    for (std::size_t index = 0; index < outputs.size(); ++index) {
      make_output(channel, index, outputs[index]);
    }
    CloneBirth birth{.id = told.id.value_or(""),
                     .load = std::move(told.load),
                     .api_socket = std::move(told.api_socket),
                     .serial_path = std::move(told.serial_path)};
    MAYFLY_TRY(set_log_instance_id(birth.id));
    show_as_clone(birth, machine);
    return birth;
  }

  void show_as_clone(const CloneBirth& birth, const MachineConfig& machine) const {
    std::vector<std::string> arguments = {"mayfly",   std::string(kCloneMark) + options_.id + "]",
                                          "--id",     birth.id,
                                          "--cpus",   std::to_string(machine.vcpu_count),
                                          "--memory", std::to_string(machine.mem_size_mib) + "M"};
    if (birth.api_socket) {
      arguments.insert(arguments.end(), {"--api-sock", *birth.api_socket});
    }
    if (!set_process_arguments(arguments)) {
      LOG_WARN_LIMITED("a clone is not listed by 'mayfly ps': its arguments cannot be set");
    }
  }

  api::HttpResponse answer(const api::HttpRequest& request) {
    if (request.path == "/" && request.method == "GET") {
      return {.body = api::template_answer(options_.id, monitor_version(), ready_count(), told_)};
    }
    if (request.path != "/clone") {
      return refusal("there is no " + request.path + " in a template's API: GET / and GET and POST /clone");
    }
    if (request.method == "GET") {
      return {.body = api::clones_answer(told_of())};
    }
    if (request.method != "POST") {
      return refusal(request.method + " is not possible on /clone; GET and POST are");
    }
    auto wanted = api::parse_clone_request(request.body);
    if (!wanted) {
      return refusal(wanted.error().message());
    }
    if (options_.clones.no_api) {
      if (wanted->api_socket) {
        return refusal("the template's clones have no control API (--no-clone-api)");
      }
      if (!wanted->load.resume) {
        return refusal("the template's clones have no control API (--no-clone-api) that could resume one");
      }
      wanted->api = false;
    }
    Call call{.ticket = request.ticket, .request = std::move(*wanted), .deadline = Clock::now() + kPatience};
    call.clones.reserve(call.request.count);
    calls_.push_back(std::move(call));
    look_soon();
    advance(calls_.back());
    if (calls_.back().error && calls_.back().left == 0) {
      auto refused = refusal(calls_.back().error->message());  // it had no clone
      calls_.pop_back();
      return refused;
    }
    return {.later = true};
  }

  static api::HttpResponse refusal(const std::string& message) {
    LOG_INFO_LIMITED("a call is refused: %s", message.c_str());
    return {.status = 400, .body = api::fault_answer(message)};
  }

  std::size_t ready_count() const {
    return static_cast<std::size_t>(std::ranges::count(pool_, true, &Child::is_ready));
  }

  // The clones that somebody was told of.
  std::vector<api::BornClone> told_of() const {
    std::vector<api::BornClone> clones;
    for (const auto& [pid, life] : living_) {
      if (life.call == nullptr) {
        api::BornClone clone{.id = std::string(life.id), .pid = pid};
        if (life.socket) {
          clone.socket.emplace(*life.socket);
        }
        clones.push_back(std::move(clone));
      }
    }
    return clones;
  }

  // As far as it can be done now; the rest follows what the processes say.
  void advance(Call& call) {
    while (needs_child(call)) {
      const auto filled = refill(call.request.count - call.clones.size());
      if (!filled && pool_.empty()) {
        fail_call(call, filled.error());
      } else if (!has_ready()) {
        return;
      } else if (const auto sent = send_order(call); !sent) {
        fail_call(call, sent.error());
      }
    }
  }
  void advance_all() {
    for (Call& call : calls_) {
      if (needs_child(call) && !server_->is_waiting(call.ticket)) {
        fail_call(call, nobody_asks());
      }
      advance(call);
    }
  }
  static Error nobody_asks() { return {ErrorCode::kNotFound, "who asked for clones has gone"}; }
  // For so many births, several processes at a time: forks of the same moment share what this process changes
  // later.
  Result<void> refill(std::size_t births) {
    const std::size_t wanted = std::min<std::size_t>(options_.clones.pool, births);
    return pool_.size() < (wanted + 1) / 2 ? fill(wanted) : Result<void>();
  }
  static bool needs_child(const Call& call) {
    return !call.error && call.clones.size() < call.request.count && call.in_flight < kAtATime;
  }
  bool has_ready() const { return ready_count() > 0; }

  Result<void> send_order(Call& call) {
    const std::uint64_t number = ++last_number_;
    const api::CloneRequest& request = call.request;
    api::BornClone clone{
        .id = request.id.value_or(request.id_prefix.value_or(options_.id) + "-" + std::to_string(number))};
    std::pmr::string id(clone.id, &books_);
    if (ids_.contains(id)) {
      return fail(ErrorCode::kBusy, "the id \"" + clone.id + "\" is taken: a clone that lives has it");
    }
    MAYFLY_TRY_ASSIGN(const std::string order, api::clone_order(request, clone.id, number, socket_folder_));
    clone.socket = api::clone_socket(request, clone.id, number, socket_folder_);
    if (order.size() > kMaxOrder) {
      return fail(ErrorCode::kInvalidArgument, "clone " + clone.id + ": what it is to be takes " +
                                                   std::to_string(order.size()) +
                                                   " bytes with its id in every place; at most " +
                                                   std::to_string(kMaxOrder) + " are possible");
    }
    std::vector<std::string> outputs = api::clone_outputs(request, clone.id, number);
    for (const std::string& path : outputs) {
      MAYFLY_TRY(expect_kept(path, call));
    }
    MAYFLY_TRY_ASSIGN(Child child, tell(order));
    clone.pid = child.pid;
    child.deadline = call.deadline = Clock::now() + kPatience;
    Life life{.id = {id, &books_}, .socket = std::nullopt, .call = &call};
    if (clone.socket) {
      life.socket.emplace(*clone.socket, &books_);
    }
    living_.emplace(clone.pid, std::move(life));
    ids_.insert(std::move(id));
    births_.emplace(
        clone.pid,
        Birth{.child = std::move(child), .call = &call, .id = clone.id, .outputs = std::move(outputs)});
    call.clones.push_back(std::move(clone));
    ++call.in_flight;
    return {};
  }

  // The oldest of those that are ready, with its order.
  Result<Child> tell(const std::string& order) {
    int error = ECHILD;
    for (auto it = pool_.begin(); it != pool_.end();) {
      const auto child = it++;
      if (!child->is_ready) {
        continue;
      }
      const bool told = ::write(child->channel.get(), order.data(), order.size()) >= 0;
      error = errno;
      Child taken = std::move(*child);
      pool_.erase(child);
      if (told) {
        return taken;
      }
    }
    return fail_errno(error, "tell a clone's process who it is");
  }

  // No clone of `own` is born on a file that goes with those of another call where that fails.
  Result<void> expect_kept(const std::string& path, const Call& own) const {
    const auto is_born = [&](const Call& call) {
      return std::ranges::any_of(births_, [&](const auto& birth) {
        return birth.second.call == &call && std::ranges::count(birth.second.outputs, path) != 0;
      });
    };
    for (const Call& call : calls_) {
      const bool is_made = std::ranges::find(call.made_files, path, &MadeFile::path) != call.made_files.end();
      if (call.error && (is_made || is_born(call))) {
        return fail(ErrorCode::kBusy, path + ": is being removed, with clones of a call that failed");
      }
      if (is_made && &call != &own) {
        return fail(ErrorCode::kBusy, path + ": was made for clones of another call, which is under way");
      }
    }
    return {};
  }

  // A channel can be read from, or its other end is gone.
  void on_channel(pid_t pid) {
    take_message(pid);
    go_on();
  }
  void take_message(pid_t pid) {
    if (const auto birth = births_.find(pid); birth != births_.end()) {
      const std::string message = hear(birth->second.child.channel);
      if (message.starts_with(kMade)) {
        note_made(birth->second, message);
      } else {
        end_birth(birth, message);
      }
      return;
    }
    const auto child = std::ranges::find(pool_, pid, &Child::pid);
    const std::string message = hear(child->channel);
    if (message == std::string_view(&kReady, 1)) {
      child->is_ready = true;
      return;
    }
    pool_.erase(child);
    if (ended_unborn_ < kMostUnborn && ++ended_unborn_ == kMostUnborn) {
      LOG_WARN("%u processes that waited have ended: no more are made ahead until a clone is born",
               kMostUnborn);
    }
    const Error error = message.empty() ? Error(ErrorCode::kNotFound, "a process that waited has ended")
                                        : Error(ErrorCode::kUnsupported, message.substr(1));
    LOG_WARN_LIMITED("%s", error.message().c_str());
    for (Call& call : calls_) {
      // Whoever was killed while it waited has successors, but not for ever.
      if (needs_child(call) && (!message.empty() || ++call.lost > options_.clones.pool)) {
        fail_call(call, error.within("make a VM ahead"));
      }
    }
  }

  static void note_made(const Birth& birth, const std::string& message) {
    std::array<char, sizeof(NewOutput)> bytes{};
    message.copy(bytes.data(), bytes.size(), 1);
    const auto file = std::bit_cast<NewOutput>(bytes);
    std::vector<MadeFile>& known = birth.call->made_files;
    // Each is said once: what a clone says more than that is not kept.
    if (file.index < birth.outputs.size() &&
        std::ranges::find(known, birth.outputs[file.index], &MadeFile::path) == known.end()) {
      known.push_back({birth.outputs[file.index], file});
    }
  }

  void end_birth(std::map<pid_t, Birth>::iterator birth, const std::string& message) {
    Call& call = *birth->second.call;
    const std::string who = "clone " + birth->second.id;
    births_.erase(birth);
    --call.in_flight;
    if (message.empty()) {
      fail_call(call, Error(ErrorCode::kNotFound, who + ": its process has ended before its guest ran"));
    } else if (message.front() == kFailed) {
      fail_call(call, Error(ErrorCode::kUnsupported, message.substr(1)).within(who));
    }
  }

  // None of its clones is to be left: all are told to end, in good order, so that they take their sockets
  // along; and by force where they do not listen.
  void fail_call(Call& call, Error error) {
    if (call.error) {
      return;
    }
    call.error = std::move(error);
    call.deadline = Clock::now() + kPatience;
    call.left = signal_clones(call, SIGTERM);
    look_soon();
  }
  // How many there were.
  std::size_t signal_clones(const Call& call, int number) const {
    std::size_t count = 0;
    for (const api::BornClone& clone : call.clones) {
      const auto found = living_.find(clone.pid);
      if (found != living_.end() && found->second.call == &call) {
        ::kill(clone.pid, number);
        ++count;
      }
    }
    return count;
  }

  // Answers the calls that are over.
  void conclude() {
    for (auto it = calls_.begin(); it != calls_.end();) {
      const auto call = it++;
      const bool is_over =
          call->error ? call->left == 0 : call->in_flight == 0 && call->clones.size() == call->request.count;
      if (is_over && answer_call(*call)) {
        calls_.erase(call);
        fill_pool();
      }
    }
  }
  // False where its clones are to end first, as nobody knows of them.
  bool answer_call(Call& call) {
    if (call.error) {
      if (!files_are_gone(call)) {
        return false;
      }
      server_->answer(call.ticket, refusal(call.error->message()));
      return true;
    }
    ended_unborn_ = 0;
    if (!server_->answer(call.ticket, {.body = api::clones_answer(call.clones)})) {
      fail_call(call, nobody_asks());
      return call.left == 0 && files_are_gone(call);
    }
    for (const api::BornClone& clone : call.clones) {
      if (const auto found = living_.find(clone.pid); found != living_.end()) {
        found->second.call = nullptr;
        ++told_;
      }
    }
    return true;
  }

  // Where they are not, a process begins to remove them, which may wait for a file server.
  bool files_are_gone(Call& call) {
    if (call.remover == 0 && !call.made_files.empty()) {
      call.remover = fork_away(nullptr);
      if (call.remover == 0) {
        ::_exit(static_cast<int>(remove_files(call.made_files) ? ExitCode::kOk : ExitCode::kError));
      }
      call.deadline = Clock::now() + kPatience;
      look_soon();
      if (call.remover < 0) {
        leave_files(call);
      }
    }
    return call.made_files.empty();
  }
  static void leave_files(Call& call) {
    if (call.remover > 0) {
      ::kill(call.remover, SIGKILL);  // before another clone has a file of theirs
    }
    call.remover = 0;
    for (const MadeFile& made : std::exchange(call.made_files, {})) {
      LOG_WARN_LIMITED("%s: may be left, of a call that failed: it cannot be removed", made.path.c_str());
    }
  }

  // While something is under way that may take too long.
  void look_soon() {
    if (!std::exchange(looks_soon_, true)) {
      // Fails for no descriptor of its own that is a timer's.
      [[maybe_unused]] const auto started = timer_->start(std::chrono::seconds(1));
    }
  }
  void on_tick() {
    looks_soon_ = false;
    const auto now = Clock::now();
    for (const Child& child : pool_) {
      if (!child.is_ready && child.deadline <= now) {
        ::kill(child.pid, SIGKILL);
      }
    }
    for (const auto& [pid, birth] : births_) {
      if (birth.child.deadline <= now) {
        ::kill(pid, SIGKILL);  // it does not hear of anything else
        fail_call(*birth.call, Error(ErrorCode::kIo, "clone " + birth.id + ": its process does not answer"));
      }
    }
    for (Call& call : calls_) {
      if (call.deadline > now) {
        continue;
      }
      if (call.error) {
        signal_clones(call, SIGKILL);
        if (call.remover != 0) {
          leave_files(call);
        }
      } else if (needs_child(call)) {
        fail_call(call, Error(ErrorCode::kIo, "make a VM ahead: it takes too long"));
      }
    }
    conclude();
    if (!calls_.empty() || ready_count() < pool_.size()) {
      look_soon();
    }
  }

  // At the template's end: clones that nobody was told of.
  void end_unanswered() {
    for (Call& call : calls_) {
      fail_call(call, Error(ErrorCode::kNotFound, "the template ends"));
    }
    const auto deadline = Clock::now() + kLastPatience;
    for (reap(); !calls_.empty() && Clock::now() < deadline + kLastPatience; reap()) {
      if (Clock::now() >= deadline) {
        for (Call& call : calls_) {
          signal_clones(call, SIGKILL);
          if (call.remover != 0) {
            leave_files(call);
          }
        }
      }
      ::poll(nullptr, 0, 1);
    }
  }

  const Options& options_;
  CloneSource source_;
  const std::string socket_folder_;  // ends in '/', or empty
  std::vector<int> kept_;            // descriptors that are a clone's as well
  std::unique_ptr<api::HttpServer> server_;
  std::unique_ptr<EventRegistrar::Timer> timer_;  // of the server's loop, as are the channels' watches
  bool looks_soon_ = false;
  bool ends_ = false;
  std::list<Child> pool_;      // the oldest first
  unsigned ended_unborn_ = 0;  // of the pool, since a clone was born last
  std::list<Call> calls_;
  std::map<pid_t, Birth> births_;  // of the calls
  // Of all that live, and so the one thing that grows with their number: in memory that they do not share.
  UnforkedMemory unforked_;
  std::pmr::unsynchronized_pool_resource books_{&unforked_};
  std::pmr::map<pid_t, Life> living_{&books_};
  std::pmr::set<std::pmr::string> ids_{&books_};  // of those
  std::size_t told_ = 0;                          // of them, that somebody was told of
  std::uint64_t last_number_ = 0;
};

}  // namespace

OrFailure<void> run_template(const Options& options) {
  MAYFLY_TRY(choose_filters(options));  // each process has its own; that they can be had is said now
  MAYFLY_TRY_ASSIGN(CloneSource source,
                    CloneSource::open(options.clones.state_path, options.clones.memory_path)
                        .map_error([](const BuildError& error) {
                          return Failure(ExitCode::kBadArguments, error.error.message());
                        }));
  // No program that it or a clone starts gains rights.
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
    return tl::make_unexpected(Failure(Error::from_errno(errno, "set no_new_privs")));
  }
  return Template(options, std::move(source)).serve();
}

}  // namespace mayfly
