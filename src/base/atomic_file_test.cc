#include "base/atomic_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/file.h"
#include "support/poor_host.h"
#include "support/temp_dir.h"

namespace mayfly {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> names_in(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

Result<void> put(const AtomicFile& file, std::string text) {
  return write_at(file.descriptor(), 0, {text.data(), text.size()}, file.name());
}

Result<void> replace(const std::string& path, std::string text) {
  MAYFLY_TRY_ASSIGN(AtomicFile file, AtomicFile::create(path, "note"));
  MAYFLY_TRY(put(file, std::move(text)));
  return file.commit();
}

// Hosts on which the file is unnamed until the end, and those on which it cannot be.
enum class Host : std::uint8_t { kWhole, kNoUnnamedFiles, kNoNamesForThem };

void become(Host host) {
  if (host == Host::kNoUnnamedFiles) {
    testing::refuse_call(SYS_openat, 2, O_TMPFILE & ~O_DIRECTORY, EOPNOTSUPP);
  } else if (host == Host::kNoNamesForThem) {
    testing::refuse_call(SYS_linkat, 4, 0, ENOENT);
  }
}

// NOLINTNEXTLINE(readability-identifier-naming): GoogleTest looks for this name
void PrintTo(Host host, std::ostream* out) {
  *out << std::array{"whole", "no O_TMPFILE", "no linkat"}.at(static_cast<std::size_t>(host));
}

class EveryHost : public ::testing::TestWithParam<Host> {
 protected:
  // A filter holds for the thread that loads it.
  static void on_host(const std::function<void()>& body) {
    std::thread([&body] {
      become(GetParam());
      body();
    }).join();
  }

  const testing::TempDir dir_;
  const std::string folder_ = std::filesystem::path(dir_.file("x")).parent_path().string();
  const std::string path_ = dir_.file("note");
};
INSTANTIATE_TEST_SUITE_P(AtomicFile, EveryHost,
                         ::testing::Values(Host::kWhole, Host::kNoUnnamedFiles, Host::kNoNamesForThem));

TEST_P(EveryHost, a_file_appears_whole_at_publish_and_replaces_the_former_one) {
  on_host([this] {
    for (const std::string text : {"first", "second, which is longer", "3"}) {
      const std::string before = testing::read_file(path_);
      auto file = AtomicFile::create(path_, "note");
      ASSERT_TRUE(file) << file.error().message();
      EXPECT_EQ(file->name(), "note " + path_);
      ASSERT_TRUE(put(*file, text));
      EXPECT_EQ(testing::read_file(path_), before);
      ASSERT_TRUE(file->sync());
      EXPECT_EQ(testing::read_file(path_), before);
      const auto published = file->publish();
      ASSERT_TRUE(published) << published.error().message();
      EXPECT_EQ(testing::read_file(path_), text);
      EXPECT_THAT(names_in(folder_), ElementsAre("note"));
    }
  });
}

TEST_P(EveryHost, who_has_the_former_file_open_keeps_it) {
  on_host([this] {
    ASSERT_TRUE(replace(path_, "former"));
    const UniqueFd former = open_file(path_, O_RDONLY, "note").value();
    ASSERT_TRUE(replace(path_, "n"));
    std::string seen(6, ' ');
    EXPECT_EQ(read_at(former, 0, {seen.data(), seen.size()}, "note").value(), 6U);
    EXPECT_EQ(seen, "former");
  });
}

TEST_P(EveryHost, a_file_that_is_given_up_leaves_nothing) {
  on_host([this] {
    ASSERT_TRUE(replace(path_, "former"));
    {
      auto file = AtomicFile::create(path_, "note").value();
      ASSERT_TRUE(put(file, "half"));
      const AtomicFile moved = std::move(file);
    }
    EXPECT_EQ(testing::read_file(path_), "former");
    EXPECT_THAT(names_in(folder_), ElementsAre("note"));
  });
}

TEST_P(EveryHost, a_name_that_no_longer_can_be_had_is_an_error_and_leaves_nothing) {
  on_host([this] {
    auto file = AtomicFile::create(path_, "note").value();
    ASSERT_EQ(::mkdir(path_.c_str(), 0700), 0);
    const auto done = file.commit();
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().message(), "name note " + path_ + ": Is a directory (EISDIR)");
  });
  EXPECT_THAT(names_in(folder_), ElementsAre("note"));
}

TEST_P(EveryHost, a_pair_is_published_over_a_former_one_and_where_there_was_none) {
  on_host([this] {
    for (const std::string text : {"first", "second"}) {
      auto one = AtomicFile::create(path_, "note").value();
      auto other = AtomicFile::create(dir_.file("other"), "note").value();
      ASSERT_TRUE(put(one, text) && put(other, "other " + text));
      ASSERT_TRUE(one.sync() && other.sync());
      const auto published = AtomicFile::publish_pair(one, other);
      ASSERT_TRUE(published) << published.error().message();
      EXPECT_EQ(testing::read_file(path_), text);
      EXPECT_EQ(testing::read_file(dir_.file("other")), "other " + text);
      EXPECT_THAT(names_in(folder_), ElementsAre("note", "other"));
    }
  });
}

TEST_P(EveryHost, a_pair_of_which_the_second_gets_no_name_says_that_the_first_has_one) {
  on_host([this] {
    auto one = AtomicFile::create(path_, "note").value();
    auto other = AtomicFile::create(dir_.file("other"), "note").value();
    ASSERT_EQ(::mkdir(dir_.file("other").c_str(), 0700), 0);
    ASSERT_TRUE(one.sync() && other.sync());
    const auto published = AtomicFile::publish_pair(one, other);
    ASSERT_FALSE(published);
    EXPECT_EQ(published.error().message(), "note " + path_ +
                                               " is the new one, its other half is not: name note " +
                                               dir_.file("other") + ": Is a directory (EISDIR)");
  });
  EXPECT_THAT(names_in(folder_), ElementsAre("note", "other"));
}

TEST_P(EveryHost, a_pair_of_which_the_second_is_written_by_another_stays_what_it_was) {
  on_host([this] {
    ASSERT_TRUE(replace(path_, "former") && replace(dir_.file("other"), "former"));
    auto one = AtomicFile::create(path_, "note").value();
    auto other = AtomicFile::create(dir_.file("other"), "note").value();
    ASSERT_TRUE(put(one, "new") && one.sync() && other.sync());
    const std::string partial = dir_.file(".other.partial");
    std::filesystem::remove(partial);
    const UniqueFd living = open_file(partial, O_RDWR | O_CREAT, "other").value();
    ASSERT_EQ(::flock(living.get(), LOCK_EX), 0);
    const auto published = AtomicFile::publish_pair(one, other);
    if (GetParam() == Host::kWhole) {
      ASSERT_FALSE(published);
      EXPECT_EQ(published.error().code(), ErrorCode::kBusy);
      EXPECT_EQ(testing::read_file(path_), "former");
    }
  });
}

TEST_P(EveryHost, a_dead_writers_leftover_is_removed) {
  on_host([this] {
    ASSERT_TRUE(replace(path_, "former"));
    std::ofstream(dir_.file(".note.partial")) << "left";
    ASSERT_TRUE(replace(path_, "new"));
    EXPECT_EQ(testing::read_file(path_), "new");
    EXPECT_THAT(names_in(folder_), ElementsAre("note"));
  });
}

TEST_P(EveryHost, a_living_writers_file_is_left_to_it) {
  on_host([this] {
    ASSERT_TRUE(replace(path_, "former"));
    const std::string partial = dir_.file(".note.partial");
    const UniqueFd living = open_file(partial, O_RDWR | O_CREAT, "other").value();
    ASSERT_EQ(::flock(living.get(), LOCK_EX), 0);
    const auto done = replace(path_, "new");
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().code(), ErrorCode::kBusy);
    EXPECT_THAT(done.error().message(), HasSubstr("note " + path_ + ": it is being written by another"));
    EXPECT_EQ(testing::read_file(path_), "former");
    EXPECT_THAT(names_in(folder_), ElementsAre(".note.partial", "note"));
  });
}

// Ten thousand bytes, all the same but for the letter: whole, and of one generation.
std::string generation(std::uint64_t number) {
  return std::string(10'000 + number % 10, static_cast<char>('a' + number % 10));
}

bool is_generation(const std::string& text) {
  return !text.empty() && text == generation(static_cast<std::uint64_t>(text[0] - 'a'));
}

TEST_P(EveryHost, a_writer_killed_at_any_moment_leaves_one_whole_file) {
  ASSERT_TRUE(replace(path_, generation(0)));
  std::mt19937 random(7);  // NOLINT(cert-msc51-cpp): the same run each time
  for (int round = 0; round < 40; ++round) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      become(GetParam());
      for (std::uint64_t number = 0;; ++number) {
        if (!replace(path_, generation(number))) {
          ::_exit(1);
        }
      }
    }
    ::usleep(static_cast<useconds_t>(random() % 6000));
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "round " << round;
    ASSERT_TRUE(is_generation(testing::read_file(path_))) << "round " << round;
    for (const std::string& name : names_in(folder_)) {
      ASSERT_TRUE(name == "note" || name == ".note.partial") << name;
    }
  }
  ASSERT_TRUE(replace(path_, generation(1)));
  EXPECT_EQ(testing::read_file(path_), generation(1));
}

TEST_P(EveryHost, writers_of_one_file_at_once_leave_a_whole_one) {
  std::vector<std::thread> writers;
  for (std::uint64_t writer = 0; writer < 3; ++writer) {
    writers.emplace_back([this, writer] {
      become(GetParam());
      for (std::uint64_t number = 0; number < 60; ++number) {
        const auto done = replace(path_, generation(writer + number));
        EXPECT_TRUE(done || done.error().code() == ErrorCode::kBusy) << done.error().message();
        const std::string seen = testing::read_file(path_);
        EXPECT_TRUE(seen.empty() || is_generation(seen));
      }
    });
  }
  for (std::thread& writer : writers) {
    writer.join();
  }
  ASSERT_TRUE(replace(path_, generation(5)));
  EXPECT_EQ(testing::read_file(path_), generation(5));
  EXPECT_THAT(names_in(folder_), ElementsAre("note"));
}

TEST(AtomicFile, the_file_is_its_owners_alone_unless_a_mode_is_given) {
  const testing::TempDir dir;
  const auto mode_of = [&dir](mode_t mode) {
    auto file = AtomicFile::create(dir.file("note"), "note", mode).value();
    struct stat stat {};
    EXPECT_EQ(::fstat(file.descriptor().get(), &stat), 0);
    return stat.st_mode & 07777U;
  };
  EXPECT_EQ(mode_of(0600), 0600U);
  EXPECT_EQ(mode_of(0400), 0400U);
}

TEST(AtomicFile, what_a_file_must_not_replace_is_refused_by_name) {
  const testing::TempDir dir;
  ASSERT_EQ(::symlink("elsewhere", dir.file("link").c_str()), 0);
  ASSERT_EQ(::mkdir(dir.file("folder").c_str(), 0700), 0);
  dir.fifo("fifo");
  for (const std::string name : {"link", "folder", "fifo"}) {
    const auto file = AtomicFile::create(dir.file(name), "note");
    ASSERT_FALSE(file) << name;
    EXPECT_EQ(file.error().code(), ErrorCode::kInvalidArgument);
    EXPECT_EQ(file.error().message(), "note " + dir.file(name) + ": exists and is not a regular file");
  }
  const auto device = AtomicFile::create("/dev/null", "note");
  ASSERT_FALSE(device);
  for (const std::string path : {"", "/", "a/", ".", "a/..", "/."}) {
    const auto file = AtomicFile::create(path, "note");
    ASSERT_FALSE(file) << path;
    EXPECT_EQ(file.error().message(), "note " + path + ": the path names no file");
  }
  const auto long_name = AtomicFile::create(dir.file(std::string(247, 'x')), "note");
  ASSERT_FALSE(long_name);
  EXPECT_THAT(long_name.error().message(), HasSubstr("longer than 246 bytes"));
  EXPECT_TRUE(replace(dir.file(std::string(246, 'x')), "1"));
  EXPECT_TRUE(replace(dir.file(std::string(246, 'x')), "2"));
}

TEST(AtomicFile, a_directory_that_is_not_there_is_named) {
  const auto file = AtomicFile::create("/nonexistent/note", "note");
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().message(),
            "open directory of note /nonexistent/: No such file or directory (ENOENT)");
}

TEST(AtomicFile, a_path_without_a_directory_is_of_the_working_directory) {
  const testing::TempDir dir;
  const auto before = std::filesystem::current_path();
  std::filesystem::current_path(std::filesystem::path(dir.file("x")).parent_path());
  const auto done = replace("note", "here");
  std::filesystem::current_path(before);
  ASSERT_TRUE(done) << done.error().message();
  EXPECT_EQ(testing::read_file(dir.file("note")), "here");
}

// What a child makes of it, whose limits are its own.
int outcome_of(const std::function<bool()>& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::_exit(body() ? 0 : 1);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(AtomicFile, a_file_over_the_limit_leaves_the_former_one) {
  const testing::TempDir dir;
  ASSERT_TRUE(replace(dir.file("note"), "former"));
  EXPECT_EQ(outcome_of([&dir] {
              ::signal(SIGXFSZ, SIG_IGN);
              const rlimit limit = {5000, 5000};
              ::setrlimit(RLIMIT_FSIZE, &limit);
              const auto done = replace(dir.file("note"), generation(3));
              return !done &&
                     done.error().message() == "write note " + dir.file("note") + ": File too large (EFBIG)";
            }),
            0);
  EXPECT_EQ(testing::read_file(dir.file("note")), "former");
  EXPECT_THAT(names_in(std::filesystem::path(dir.file("x")).parent_path()), ElementsAre("note"));
}

TEST(AtomicFile, a_full_file_system_keeps_the_former_one) {
  const testing::TempDir dir;
  const std::string mount = std::filesystem::path(dir.file("x")).parent_path();
  constexpr int kNoMounts = 77;
  const int outcome = outcome_of([&] {
    // A user's namespace where the process may not mount by itself.
    if (::unshare(CLONE_NEWNS) != 0 && ::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) {
      ::_exit(kNoMounts);
    }
    if (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("none", mount.c_str(), "tmpfs", 0, "size=64k") != 0) {
      ::_exit(kNoMounts);
    }
    const std::string path = dir.file("note");
    if (!replace(path, generation(1))) {
      return false;
    }
    const auto done = replace(path, std::string(100'000, 'x'));
    return !done && done.error().code() == ErrorCode::kExhausted &&
           done.error().message() == "write note " + path + ": No space left on device (ENOSPC)" &&
           testing::read_file(path) == generation(1) && names_in(mount).size() == 1 &&
           replace(path, generation(2)).has_value() && testing::read_file(path) == generation(2);
  });
  if (outcome == kNoMounts) {
    GTEST_SKIP() << "no right to mount a small file system";
  }
  EXPECT_EQ(outcome, 0);
}

// What the disk says at the end counts as much as what it says at a write.
TEST(AtomicFile, a_failing_sync_leaves_the_former_file) {
  const testing::TempDir dir;
  ASSERT_TRUE(replace(dir.file("note"), "former"));
  std::thread([&dir] {
    auto file = AtomicFile::create(dir.file("note"), "note").value();
    ASSERT_TRUE(put(file, "new"));
    testing::refuse_call(SYS_fsync, 0, 0, EIO);
    const auto done = file.commit();
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().message(),
              "write to the disk note " + dir.file("note") + ": Input/output error (EIO)");
  }).join();
  EXPECT_EQ(testing::read_file(dir.file("note")), "former");
}

TEST(AtomicFile, a_file_that_is_synced_by_pieces_is_given_up_between_two_or_is_as_one_that_is_synced) {
  const testing::TempDir dir;
  ASSERT_TRUE(replace(dir.file("note"), "former"));
  constexpr off_t kPieces = 3;
  for (const bool to_the_end : {false, true}) {
    auto file = AtomicFile::create(dir.file("note"), "note").value();
    ASSERT_EQ(::ftruncate(file.descriptor().get(), (kPieces - 1) * AtomicFile::kSyncPiece + 1), 0);
    int asked = 0;
    const auto synced = file.sync_by_pieces([&] { return ++asked < 2 || to_the_end; });
    EXPECT_EQ(asked, to_the_end ? kPieces : 2);
    ASSERT_EQ(synced.has_value(), to_the_end);
    if (!synced) {
      EXPECT_EQ(synced.error().code(), ErrorCode::kBusy);
      continue;
    }
    EXPECT_EQ(testing::read_file(dir.file("note")), "former");
    EXPECT_TRUE(file.publish());
  }
  EXPECT_NE(testing::read_file(dir.file("note")), "former");
  EXPECT_THAT(names_in(dir.file("")), ElementsAre("note"));
}

TEST(AtomicFile, a_piece_that_cannot_be_written_to_the_disk_leaves_the_former_file) {
  const testing::TempDir dir;
  ASSERT_TRUE(replace(dir.file("note"), "former"));
  std::thread([&dir] {
    auto file = AtomicFile::create(dir.file("note"), "note").value();
    ASSERT_TRUE(put(file, "new"));
    testing::refuse_call(SYS_sync_file_range, 0, 0, EIO);
    const auto done = file.sync_by_pieces([] { return true; });
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().message(),
              "write to the disk note " + dir.file("note") + ": Input/output error (EIO)");
  }).join();
  EXPECT_EQ(testing::read_file(dir.file("note")), "former");
}

TEST(AtomicFile, a_directory_that_cannot_be_synced_is_told_with_the_new_file_in_place) {
  const testing::TempDir dir;
  std::thread([&dir] {
    auto file = AtomicFile::create(dir.file("note"), "note").value();
    ASSERT_TRUE(put(file, "new"));
    ASSERT_TRUE(file.sync());
    testing::refuse_call(SYS_fsync, 0, 0, EIO);
    const auto done = file.publish();
    ASSERT_FALSE(done);
    EXPECT_THAT(done.error().message(), HasSubstr("it stands under its name"));
  }).join();
  EXPECT_EQ(testing::read_file(dir.file("note")), "new");
}

TEST(AtomicFile, publishing_what_was_not_synced_aborts) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const testing::TempDir dir;
  auto file = AtomicFile::create(dir.file("note"), "note").value();
  EXPECT_DEATH(static_cast<void>(file.publish()), "after it was synced");
}

}  // namespace
}  // namespace mayfly
