#include "vmm/boot_trace.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <utility>

#include "base/line_sink.h"

namespace mayfly {
namespace {

constexpr std::size_t kUsual = 64;

double microseconds(BootTrace::Clock::duration duration) {
  return std::chrono::duration<double, std::micro>(duration).count();
}

}  // namespace

Result<std::unique_ptr<BootTrace>> BootTrace::create(const std::string& path, Clock::time_point start) {
  MAYFLY_TRY_ASSIGN(UniqueFd file, open_line_file(path, "boot trace", O_TRUNC));
  return std::unique_ptr<BootTrace>(new BootTrace(std::move(file), path, start));
}

BootTrace::BootTrace(UniqueFd file, const std::string& path, Clock::time_point start)
    : file_(std::move(file)), path_(path), start_(start) {
  // For all that a start records: vCPUs' threads, which do as well, had better need no memory.
  events_.reserve(kUsual);
  mark("process start");
  events_.back().begin = start;
}

void BootTrace::record(Event event) {
  const MutexLock lock(mutex_);
  const bool known = event.is_mark && std::any_of(events_.begin(), events_.end(), [&](const Event& other) {
                       return other.is_mark && other.name == event.name;
                     });
  if (!known) {
    events_.push_back(std::move(event));
  }
}

void BootTrace::phase(std::string_view name, Clock::time_point begin) {
  phase({name, begin, Clock::now(), ::gettid()});
}

void BootTrace::phase(const Phase& phase) {
  record({std::string(phase.name), phase.begin, phase.end - phase.begin, false, phase.thread_id});
}

void BootTrace::mark(std::string_view name) {
  record({std::string(name), Clock::now(), {}, true, ::gettid()});
}

std::string BootTrace::text() const {
  // The names are this project's own: none needs escaping in JSON.
  std::string text = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n";
  {
    const MutexLock lock(mutex_);
    std::array<char, 256> line;
    for (std::size_t i = 0; i < events_.size(); ++i) {
      const Event& event = events_[i];
      const double begin = microseconds(event.begin - start_);
      const char* separator = i == 0 ? "" : ",\n";
      if (event.is_mark) {
        std::snprintf(line.data(), line.size(),
                      "%s{\"name\":\"%s\",\"ph\":\"i\",\"s\":\"p\",\"ts\":%.3f,\"pid\":%d,\"tid\":%d}",
                      separator, event.name.c_str(), begin, ::getpid(), event.thread_id);
      } else {
        std::snprintf(line.data(), line.size(),
                      "%s{\"name\":\"%s\",\"ph\":\"X\",\"ts\":%.3f,\"dur\":%.3f,\"pid\":%d,\"tid\":%d}",
                      separator, event.name.c_str(), begin, microseconds(event.length), ::getpid(),
                      event.thread_id);
      }
      text.append(line.data());
    }
  }
  text.append("\n]}\n");
  return text;
}

Result<void> BootTrace::write() const {
  const std::string all = text();
  for (std::string_view rest = all; !rest.empty();) {
    const ssize_t count = ::write(file_.get(), rest.data(), rest.size());
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count < 0) {
      return fail_errno(errno, "write boot trace " + path_);
    }
    rest.remove_prefix(static_cast<std::size_t>(count));
  }
  return {};
}

}  // namespace mayfly
