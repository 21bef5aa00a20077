#include "memory/userfault.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/file.h"
#include "memory/memory_file.h"
#include "support/poor_host.h"

namespace mayfly {
namespace {

using ::testing::HasSubstr;

using Bytes = std::vector<std::byte>;

constexpr std::uint64_t kPage = 4096;

struct Region {
  std::uint64_t base = 0;
  std::uint64_t size = 0;
  std::uint64_t offset = 0;
  std::uint64_t page_size = 0;
};

std::vector<GuestRange> two_ranges() {
  return {GuestRange::make(GuestAddress(0), 60 * kPage).value(),
          GuestRange::make(GuestAddress(1ULL << 32), 40 * kPage).value()};
}

Bytes saved_memory() {
  Bytes bytes(100 * kPage);
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    bytes[at] = static_cast<std::byte>(at / kPage * 3 + at % 251);
  }
  return bytes;
}

std::pair<UniqueFd, UniqueFd> socket_pair() {
  std::array<int, 2> ends{};
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

// A handler of page faults that knows of its guest what came through the socket, and the saved memory.
class Handler {
 public:
  explicit Handler(UniqueFd socket) : socket_(std::move(socket)) {}
  Handler(const Handler&) = delete;
  Handler& operator=(const Handler&) = delete;
  ~Handler() { stop(); }

  // One call, as handlers of the dialect do.
  void receive() {
    std::array<char, 4096> text{};
    iovec bytes = {text.data(), text.size() - 1};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    msghdr message{};
    message.msg_iov = &bytes;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    ASSERT_GT(::recvmsg(socket_.get(), &message, MSG_CMSG_CLOEXEC), 0);
    const cmsghdr* header = CMSG_FIRSTHDR(&message);
    ASSERT_NE(header, nullptr);
    ASSERT_EQ(header->cmsg_type, SCM_RIGHTS);
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(header), sizeof(fd));
    fd_ = UniqueFd(fd);
    text_ = text.data();
    for (const char* at = text.data(); at != nullptr; at = std::strstr(at + 1, "{")) {
      Region region;
      if (std::sscanf(at + (*at == '[' ? 1 : 0),
                      R"({"base_host_virt_addr":%)" SCNu64 R"(,"size":%)" SCNu64 R"(,"offset":%)" SCNu64
                      R"(,"page_size":%)" SCNu64,
                      &region.base, &region.size, &region.offset, &region.page_size) == 4 &&
          (regions_.empty() || regions_.back().base != region.base)) {
        regions_.push_back(region);
      }
    }
  }

  void serve() {
    thread_ = std::thread([this] {
      while (!stop_) {
        pollfd ready = {fd_.get(), POLLIN, 0};
        if (::poll(&ready, 1, 10) == 1) {
          serve_one();
        }
      }
    });
  }

  void stop() {
    stop_ = true;
    if (thread_.joinable()) {
      thread_.join();
    }
  }

  const std::vector<Region>& regions() const { return regions_; }
  const std::string& text() const { return text_; }
  int served() const { return served_; }
  int removed() const { return removed_; }  // after stop()

 private:
  void serve_one() {
    uffd_msg event{};
    if (::read(fd_.get(), &event, sizeof(event)) != sizeof(event)) {
      return;
    }
    if (event.event == UFFD_EVENT_REMOVE) {
      ++removed_;
      return;
    }
    for (const Region& region : regions_) {
      const std::uint64_t page = event.arg.pagefault.address & ~(region.page_size - 1);
      if (page >= region.base && page - region.base < region.size) {
        uffdio_copy copy{};
        copy.dst = page;
        // SAFETY: the address is for the kernel, which reads a page there.
        copy.src = reinterpret_cast<std::uintptr_t>(&saved_[region.offset + (page - region.base)]);
        copy.len = region.page_size;
        ++served_;  // before who waits for the page goes on
        EXPECT_EQ(::ioctl(fd_.get(), UFFDIO_COPY, &copy), 0);
      }
    }
  }

  UniqueFd socket_;
  UniqueFd fd_;
  std::string text_;
  std::vector<Region> regions_;
  Bytes saved_ = saved_memory();
  std::atomic<bool> stop_ = false;
  std::atomic<int> served_ = 0;
  std::atomic<int> removed_ = 0;
  std::thread thread_;
};

class Served : public ::testing::TestWithParam<Backing> {};
INSTANTIATE_TEST_SUITE_P(Userfault, Served, ::testing::Values(Backing::kAnonymous, Backing::kMemfd));

TEST_P(Served, a_guest_has_the_pages_that_a_handler_brings) {
  const auto userfault = Userfault::open();
  if (!userfault) {
    GTEST_SKIP() << userfault.error().message();
  }
  GuestMemory memory = GuestMemory::create(two_ranges(), GetParam()).value();
  auto [ours, theirs] = socket_pair();
  Handler handler(std::move(theirs));
  ASSERT_TRUE(userfault->watch(memory));
  const auto sent = userfault->hand_over(ours, memory);
  ASSERT_TRUE(sent) << sent.error().message();
  handler.receive();
  ASSERT_EQ(handler.regions().size(), 2U);
  EXPECT_EQ(handler.text(), describe_regions(memory));
  handler.serve();

  const Bytes saved = saved_memory();
  const auto part = [&saved](std::uint64_t offset, std::uint64_t size) {
    return Bytes(saved.begin() + static_cast<std::ptrdiff_t>(offset),
                 saved.begin() + static_cast<std::ptrdiff_t>(offset + size));
  };
  Bytes seen(3 * kPage);
  ASSERT_TRUE(memory.read(GuestAddress((1ULL << 32) + 5 * kPage + 100), seen));
  EXPECT_EQ(seen, part(65 * kPage + 100, 3 * kPage));
  EXPECT_EQ(handler.served(), 4);
  ASSERT_TRUE(memory.write(GuestAddress(7 * kPage), Bytes(1, std::byte{0xee})));
  // Faults that the kernel has on our behalf, as it has them on a guest's: all that is still missing.
  const UniqueFd file(::memfd_create("memory_file", MFD_CLOEXEC));
  const PageMap pages = PageMap::open().value();
  const auto written =
      write_full(memory, {file, "memory file"}, {.pages = &pages, .served_by_handler = true});
  ASSERT_TRUE(written) << written.error().message();
  Bytes expected = saved;
  expected[7 * kPage] = std::byte{0xee};
  Bytes content(expected.size());
  ASSERT_EQ(read_at(file, 0, {content.data(), content.size()}, "file").value(), content.size());
  EXPECT_EQ(content, expected);
  EXPECT_EQ(handler.served(), 100);
}

TEST(Userfault, pages_given_back_are_told_to_the_handler) {
  const auto userfault = Userfault::open();
  if (!userfault) {
    GTEST_SKIP() << userfault.error().message();
  }
  const GuestMemory memory = GuestMemory::create(two_ranges(), Backing::kAnonymous).value();
  auto [ours, theirs] = socket_pair();
  Handler handler(std::move(theirs));
  ASSERT_TRUE(userfault->watch(memory));
  ASSERT_TRUE(userfault->hand_over(ours, memory));
  handler.receive();
  handler.serve();
  ASSERT_TRUE(memory.read_object<char>(GuestAddress(0)));
  ASSERT_EQ(::madvise(memory.regions()[0].host, kPage, MADV_DONTNEED), 0);
  handler.stop();
  EXPECT_EQ(handler.removed(), 1);
}

TEST(Userfault, regions_are_told_in_the_dialects_words) {
  const GuestMemory memory = GuestMemory::create(two_ranges(), Backing::kAnonymous).value();
  const auto at = [&memory](std::size_t region) {
    // SAFETY: the number alone.
    return std::to_string(reinterpret_cast<std::uintptr_t>(memory.regions()[region].host));
  };
  EXPECT_EQ(describe_regions(memory),
            "[{\"base_host_virt_addr\":" + at(0) +
                ",\"size\":245760,\"offset\":0,\"page_size\":4096,\"page_size_kib\":4096},"
                "{\"base_host_virt_addr\":" +
                at(1) + ",\"size\":163840,\"offset\":245760,\"page_size\":4096,\"page_size_kib\":4096}]");
}

TEST(Userfault, what_cannot_be_handed_over_is_told) {
  const auto userfault = Userfault::open();
  if (!userfault) {
    GTEST_SKIP() << userfault.error().message();
  }
  const GuestMemory memory = GuestMemory::create(two_ranges(), Backing::kAnonymous).value();
  auto [ours, theirs] = socket_pair();
  theirs.reset();
  const auto gone = userfault->hand_over(ours, memory);
  ASSERT_FALSE(gone);
  EXPECT_EQ(gone.error().os_errno(), EPIPE);
  EXPECT_THAT(gone.error().message(), HasSubstr("hand guest memory to the page fault handler: "));
  EXPECT_EQ(userfault->hand_over(UniqueFd(), memory).error().os_errno(), EBADF);
  UniqueFd file(::memfd_create("memory_file", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(file.get(), 100 * kPage), 0);
  const GuestMemory mapped =
      load_memory_file(two_ranges(), Backing::kAnonymous, std::move(file), "memory file").value();
  EXPECT_EQ(userfault->watch(mapped).error().code(), ErrorCode::kUnsupported);
  ASSERT_TRUE(userfault->watch(memory));
  const auto other = Userfault::open().value();
  EXPECT_EQ(other.watch(memory).error().code(), ErrorCode::kBusy);  // one handler
}

TEST(Userfault, a_host_that_has_none_says_what_is_missing) {
  std::thread([] {
    testing::refuse_call(SYS_openat, 1, 0, EACCES);
    testing::refuse_call(SYS_userfaultfd, 0, 0, EPERM);
    const auto none = Userfault::open();
    ASSERT_FALSE(none);
    EXPECT_EQ(none.error().code(), ErrorCode::kPermission);
    EXPECT_THAT(none.error().message(), HasSubstr("vm.unprivileged_userfaultfd is 0"));
  }).join();
  std::thread([] {
    testing::refuse_call(SYS_openat, 1, 0, ENOENT);
    testing::refuse_call(SYS_userfaultfd, 0, 0, ENOSYS);
    EXPECT_EQ(Userfault::open().error().code(), ErrorCode::kUnsupported);
  }).join();
  testing::where_refused(SYS_ioctl, EINVAL, [] {
    const auto old = Userfault::open();
    ASSERT_FALSE(old);
    EXPECT_TRUE(old.error().code() == ErrorCode::kUnsupported ||
                old.error().code() == ErrorCode::kPermission);
  });
}

}  // namespace
}  // namespace mayfly
