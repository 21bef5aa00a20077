#include "api/http/unix_listener.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#include "support/temp_dir.h"

namespace mayfly::api {
namespace {

using testing::TempDir;

class Umask {
 public:
  explicit Umask(mode_t mask) : before_(::umask(mask)) {}
  ~Umask() { ::umask(before_); }
  Umask(const Umask&) = delete;
  Umask& operator=(const Umask&) = delete;

 private:
  mode_t before_;
};

mode_t mode_of(const std::string& path) {
  struct stat there {};
  EXPECT_EQ(::lstat(path.c_str(), &there), 0) << path;
  return there.st_mode;
}

TEST(UnixListener, its_file_is_a_socket_for_this_user_alone_whatever_the_umask) {
  const TempDir folder;
  for (const mode_t mask : {0000U, 0022U, 0077U, 0277U, 0777U}) {
    const Umask set(mask);
    const auto listener = UnixListener::bind(folder.file("api.sock"));
    ASSERT_TRUE(listener.has_value()) << listener.error().message();
    EXPECT_EQ(mode_of(folder.file("api.sock")), static_cast<mode_t>(S_IFSOCK | 0600)) << std::oct << mask;
  }
}

TEST(UnixListener, its_file_is_gone_at_the_end) {
  const TempDir folder;
  { ASSERT_TRUE(UnixListener::bind(folder.file("api.sock")).has_value()); }
  EXPECT_FALSE(std::filesystem::exists(folder.file("api.sock")));
}

TEST(UnixListener, moved_leaves_the_file_to_its_last_owner) {
  const TempDir folder;
  auto first = UnixListener::bind(folder.file("first"));
  auto second = UnixListener::bind(folder.file("second"));
  ASSERT_TRUE(first.has_value() && second.has_value());
  *second = std::move(*first);
  EXPECT_FALSE(std::filesystem::exists(folder.file("second")));
  {
    const UnixListener owner = std::move(*second);
    EXPECT_EQ(owner.path(), folder.file("first"));
    EXPECT_TRUE(std::filesystem::exists(folder.file("first")));
  }
  EXPECT_FALSE(std::filesystem::exists(folder.file("first")));
}

TEST(UnixListener, another_file_in_its_place_is_left_alone_at_the_end) {
  const TempDir folder;
  {
    const auto listener = UnixListener::bind(folder.file("api.sock"));
    ASSERT_TRUE(listener.has_value());
    ASSERT_EQ(::unlink(folder.file("api.sock").c_str()), 0);
    std::ofstream(folder.file("api.sock")) << "another's";
  }
  EXPECT_EQ(testing::read_file(folder.file("api.sock")), "another's");
}

std::string refusal_at(const std::string& path) {
  const auto listener = UnixListener::bind(path);
  EXPECT_FALSE(listener.has_value());
  EXPECT_EQ(listener ? ErrorCode::kInternal : listener.error().code(), ErrorCode::kBusy);
  std::string message = listener ? "" : listener.error().message();
  EXPECT_NE(message.find(path), std::string::npos);
  EXPECT_EQ(mode_of(path) & S_IFMT, static_cast<mode_t>(S_IFSOCK)) << "what was there stays";
  return message;
}

// A socket of `type` at `path`, bound and nothing else.
UniqueFd bound_socket(const std::string& path, int type) {
  UniqueFd fd(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  // SAFETY: the socket calls take every family's address by this type.
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  return fd;
}

TEST(UnixListener, a_socket_that_is_served_is_an_error_that_names_it_and_says_so) {
  const TempDir folder;
  const auto listener = UnixListener::bind(folder.file("api.sock"));
  ASSERT_TRUE(listener.has_value());
  // As many as can wait, and more.
  for (int attempt = 0; attempt < 100; ++attempt) {
    const std::string said = refusal_at(folder.file("api.sock"));
    EXPECT_NE(said.find("another process serves a socket there; name another path"), std::string::npos)
        << said;
  }
}

TEST(UnixListener, a_socket_left_over_is_an_error_that_names_it_and_says_what_to_do) {
  const TempDir folder;
  bound_socket(folder.file("api.sock"), SOCK_STREAM).reset();
  const std::string said = refusal_at(folder.file("api.sock"));
  EXPECT_NE(said.find("nobody listens"), std::string::npos) << said;
  EXPECT_NE(said.find("remove the file"), std::string::npos) << said;
}

TEST(UnixListener, a_socket_of_another_kind_is_an_error_that_claims_nothing_of_it) {
  const TempDir folder;
  const UniqueFd other = bound_socket(folder.file("api.sock"), SOCK_DGRAM);
  const std::string said = refusal_at(folder.file("api.sock"));
  EXPECT_NE(said.find("cannot be found out"), std::string::npos) << said;
}

TEST(UnixListener, any_other_file_is_an_error_that_leaves_it_as_it_is) {
  const TempDir folder;
  const std::string path = folder.file("disk.img");
  std::ofstream(path) << "precious";
  for (const std::string& taken : {path, folder.file("link"), folder.file("folder")}) {
    if (taken == folder.file("link")) {
      std::filesystem::create_symlink("nowhere", taken);
    } else if (taken == folder.file("folder")) {
      std::filesystem::create_directory(taken);
    }
    const auto listener = UnixListener::bind(taken);
    ASSERT_FALSE(listener.has_value());
    EXPECT_EQ(listener.error().code(), ErrorCode::kBusy);
    EXPECT_NE(listener.error().message().find(taken), std::string::npos);
    EXPECT_NE(listener.error().message().find("name another path"), std::string::npos);
  }
  EXPECT_EQ(testing::read_file(path), "precious");
}

TEST(UnixListener, a_path_that_no_socket_can_have_is_refused) {
  const TempDir folder;
  for (const std::string& path :
       {std::string(), folder.file(std::string(108, 'x')), folder.file(std::string("a\0b", 3))}) {
    const auto listener = UnixListener::bind(path);
    ASSERT_FALSE(listener.has_value());
    EXPECT_EQ(listener.error().code(), ErrorCode::kInvalidArgument);
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.file("")));
}

TEST(UnixListener, the_longest_path_is_bound_whole) {
  const TempDir folder;
  const std::size_t left = sizeof(sockaddr_un{}.sun_path) - 1 - folder.file("").size();
  const std::string path = folder.file(std::string(left, 'x'));
  const auto listener = UnixListener::bind(path);
  ASSERT_TRUE(listener.has_value()) << listener.error().message();
  EXPECT_TRUE(std::filesystem::is_socket(path));
}

TEST(UnixListener, a_folder_that_is_not_there_is_the_hosts_error_with_the_path) {
  const TempDir folder;
  const auto listener = UnixListener::bind(folder.file("no/api.sock"));
  ASSERT_FALSE(listener.has_value());
  EXPECT_EQ(listener.error().code(), ErrorCode::kNotFound);
  EXPECT_NE(listener.error().message().find(folder.file("no/api.sock")), std::string::npos);
}

}  // namespace
}  // namespace mayfly::api
