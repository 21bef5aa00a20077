#include "mayfly/template.h"

#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "api/clone_call.h"
#include "api/http/http_server.h"
#include "base/error.h"
#include "base/exit_code.h"
#include "base/log.h"
#include "base/unique_fd.h"
#include "event/event_loop.h"
#include "mayfly/clone_channel.h"
#include "mayfly/clone_files.h"
#include "mayfly/clone_pool.h"
#include "mayfly/clone_process.h"
#include "mayfly/clone_records.h"
#include "mayfly/confinement.h"
#include "mayfly/template_process.h"
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
    MAYFLY_TRY(process_.prepare(options_.id));
    MAYFLY_TRY_ASSIGN(auto listener,
                      api::UnixListener::bind(*options_.api_socket).map_error(blame_flag("--api-sock")));
    MAYFLY_TRY_ASSIGN(server_,
                      api::HttpServer::create(
                          std::move(listener), {.max_body_bytes = options_.max_body_bytes}, "Mayfly template",
                          [this](const api::HttpRequest& request) { return answer(request); }));
    MAYFLY_TRY_ASSIGN(timer_, server_->registrar().make_timer([this] { on_tick(); }));
    pool_.open(server_->registrar(),
               {.fork_child = [this](UniqueFd channel) { return fork_child(std::move(channel)); },
                .on_channel = [this](pid_t pid) { on_channel(pid); }});
    TemplateProcess::interrupt(server_.get());
    LOG_INFO("template %s at %s", options_.id.c_str(), options_.api_socket->c_str());
    Result<void> served;
    while (served && !TemplateProcess::asked_to_end()) {
      reap();
      fill_pool();
      served = server_->run();
    }
    TemplateProcess::interrupt(nullptr);
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
      if (CloneCall* const call = living_.remove(pid); call != nullptr && call->error) {
        --call->left;
      }
      if (const auto call = std::ranges::find(calls_, pid, &CloneCall::remover); call != calls_.end()) {
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
  bool knows(pid_t pid) const { return births_.contains(pid) || pool_.contains(pid); }

  // Where none can be made, who asks for a clone is told why.
  void fill_pool() {
    if (!ends_ && ended_unborn_ < kMostUnborn) {
      if (const auto filled = fill(options_.clones.pool); !filled) {
        LOG_WARN_LIMITED("%s", filled.error().message().c_str());
      }
    }
  }
  Result<void> fill(std::size_t wanted) {
    const std::size_t before = pool_.size();
    auto filled = pool_.fill(wanted, kPatience);
    if (pool_.size() > before) {
      look_soon();
    }
    return filled;
  }
  Result<pid_t> fork_child(UniqueFd channel) {
    const pid_t pid = process_.fork_away(&channel);
    if (pid < 0) {
      return fail_errno(errno, "make a clone's process");
    }
    if (pid == 0) {
      become_clone({options_, socket_folder_}, std::move(source_), std::move(channel));
    }
    return pid;
  }

  api::HttpResponse answer(const api::HttpRequest& request) {
    if (request.path == "/" && request.method == "GET") {
      return {.body = api::template_answer(options_.id, monitor_version(), pool_.ready_count(),
                                           living_.told_count())};
    }
    if (request.path != "/clone") {
      return refusal("there is no " + request.path + " in a template's API: GET / and GET and POST /clone");
    }
    if (request.method == "GET") {
      return {.body = api::clones_answer(living_.told())};
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
    CloneCall call{
        .ticket = request.ticket, .request = std::move(*wanted), .deadline = Clock::now() + kPatience};
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

  // As far as it can be done now; the rest follows what the processes say.
  void advance(CloneCall& call) {
    while (needs_child(call)) {
      const auto filled = refill(call.request.count - call.clones.size());
      if (!filled && pool_.size() == 0) {
        fail_call(call, filled.error());
      } else if (pool_.ready_count() == 0) {
        return;
      } else if (const auto sent = send_order(call); !sent) {
        fail_call(call, sent.error());
      }
    }
  }
  void advance_all() {
    for (CloneCall& call : calls_) {
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
  static bool needs_child(const CloneCall& call) {
    return !call.error && call.clones.size() < call.request.count && call.in_flight < kAtATime;
  }

  Result<void> send_order(CloneCall& call) {
    const std::uint64_t number = ++last_number_;
    const api::CloneRequest& request = call.request;
    api::BornClone clone{
        .id = request.id.value_or(request.id_prefix.value_or(options_.id) + "-" + std::to_string(number))};
    if (living_.has_id(clone.id)) {
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
    MAYFLY_TRY_ASSIGN(PoolProcess child, pool_.tell(order));
    clone.pid = child.pid;
    child.deadline = call.deadline = Clock::now() + kPatience;
    living_.add(clone, call);
    births_.emplace(
        clone.pid,
        BirthUnderWay{
            .child = std::move(child), .call = &call, .id = clone.id, .outputs = std::move(outputs)});
    call.clones.push_back(std::move(clone));
    ++call.in_flight;
    return {};
  }

  // No clone of `own` is born on a file that goes with those of another call where that fails.
  Result<void> expect_kept(const std::string& path, const CloneCall& own) const {
    const auto is_born = [&](const CloneCall& call) {
      return std::ranges::any_of(births_, [&](const auto& birth) {
        return birth.second.call == &call && std::ranges::count(birth.second.outputs, path) != 0;
      });
    };
    for (const CloneCall& call : calls_) {
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
        birth->second.note_made(message);
      } else {
        end_birth(birth, message);
      }
      return;
    }
    const auto last = pool_.hear_from(pid);
    if (!last) {
      return;  // it is ready
    }
    if (ended_unborn_ < kMostUnborn && ++ended_unborn_ == kMostUnborn) {
      LOG_WARN("%u processes that waited have ended: no more are made ahead until a clone is born",
               kMostUnborn);
    }
    const Error error = last->empty() ? Error(ErrorCode::kNotFound, "a process that waited has ended")
                                      : Error(ErrorCode::kUnsupported, last->substr(1));
    LOG_WARN_LIMITED("%s", error.message().c_str());
    for (CloneCall& call : calls_) {
      // Whoever was killed while it waited has successors, but not for ever.
      if (needs_child(call) && (!last->empty() || ++call.lost > options_.clones.pool)) {
        fail_call(call, error.within("make a VM ahead"));
      }
    }
  }

  void end_birth(std::map<pid_t, BirthUnderWay>::iterator birth, const std::string& message) {
    CloneCall& call = *birth->second.call;
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
  void fail_call(CloneCall& call, Error error) {
    if (call.error) {
      return;
    }
    call.error = std::move(error);
    call.deadline = Clock::now() + kPatience;
    call.left = signal_clones(call, SIGTERM);
    look_soon();
  }
  // How many there were.
  std::size_t signal_clones(const CloneCall& call, int number) const {
    std::size_t count = 0;
    for (const api::BornClone& clone : call.clones) {
      if (living_.is_untold_of(call, clone.pid)) {
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
  bool answer_call(CloneCall& call) {
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
      living_.note_told(clone.pid);
    }
    return true;
  }

  // Where they are not, a process begins to remove them, which may wait for a file server.
  bool files_are_gone(CloneCall& call) {
    if (call.remover == 0 && !call.made_files.empty()) {
      call.remover = process_.fork_away(nullptr);
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
  static void leave_files(CloneCall& call) {
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
    pool_.kill_overdue(now);
    for (const auto& [pid, birth] : births_) {
      if (birth.child.deadline <= now) {
        ::kill(pid, SIGKILL);  // it does not hear of anything else
        fail_call(*birth.call, Error(ErrorCode::kIo, "clone " + birth.id + ": its process does not answer"));
      }
    }
    for (CloneCall& call : calls_) {
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
    if (!calls_.empty() || pool_.ready_count() < pool_.size()) {
      look_soon();
    }
  }

  // At the template's end: clones that nobody was told of.
  void end_unanswered() {
    for (CloneCall& call : calls_) {
      fail_call(call, Error(ErrorCode::kNotFound, "the template ends"));
    }
    const auto deadline = Clock::now() + kLastPatience;
    for (reap(); !calls_.empty() && Clock::now() < deadline + kLastPatience; reap()) {
      if (Clock::now() >= deadline) {
        for (CloneCall& call : calls_) {
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
  TemplateProcess process_;
  std::unique_ptr<api::HttpServer> server_;
  std::unique_ptr<EventRegistrar::Timer> timer_;  // of the server's loop, as are the channels' watches
  bool looks_soon_ = false;
  bool ends_ = false;
  ClonePool pool_;
  unsigned ended_unborn_ = 0;  // of the pool, since a clone was born last
  std::list<CloneCall> calls_;
  std::map<pid_t, BirthUnderWay> births_;  // of the calls
  LivingClones living_;
  std::uint64_t last_number_ = 0;
};

}  // namespace

OrFailure<void> run_template(const Options& options) {
  MAYFLY_TRY(choose_filters(options));  // each process has its own; that they can be had is said now
  MAYFLY_TRY_ASSIGN(CloneSource source,
                    CloneSource::open(options.clones.state_path, options.clones.memory_path)
                        .map_error([](const BuildError& error) {
                          return error.fault == BuildError::Fault::kConfiguration
                                     ? with_code(ExitCode::kBadArguments)(error.error)
                                     : Failure(error.error);
                        }));
  // No program that it or a clone starts gains rights.
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
    return tl::make_unexpected(Failure(Error::from_errno(errno, "set no_new_privs")));
  }
  return Template(options, std::move(source)).serve();
}

}  // namespace mayfly
