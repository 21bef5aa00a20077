// Lines of log:
//
//   2024-02-29T23:59:59.000000001 [my-vm:main:WARN:devices/serial/serial.cc:42] message
//
// in UTC; level and origin only where asked for. To stderr unless a file or FIFO is set: stdout is the
// guest's serial console.
//
//   LOG_INFO("%u vCPUs started", count);
//   LOG_WARN_LIMITED("unknown port %#x", port);  // wherever a guest or an API caller can cause it at will
//
// Everything here is thread-safe, usable at any time of the process's life, and never blocks: a line that its
// destination does not take at once is dropped and counted as logger.missed_log_count.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/mutex.h"
#include "base/result.h"
#include "base/source_path.h"

namespace mayfly {

enum class LogLevel : std::uint8_t { kOff, kError, kWarn, kInfo, kDebug, kTrace };

// "Off", "Error", "Warn" or "Warning", "Info", "Debug", "Trace", in any case; kInvalidArgument otherwise.
Result<LogLevel> parse_log_level(std::string_view text);

inline constexpr std::size_t kMaxModule = 255;

// What to change; what is absent stays as it was. At the start: stderr, kInfo, neither level nor origin
// shown, all modules.
struct LogConfig {
  std::optional<std::string> path;  // a file (appended to, made if need be) or a FIFO
  std::optional<LogLevel> level;    // what is less severe is left out
  std::optional<bool> show_level;
  std::optional<bool> show_origin;
  // Only lines from files below this path, as the origin shows it: "devices", "devices/serial",
  // "devices/serial/serial.cc"; "::" is as good as "/". Empty: all. At most kMaxModule characters.
  std::optional<std::string> module;
};

// Gives the log a non-blocking description of stderr of its own, where stderr is a terminal or a pipe, and
// leaves the one that others share as it is. Call once, at the start of the process, when descriptors 0 to 2
// are open and the log goes to stderr. Without it, lines reach a terminal byte by byte.
void open_log_on_stderr();

// Applies all of `config`, or nothing where it fails (the path cannot be opened). May be called again and
// again.
Result<void> configure_log(const LogConfig& config);

// The <id> of the lines that follow; "anonymous-instance" at the start. kInvalidArgument unless
// is_instance_id().
Result<void> set_log_instance_id(std::string_view id);

// For tests: the clock of the lines and limits that follow; it must live as long as it is in use.
void set_log_clock(const Clock& clock);

// A place in the source that logs, and its limit where it has one: kBurst lines in each window of kWindowNs,
// which starts with the first line after the last window's end.
class LogSite {
 public:
  static constexpr std::uint64_t kWindowNs = 5'000'000'000;
  static constexpr std::uint32_t kBurst = 10;

  struct Verdict {
    bool admitted;
    std::uint64_t suppressed_before;  // lines not admitted since the last one that was
  };
  Verdict admit(std::uint64_t now_ns);

 private:
  Mutex mutex_;  // a leaf: no other lock is taken under it
  bool open_ MAYFLY_GUARDED_BY(mutex_) = false;
  std::uint64_t window_start_ MAYFLY_GUARDED_BY(mutex_) = 0;
  std::uint32_t used_ MAYFLY_GUARDED_BY(mutex_) = 0;
  std::uint64_t suppressed_ MAYFLY_GUARDED_BY(mutex_) = 0;
};

namespace log_detail {

struct Origin {
  const char* file;
  int line;
};

inline constinit std::atomic<LogLevel> g_level{LogLevel::kInfo};

inline bool enabled(LogLevel level) {
  return level <= g_level.load(std::memory_order_relaxed);
}

[[gnu::format(printf, 3, 4)]] void write(LogLevel level, Origin origin, const char* format, ...);
[[gnu::format(printf, 4, 5)]] void write_limited(LogSite& site, LogLevel level, Origin origin,
                                                 const char* format, ...);

// For a signal handler: neither allocates nor locks; knows no module.
void write_from_signal(LogLevel level, Origin origin, std::string_view message) noexcept;

}  // namespace log_detail

}  // namespace mayfly

#define MAYFLY_LOG_ORIGIN                     \
  ::mayfly::log_detail::Origin {              \
    ::mayfly::source_path(__FILE__), __LINE__ \
  }
#define MAYFLY_LOG(level, ...)                                            \
  do {                                                                    \
    if (::mayfly::log_detail::enabled(level)) {                           \
      ::mayfly::log_detail::write(level, MAYFLY_LOG_ORIGIN, __VA_ARGS__); \
    }                                                                     \
  } while (false)
#define MAYFLY_LOG_LIMITED(level, ...)                                                             \
  do {                                                                                             \
    if (::mayfly::log_detail::enabled(level)) {                                                    \
      static constinit ::mayfly::LogSite mayfly_log_site;                                          \
      ::mayfly::log_detail::write_limited(mayfly_log_site, level, MAYFLY_LOG_ORIGIN, __VA_ARGS__); \
    }                                                                                              \
  } while (false)

#define LOG_ERROR(...) MAYFLY_LOG(::mayfly::LogLevel::kError, __VA_ARGS__)
#define LOG_WARN(...) MAYFLY_LOG(::mayfly::LogLevel::kWarn, __VA_ARGS__)
#define LOG_INFO(...) MAYFLY_LOG(::mayfly::LogLevel::kInfo, __VA_ARGS__)
#define LOG_DEBUG(...) MAYFLY_LOG(::mayfly::LogLevel::kDebug, __VA_ARGS__)
#define LOG_TRACE(...) MAYFLY_LOG(::mayfly::LogLevel::kTrace, __VA_ARGS__)
#define LOG_ERROR_LIMITED(...) MAYFLY_LOG_LIMITED(::mayfly::LogLevel::kError, __VA_ARGS__)
#define LOG_WARN_LIMITED(...) MAYFLY_LOG_LIMITED(::mayfly::LogLevel::kWarn, __VA_ARGS__)
#define LOG_INFO_LIMITED(...) MAYFLY_LOG_LIMITED(::mayfly::LogLevel::kInfo, __VA_ARGS__)
#define LOG_DEBUG_LIMITED(...) MAYFLY_LOG_LIMITED(::mayfly::LogLevel::kDebug, __VA_ARGS__)
#define LOG_TRACE_LIMITED(...) MAYFLY_LOG_LIMITED(::mayfly::LogLevel::kTrace, __VA_ARGS__)
