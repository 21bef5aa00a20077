#include "base/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>
#include <string>
#include <vector>

#include "support/poor_host.h"
#include "support/temp_dir.h"

namespace mayfly {
namespace {

TEST(File, is_read_whole_up_to_the_limit) {
  const testing::TempDir dir;
  const std::string large(100'000, 'x');
  std::ofstream(dir.file("large")) << large;
  EXPECT_EQ(read_file(dir.file("large"), "note", 100'000).value(), large);
  EXPECT_EQ(read_file("/dev/null", "note", 0).value(), "");
}

TEST(File, over_the_limit_is_refused_by_name) {
  const testing::TempDir dir;
  const std::string path = dir.file("note");
  std::ofstream(path) << "123456";
  const auto text = read_file(path, "note", 5);
  ASSERT_FALSE(text);
  EXPECT_EQ(text.error().code(), ErrorCode::kOutOfRange);
  EXPECT_EQ(text.error().message(), "note " + path + ": larger than 5 bytes");
  EXPECT_FALSE(read_file("/dev/zero", "note", 5));
}

TEST(File, errors_name_the_role_and_the_path) {
  EXPECT_EQ(read_file("/nonexistent/x", "note", 5).error().os_errno(), ENOENT);
  EXPECT_EQ(read_file("/", "note", 5).error().message(), "read note /: Is a directory (EISDIR)");
}

// The stretch [offset, offset + size) of the file, or what there is of it.
std::string stretch(const std::string& path, std::uint64_t offset, std::size_t size) {
  const UniqueFd file = open_file(path, O_RDONLY, "test file").value();
  std::string text(size, '\0');
  text.resize(read_at(file, offset, {text.data(), size}, "test file").value());
  return text;
}

TEST(ReadAt, gives_the_stretch_asked_for_and_less_only_at_the_end) {
  const std::string whole = read_file("/proc/self/exe", "test program", std::size_t{1} << 30).value();
  EXPECT_EQ(stretch("/proc/self/exe", 0, whole.size()), whole);
  EXPECT_EQ(stretch("/proc/self/exe", 1, 3), "ELF");
  EXPECT_EQ(stretch("/proc/self/exe", whole.size() - 5, 5), whole.substr(whole.size() - 5));
  EXPECT_EQ(stretch("/proc/self/exe", whole.size() - 5, 10), whole.substr(whole.size() - 5));
  EXPECT_EQ(stretch("/proc/self/exe", whole.size() + 5, 10), "");
  EXPECT_EQ(stretch("/proc/self/exe", 0, 0), "");
}

TEST(ReadAt, a_file_that_comes_in_pieces_is_read_on) {
  constexpr std::size_t kSize = 64 * 1024;
  const UniqueFd file = UniqueFd(::open("/proc/kallsyms", O_RDONLY | O_CLOEXEC));
  std::string piece(kSize, '\0');
  const ssize_t at_once = ::pread(file.get(), piece.data(), kSize, 0);
  if (at_once <= 0 || static_cast<std::size_t>(at_once) == kSize) {
    GTEST_SKIP() << "this host has no file that is known to come in pieces (/proc/kallsyms)";
  }
  EXPECT_EQ(stretch("/proc/kallsyms", 0, kSize).size(), kSize);
}

TEST(ReadAt, errors_name_the_role) {
  std::array<char, 4> buffer;
  const UniqueFd folder = open_file("/", O_RDONLY, "folder").value();
  EXPECT_EQ(read_at(folder, 0, {buffer.data(), 4}, "folder /").error().message(),
            "read folder /: Is a directory (EISDIR)");
  EXPECT_EQ(read_at(UniqueFd(), 0, {buffer.data(), 4}, "nothing").error().os_errno(), EBADF);
}

constexpr std::size_t kPage = 4096;

// A file of numbered pages and a bit, on the disk.
class ReadPastCache : public ::testing::Test {
 protected:
  ReadPastCache() {
    for (std::size_t page = 0; page < kPages; ++page) {
      whole_.append(kPage, static_cast<char>('a' + page % 26));
    }
    whole_.append("the end");
    std::ofstream(path_) << whole_;
    EXPECT_EQ(::fsync(file_.get()), 0);
  }

  void drop() const { EXPECT_EQ(::posix_fadvise(file_.get(), 0, 0, POSIX_FADV_DONTNEED), 0); }
  // The pages that the page cache has of it.
  std::size_t cached() const {
    void* const start = ::mmap(nullptr, whole_.size(), PROT_READ, MAP_SHARED, file_.get(), 0);
    std::vector<unsigned char> there(kPages + 1);
    EXPECT_EQ(::mincore(start, whole_.size(), there.data()), 0);
    ::munmap(start, whole_.size());
    return static_cast<std::size_t>(
        std::count_if(there.begin(), there.end(), [](unsigned char page) { return (page & 1) != 0; }));
  }
  std::string past_cache(std::size_t offset, std::size_t size) const {
    void* const start = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const auto got = read_past_cache(file_, offset, {start, size}, "test file");
    std::string text(static_cast<const char*>(start), got.value());
    ::munmap(start, size);
    return text;
  }

  static constexpr std::size_t kPages = 2048;
  const testing::TempDir dir_;
  const std::string path_ = dir_.file("pages");
  std::string whole_;
  const UniqueFd file_ = open_file(path_, O_RDWR | O_CREAT, "test file").value();
};

TEST_F(ReadPastCache, gives_what_is_cached_what_is_not_and_both) {
  for (const std::size_t ahead : {std::size_t{0}, std::size_t{1}, std::size_t{100}, kPages}) {
    drop();
    ASSERT_EQ(stretch(path_, 0, ahead * kPage), whole_.substr(0, ahead * kPage));
    EXPECT_EQ(past_cache(0, kPages * kPage), whole_.substr(0, kPages * kPage));
    EXPECT_EQ(past_cache(5 * kPage, 7 * kPage), whole_.substr(5 * kPage, 7 * kPage));
  }
}

TEST_F(ReadPastCache, takes_any_stretch_and_gives_less_only_at_the_end) {
  for (const bool cold : {true, false}) {
    if (cold) {
      drop();
    }
    EXPECT_EQ(past_cache(3, 5000), whole_.substr(3, 5000));
    EXPECT_EQ(past_cache(0, whole_.size() + 10), whole_);
    EXPECT_EQ(past_cache(kPage, 2 * whole_.size()), whole_.substr(kPage));
    EXPECT_EQ(past_cache(whole_.size() + kPage, kPage), "");
    EXPECT_EQ(past_cache(0, kPage + 1), whole_.substr(0, kPage + 1));
  }
}

TEST_F(ReadPastCache, leaves_the_page_cache_and_the_open_file_as_they_were) {
  const int flags = ::fcntl(file_.get(), F_GETFL);
  const bool direct = ::fcntl(file_.get(), F_SETFL, flags | O_DIRECT) == 0;
  ::fcntl(file_.get(), F_SETFL, flags);
  drop();
  if (!direct || cached() != 0) {
    GTEST_SKIP() << "this file system has no reads past the page cache, or keeps files nowhere else";
  }
  EXPECT_EQ(past_cache(0, kPages * kPage).size(), kPages * kPage);
  EXPECT_EQ(cached(), 0U);
  EXPECT_EQ(::fcntl(file_.get(), F_GETFL), flags);
}

TEST_F(ReadPastCache, where_the_host_cannot_reads_all_the_same_or_says_why) {
  testing::where_refused(SYS_fcntl, EINVAL,
                         [&] { EXPECT_EQ(past_cache(0, kPages * kPage), whole_.substr(0, kPages * kPage)); });
  testing::where_refused(SYS_pread64, EIO, [&] {
    const auto got = read_past_cache(file_, 0, {whole_.data(), kPages * kPage}, "test file");
    ASSERT_FALSE(got);
    EXPECT_EQ(got.error().message(), "read test file: Input/output error (EIO)");
  });
}

TEST(WriteAt, puts_the_bytes_where_they_are_wanted_and_names_what_fails) {
  const testing::TempDir dir;
  const UniqueFd file = open_file(dir.file("note"), O_RDWR | O_CREAT, "note").value();
  std::string text = "abc";
  ASSERT_TRUE(write_at(file, 5, {text.data(), 3}, "note"));
  ASSERT_TRUE(write_at(file, 1, {text.data(), 1}, "note"));
  ASSERT_TRUE(write_at(file, 100, {text.data(), 0}, "note"));
  EXPECT_EQ(testing::read_file(dir.file("note")), std::string("\0a\0\0\0abc", 8));
  const UniqueFd full = open_file("/dev/full", O_WRONLY, "note").value();
  const auto written = write_at(full, 0, {text.data(), 3}, "note x");
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code(), ErrorCode::kExhausted);
  EXPECT_EQ(written.error().message(), "write note x: No space left on device (ENOSPC)");
}

}  // namespace
}  // namespace mayfly
