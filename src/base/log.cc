#include "base/log.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <span>
#include <utility>

#include "base/line_sink.h"
#include "base/metrics.h"
#include "base/text.h"
#include "base/thread_name.h"

namespace mayfly {
namespace {

// Before its control characters are escaped.
constexpr std::size_t kMaxMessage = 3072;
constexpr std::string_view kCut = "...";

// Everything that a line needs is kept in atomics and static storage: a line can be written at any time, also
// by a signal handler and while the process ends.
struct Settings {
  Mutex mutex;  // held while something is changed, and for `module`; a leaf: no other lock is taken under it
  std::atomic<int> fd{STDERR_FILENO};
  std::atomic<bool> show_level{false};
  std::atomic<bool> show_origin{false};
  std::atomic<bool> has_module{false};
  std::array<char, kMaxModule + 1> module MAYFLY_GUARDED_BY(mutex){};
  std::array<std::atomic<char>, kMaxIdLength + 1> instance_id{};  // ends at the first zero
  std::atomic<const Clock*> clock{&kSystemClock};
};
constinit Settings g_settings;

constexpr std::string_view kDefaultId = "anonymous-instance";

std::string_view level_name(LogLevel level) {
  constexpr std::array<std::string_view, 6> kNames{"OFF", "ERROR", "WARN", "INFO", "DEBUG", "TRACE"};
  return kNames[static_cast<std::size_t>(level)];
}

bool is_wanted(const char* file) {
  if (!g_settings.has_module.load(std::memory_order_relaxed)) {
    return true;
  }
  const MutexLock lock(g_settings.mutex);
  const std::string_view module(g_settings.module.data());
  const std::string_view path(file);
  // It may have been taken back meanwhile.
  return module.empty() ||
         (path.starts_with(module) &&
          (path.size() == module.size() || path[module.size()] == '/' || path[module.size()] == '.'));
}

void append_prefix(TextBuffer& text, LogLevel level, log_detail::Origin origin) {
  text.append_utc_time(g_settings.clock.load(std::memory_order_acquire)->realtime_ns());
  text.append(" [");
  if (g_settings.instance_id[0].load(std::memory_order_relaxed) == '\0') {
    text.append(kDefaultId);
  }
  for (const auto& c : g_settings.instance_id) {
    const char character = c.load(std::memory_order_relaxed);
    if (character == '\0') {
      break;
    }
    text.append(character);
  }
  text.append(':');
  text.append_escaped(thread_name());
  if (g_settings.show_level.load(std::memory_order_relaxed)) {
    text.append(':');
    text.append(level_name(level));
  }
  if (g_settings.show_origin.load(std::memory_order_relaxed)) {
    text.append(':');
    text.append(origin.file);
    text.append(':');
    text.append_decimal(static_cast<std::uint64_t>(origin.line));
  }
  text.append("] ");
}

// Async-signal-safe.
void write_line(LogLevel level, log_detail::Origin origin, std::string_view message, bool cut) {
  std::array<char, kAtomicLine> storage{};
  // Room for the mark of a cut and the line's end is kept free.
  TextBuffer body(std::span<char>(storage.data(), storage.size() - kCut.size() - 1));
  append_prefix(body, level, origin);
  body.append_escaped(message);
  std::size_t size = body.view().size();
  if (cut || body.truncated()) {
    size += kCut.copy(storage.data() + size, kCut.size());
  }
  storage[size++] = '\n';
  const std::string_view line(storage.data(), size);
  const int fd = g_settings.fd.load(std::memory_order_acquire);
  if ((fd == STDERR_FILENO ? write_shared(fd, line) : write_once(fd, line)) != size) {
    metrics().logger.missed_log_count.add();
  }
}

[[gnu::format(printf, 3, 0)]] void write_formatted(LogLevel level, log_detail::Origin origin,
                                                   const char* format, va_list arguments) {
  std::array<char, kMaxMessage> message;  // NOLINT(*-member-init): filled up to the zero that ends it
  const int length = std::vsnprintf(message.data(), message.size(), format, arguments);
  if (length < 0) {
    write_line(level, origin, format, true);
    return;
  }
  const std::size_t kept = std::min(static_cast<std::size_t>(length), message.size() - 1);
  write_line(level, origin, {message.data(), kept}, kept < static_cast<std::size_t>(length));
}

}  // namespace

Result<LogLevel> parse_log_level(std::string_view text) {
  constexpr std::array<std::pair<std::string_view, LogLevel>, 7> kLevels{{{"off", LogLevel::kOff},
                                                                          {"error", LogLevel::kError},
                                                                          {"warn", LogLevel::kWarn},
                                                                          {"warning", LogLevel::kWarn},
                                                                          {"info", LogLevel::kInfo},
                                                                          {"debug", LogLevel::kDebug},
                                                                          {"trace", LogLevel::kTrace}}};
  for (const auto& [name, level] : kLevels) {
    if (equal_ignoring_case(text, name)) {
      return level;
    }
  }
  return fail(
      ErrorCode::kInvalidArgument,
      std::string("log level \"").append(text).append("\": not Off, Error, Warn, Info, Debug or Trace"));
}

void open_log_on_stderr() {
  UniqueFd own = reopen_for_lines(STDERR_FILENO);
  remember_stderr();
  const MutexLock lock(g_settings.mutex);
  if (own && g_settings.fd.load(std::memory_order_relaxed) == STDERR_FILENO) {
    g_settings.fd.store(own.release(), std::memory_order_release);
  }
}

Result<void> configure_log(const LogConfig& config) {
  std::string module;
  const std::string_view given = config.module ? std::string_view(*config.module) : std::string_view();
  for (std::size_t i = 0; i < given.size(); ++i) {
    const bool separator = given.substr(i, 2) == "::";
    module.push_back(separator ? '/' : given[i]);
    i += separator ? 1 : 0;
  }
  if (module.size() > kMaxModule) {
    return fail(ErrorCode::kInvalidArgument, "log module: longer than 255 characters");
  }
  UniqueFd file;
  if (config.path) {
    MAYFLY_TRY_ASSIGN(file, open_line_file(*config.path, "log file"));
  }

  const MutexLock lock(g_settings.mutex);
  if (file) {
    const int current = g_settings.fd.load(std::memory_order_relaxed);
    if (current == STDERR_FILENO) {
      g_settings.fd.store(file.release(), std::memory_order_release);
    } else if (::dup3(file.get(), current, O_CLOEXEC) < 0) {
      // The new file takes the number of the old one, so that a line under way on another thread goes to
      // either, and never to a descriptor that was closed and given to something else.
      return fail_errno(errno, "replace the log file by " + *config.path);
    }
  }
  if (config.level) {
    log_detail::g_level.store(*config.level, std::memory_order_relaxed);
  }
  if (config.show_level) {
    g_settings.show_level.store(*config.show_level, std::memory_order_relaxed);
  }
  if (config.show_origin) {
    g_settings.show_origin.store(*config.show_origin, std::memory_order_relaxed);
  }
  if (config.module) {
    g_settings.module.fill('\0');
    module.copy(g_settings.module.data(), kMaxModule);
    g_settings.has_module.store(!module.empty(), std::memory_order_relaxed);
  }
  return {};
}

Result<void> set_log_instance_id(std::string_view id) {
  if (!is_instance_id(id)) {
    return fail(ErrorCode::kInvalidArgument,
                std::string("instance id \"").append(id).append("\": not 1 to 64 letters, digits and '-'"));
  }
  const MutexLock lock(g_settings.mutex);
  for (std::size_t i = 0; i < g_settings.instance_id.size(); ++i) {
    g_settings.instance_id[i].store(i < id.size() ? id[i] : '\0', std::memory_order_relaxed);
  }
  return {};
}

void set_log_clock(const Clock& clock) {
  g_settings.clock.store(&clock, std::memory_order_release);
}

LogSite::Verdict LogSite::admit(std::uint64_t now_ns) {
  const MutexLock lock(mutex_);
  if (!open_ || now_ns - window_start_ >= kWindowNs) {
    open_ = true;
    window_start_ = now_ns;
    used_ = 0;
  }
  if (used_ >= kBurst) {
    ++suppressed_;
    return {.admitted = false, .suppressed_before = 0};
  }
  ++used_;
  return {.admitted = true, .suppressed_before = std::exchange(suppressed_, 0)};
}

namespace log_detail {

void write(LogLevel level, Origin origin, const char* format, ...) {
  const int saved_errno = errno;
  if (is_wanted(origin.file)) {
    va_list arguments;
    va_start(arguments, format);
    write_formatted(level, origin, format, arguments);
    va_end(arguments);
  }
  errno = saved_errno;
}

void write_limited(LogSite& site, LogLevel level, Origin origin, const char* format, ...) {
  const int saved_errno = errno;
  if (is_wanted(origin.file)) {
    const auto verdict = site.admit(g_settings.clock.load(std::memory_order_acquire)->monotonic_ns());
    if (verdict.suppressed_before > 0) {
      write(level, origin, "%llu lines suppressed",
            static_cast<unsigned long long>(verdict.suppressed_before));
    }
    if (verdict.admitted) {
      va_list arguments;
      va_start(arguments, format);
      write_formatted(level, origin, format, arguments);
      va_end(arguments);
    } else {
      metrics().logger.rate_limited_log_count.add();
    }
  }
  errno = saved_errno;
}

void write_from_signal(LogLevel level, Origin origin, std::string_view message) noexcept {
  if (enabled(level)) {
    write_line(level, origin, message, false);
  }
}

}  // namespace log_detail

}  // namespace mayfly
