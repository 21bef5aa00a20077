#include "vmm/boot_trace.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "support/temp_dir.h"

namespace mayfly {
namespace {

using std::chrono::microseconds;
using testing::read_lines;
using testing::TempDir;

// One line of the file, which holds one event.
struct Line {
  std::string name;
  char kind = '?';  // X: from ts on for dur; i: at ts
  double ts = -1;
  double dur = -1;
  int pid = 0;
  int tid = 0;
};

// Reads the file strictly by the form that write() documents: any other fails. (JSON readers are not of this
// room; the tests of the whole program load such files by one.)
std::vector<Line> read_trace(const std::string& path) {
  const std::vector<std::string> lines = read_lines(path);
  std::vector<Line> events;
  if (lines.size() < 3 || lines.front() != R"({"displayTimeUnit":"ms","traceEvents":[)" ||
      lines.back() != "]}") {
    ADD_FAILURE() << "not a trace, " << lines.size() << " lines";
    return events;
  }
  for (std::size_t i = 1; i + 1 < lines.size(); ++i) {
    const bool last = i + 2 == lines.size();
    Line event;
    std::array<char, 64> name{};
    std::array<char, 4> end{};
    if (std::sscanf(lines[i].c_str(), R"({"name":"%63[^"]","ph":"X","ts":%lf,"dur":%lf,"pid":%d,"tid":%d%3s)",
                    name.data(), &event.ts, &event.dur, &event.pid, &event.tid, end.data()) == 6) {
      event.kind = 'X';
    } else if (std::sscanf(lines[i].c_str(),
                           R"({"name":"%63[^"]","ph":"i","s":"p","ts":%lf,"pid":%d,"tid":%d%3s)", name.data(),
                           &event.ts, &event.pid, &event.tid, end.data()) == 5) {
      event.kind = 'i';
    }
    EXPECT_NE(event.kind, '?') << lines[i];
    EXPECT_STREQ(end.data(), last ? "}" : "},") << lines[i];
    event.name = name.data();
    events.push_back(event);
  }
  return events;
}

std::unique_ptr<BootTrace> make_trace(const std::string& path,
                                      BootTrace::Clock::time_point start = BootTrace::Clock::now()) {
  auto trace = BootTrace::create(path, start);
  EXPECT_TRUE(trace.has_value());
  return std::move(*trace);
}

TEST(BootTrace, it_begins_with_the_start_of_the_process_at_zero) {
  const TempDir dir;
  const auto trace = make_trace(dir.file("t"), BootTrace::Clock::now() - microseconds(500));
  trace->mark("later");
  ASSERT_TRUE(trace->write());
  const auto events = read_trace(dir.file("t"));
  ASSERT_EQ(events.size(), 2U);
  EXPECT_EQ(events[0].name, "process start");
  EXPECT_EQ(events[0].kind, 'i');
  EXPECT_EQ(events[0].ts, 0.0);
  EXPECT_EQ(events[1].name, "later");
  EXPECT_GE(events[1].ts, 500.0);
  EXPECT_EQ(events[1].pid, ::getpid());
  EXPECT_EQ(events[1].tid, ::gettid());
}

TEST(BootTrace, only_the_first_mark_of_a_name_is_kept_and_every_phase) {
  const TempDir dir;
  const auto trace = make_trace(dir.file("t"));
  trace->mark("exit");
  trace->mark("other");
  trace->mark("exit");
  trace->phase("exit", BootTrace::Clock::now());
  trace->phase("exit", BootTrace::Clock::now());
  ASSERT_TRUE(trace->write());
  std::map<std::string, std::string> kinds;
  for (const Line& event : read_trace(dir.file("t"))) {
    kinds[event.name] += event.kind;
  }
  EXPECT_EQ(kinds["exit"], "iXX");
  EXPECT_EQ(kinds["other"], "i");
}

TEST(BootTrace, a_phase_within_a_phase_lies_within_its_time) {
  const TempDir dir;
  const auto trace = make_trace(dir.file("t"));
  {
    const TracePhase outer(trace.get(), "outer");
    { const TracePhase inner(trace.get(), "inner"); }
    trace->mark("between");
  }
  ASSERT_TRUE(trace->write());
  std::map<std::string, Line> events;
  for (const Line& event : read_trace(dir.file("t"))) {
    events[event.name] = event;
  }
  const Line outer = events["outer"];
  const Line inner = events["inner"];
  // The file gives nanoseconds rounded once for the begin and once for the length.
  constexpr double kRounding = 0.002;
  EXPECT_LE(outer.ts, inner.ts);
  EXPECT_LE(inner.ts + inner.dur, outer.ts + outer.dur + kRounding);
  EXPECT_LE(inner.ts + inner.dur, events["between"].ts + kRounding);
  EXPECT_LE(events["between"].ts, outer.ts + outer.dur + kRounding);
}

TEST(BootTrace, without_a_trace_a_phase_records_nothing) {
  const TracePhase phase(nullptr, "nothing");
}

TEST(BootTrace, threads_record_side_by_side_under_their_own_ids) {
  const TempDir dir;
  const auto trace = make_trace(dir.file("t"));
  constexpr int kPhases = 100;
  std::array<std::thread, 4> threads;
  for (auto& thread : threads) {
    thread = std::thread([&trace] {
      for (int n = 0; n < kPhases; ++n) {
        const TracePhase phase(trace.get(), "work");
        trace->mark("mark");
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  ASSERT_TRUE(trace->write());
  std::map<int, int> phases;
  int marks = 0;
  for (const Line& event : read_trace(dir.file("t"))) {
    (event.kind == 'X' ? phases[event.tid] : marks) += 1;
  }
  EXPECT_EQ(marks, 2);  // with the start of the process
  EXPECT_EQ(phases.size(), 4U);
  for (const auto& [thread, count] : phases) {
    EXPECT_EQ(count, kPhases) << thread;
  }
}

TEST(BootTrace, what_was_in_the_file_is_gone_before_anything_runs) {
  const TempDir dir;
  const std::string path = dir.file("t");
  std::ofstream(path) << std::string(100'000, 'x');
  const auto trace = make_trace(path);
  EXPECT_EQ(testing::read_file(path), "");
  ASSERT_TRUE(trace->write());
  EXPECT_EQ(read_trace(path).size(), 1U);
}

TEST(BootTrace, a_file_that_is_made_is_for_its_owner_only) {
  const TempDir dir;
  const auto trace = make_trace(dir.file("t"));
  struct stat status {};
  ASSERT_EQ(::stat(dir.file("t").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777U, 0600U);
}

TEST(BootTrace, a_path_that_cannot_be_written_is_an_error_that_names_it) {
  const TempDir dir;
  const auto now = BootTrace::Clock::now();
  const auto missing = BootTrace::create(dir.file("no/such"), now);
  ASSERT_FALSE(missing.has_value());
  EXPECT_EQ(missing.error().message(),
            "open boot trace " + dir.file("no/such") + ": No such file or directory (ENOENT)");
  const auto folder = BootTrace::create(dir.file(""), now);
  ASSERT_FALSE(folder.has_value());
  EXPECT_NE(folder.error().message().find(dir.file("")), std::string::npos);
}

TEST(BootTrace, a_device_that_takes_nothing_is_an_error_of_the_writing) {
  auto trace = BootTrace::create("/dev/full", BootTrace::Clock::now());
  ASSERT_TRUE(trace.has_value());
  const auto written = (*trace)->write();
  ASSERT_FALSE(written.has_value());
  EXPECT_EQ(written.error().message(), "write boot trace /dev/full: No space left on device (ENOSPC)");
}

TEST(BootTrace, a_fifo_needs_no_reader_to_be_there) {
  const TempDir dir;
  const auto trace = make_trace(dir.fifo("fifo"));
  EXPECT_TRUE(trace->write());
}

}  // namespace
}  // namespace mayfly
