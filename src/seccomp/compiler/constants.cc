#include "seccomp/compiler/constants.h"

#include <asm/termbits.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <linux/if_tun.h>
#include <linux/io_uring.h>
#include <linux/kvm.h>
#include <linux/memfd.h>
#include <linux/prctl.h>
#include <linux/userfaultfd.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <array>
#include <csignal>

#include "seccomp/format.h"

namespace mayfly::seccomp {
namespace {

struct Constant {
  std::string_view name;
  std::uint64_t value;
};

// NOLINTNEXTLINE(cppcoreguidelines-macro-usage): a name and its value cannot be had from one word otherwise
#define MAYFLY_CONSTANT(name)                 \
  Constant {                                  \
#name, static_cast < std::uint32_t>(name) \
  }

using XsaveArea = std::array<std::uint32_t, 1024>;
constexpr std::uint64_t kGetXsave = _IOR(KVMIO, 0xa4, XsaveArea);
constexpr std::uint64_t kGetXsave2 = _IOR(KVMIO, 0xcf, XsaveArea);

const auto kConstants = std::to_array<Constant>({
    {"OWN_PROCESS", seccomp_format::kOwnProcess},
    // ioctl requests
    MAYFLY_CONSTANT(BLKGETSIZE64),
    MAYFLY_CONSTANT(KVM_GET_CLOCK),
    MAYFLY_CONSTANT(KVM_GET_DEBUGREGS),
    MAYFLY_CONSTANT(KVM_GET_DIRTY_LOG),
    MAYFLY_CONSTANT(KVM_GET_IRQCHIP),
    MAYFLY_CONSTANT(KVM_GET_LAPIC),
    MAYFLY_CONSTANT(KVM_GET_MP_STATE),
    MAYFLY_CONSTANT(KVM_GET_PIT2),
    MAYFLY_CONSTANT(KVM_GET_REGS),
    MAYFLY_CONSTANT(KVM_GET_SREGS),
    MAYFLY_CONSTANT(KVM_GET_TSC_KHZ),
    MAYFLY_CONSTANT(KVM_GET_VCPU_EVENTS),
    MAYFLY_CONSTANT(KVM_GET_XCRS),
    // What they are about ends with an array without a size, which for C++ takes a byte.
    {"KVM_GET_MSRS", _IOWR(KVMIO, 0x88, std::uint64_t)},
    {"KVM_GET_XSAVE", kGetXsave},
    {"KVM_GET_XSAVE2", kGetXsave2},
    MAYFLY_CONSTANT(KVM_IOEVENTFD),
    MAYFLY_CONSTANT(KVM_IRQFD),
    MAYFLY_CONSTANT(KVM_IRQ_LINE),
    MAYFLY_CONSTANT(KVM_KVMCLOCK_CTRL),
    MAYFLY_CONSTANT(KVM_RUN),
    MAYFLY_CONSTANT(KVM_SET_CLOCK),
    {"PAGEMAP_SCAN", 0xc0606610},  // in the headers since Linux 6.7
    MAYFLY_CONSTANT(TCGETS),
    MAYFLY_CONSTANT(TCSETS),
    MAYFLY_CONSTANT(TIOCGPGRP),
    MAYFLY_CONSTANT(TUNSETIFF),
    MAYFLY_CONSTANT(TUNSETOFFLOAD),
    MAYFLY_CONSTANT(TUNSETQUEUE),
    MAYFLY_CONSTANT(TUNSETVNETHDRSZ),
    MAYFLY_CONSTANT(UFFDIO_UNREGISTER),
    MAYFLY_CONSTANT(UFFDIO_WAKE),
    // memory
    MAYFLY_CONSTANT(MADV_DONTDUMP),
    MAYFLY_CONSTANT(MADV_DONTNEED),
    MAYFLY_CONSTANT(MADV_FREE),
    MAYFLY_CONSTANT(MADV_POPULATE_READ),
    MAYFLY_CONSTANT(MADV_POPULATE_WRITE),
    MAYFLY_CONSTANT(MAP_ANONYMOUS),
    MAYFLY_CONSTANT(MAP_FIXED),
    MAYFLY_CONSTANT(MAP_NORESERVE),
    MAYFLY_CONSTANT(MAP_PRIVATE),
    MAYFLY_CONSTANT(MAP_SHARED),
    MAYFLY_CONSTANT(MAP_STACK),
    MAYFLY_CONSTANT(PROT_EXEC),
    MAYFLY_CONSTANT(PROT_NONE),
    MAYFLY_CONSTANT(PROT_READ),
    MAYFLY_CONSTANT(PROT_WRITE),
    // files
    MAYFLY_CONSTANT(AT_EMPTY_PATH),
    MAYFLY_CONSTANT(AT_FDCWD),
    MAYFLY_CONSTANT(AT_SYMLINK_FOLLOW),
    MAYFLY_CONSTANT(AT_SYMLINK_NOFOLLOW),
    MAYFLY_CONSTANT(FALLOC_FL_KEEP_SIZE),
    MAYFLY_CONSTANT(FALLOC_FL_PUNCH_HOLE),
    MAYFLY_CONSTANT(FALLOC_FL_ZERO_RANGE),
    MAYFLY_CONSTANT(FD_CLOEXEC),
    MAYFLY_CONSTANT(F_DUPFD_CLOEXEC),
    MAYFLY_CONSTANT(F_GETFD),
    MAYFLY_CONSTANT(F_GETFL),
    MAYFLY_CONSTANT(F_OFD_SETLK),
    MAYFLY_CONSTANT(F_SETFD),
    MAYFLY_CONSTANT(F_SETFL),
    MAYFLY_CONSTANT(LOCK_EX),
    MAYFLY_CONSTANT(LOCK_NB),
    MAYFLY_CONSTANT(LOCK_SH),
    MAYFLY_CONSTANT(LOCK_UN),
    MAYFLY_CONSTANT(O_ACCMODE),
    MAYFLY_CONSTANT(O_APPEND),
    MAYFLY_CONSTANT(O_CLOEXEC),
    MAYFLY_CONSTANT(O_CREAT),
    MAYFLY_CONSTANT(O_DIRECTORY),
    MAYFLY_CONSTANT(O_EXCL),
    MAYFLY_CONSTANT(O_NOATIME),
    MAYFLY_CONSTANT(O_NOCTTY),
    MAYFLY_CONSTANT(O_NOFOLLOW),
    MAYFLY_CONSTANT(O_NONBLOCK),
    MAYFLY_CONSTANT(O_PATH),
    MAYFLY_CONSTANT(O_RDONLY),
    MAYFLY_CONSTANT(O_RDWR),
    MAYFLY_CONSTANT(O_TMPFILE),
    MAYFLY_CONSTANT(O_TRUNC),
    MAYFLY_CONSTANT(O_WRONLY),
    MAYFLY_CONSTANT(RWF_DSYNC),
    MAYFLY_CONSTANT(S_IRUSR),
    MAYFLY_CONSTANT(S_IWUSR),
    // sockets
    MAYFLY_CONSTANT(AF_INET),
    MAYFLY_CONSTANT(AF_UNIX),
    MAYFLY_CONSTANT(MSG_DONTWAIT),
    MAYFLY_CONSTANT(MSG_NOSIGNAL),
    MAYFLY_CONSTANT(MSG_PEEK),
    MAYFLY_CONSTANT(SHUT_RD),
    MAYFLY_CONSTANT(SHUT_WR),
    MAYFLY_CONSTANT(SOCK_CLOEXEC),
    MAYFLY_CONSTANT(SOCK_NONBLOCK),
    MAYFLY_CONSTANT(SOCK_STREAM),
    // events
    MAYFLY_CONSTANT(EPOLL_CTL_ADD),
    MAYFLY_CONSTANT(EPOLL_CTL_DEL),
    MAYFLY_CONSTANT(EPOLL_CTL_MOD),
    MAYFLY_CONSTANT(FUTEX_CLOCK_REALTIME),
    MAYFLY_CONSTANT(FUTEX_PRIVATE_FLAG),
    MAYFLY_CONSTANT(FUTEX_WAIT),
    MAYFLY_CONSTANT(FUTEX_WAIT_BITSET),
    MAYFLY_CONSTANT(FUTEX_WAKE),
    MAYFLY_CONSTANT(IORING_ENTER_GETEVENTS),
    MAYFLY_CONSTANT(IORING_REGISTER_FILES_UPDATE),
    MAYFLY_CONSTANT(TFD_TIMER_ABSTIME),
    // signals
    MAYFLY_CONSTANT(SIGABRT),
    MAYFLY_CONSTANT(SIGKILL),
    MAYFLY_CONSTANT(SIGSTOP),
    MAYFLY_CONSTANT(SIG_BLOCK),
    MAYFLY_CONSTANT(SIG_SETMASK),
    MAYFLY_CONSTANT(SIG_UNBLOCK),
    // the C library's names for the first one that is free
    {"SIGRTMIN", static_cast<std::uint64_t>(SIGRTMIN)},
});
#undef MAYFLY_CONSTANT

struct IntArguments {
  std::string_view call;
  unsigned indices;  // a bit for each that the kernel takes as an int or narrows to one
};

constexpr unsigned bits(std::initializer_list<unsigned> indices) {
  unsigned mask = 0;
  for (const unsigned index : indices) {
    mask |= 1U << index;
  }
  return mask;
}

constexpr auto kInts = std::to_array<IntArguments>({
    {"accept4", bits({0, 3})},
    {"clone", bits({})},  // its flags are 64 bits wide
    {"epoll_ctl", bits({0, 1, 2})},
    {"eventfd2", bits({0, 1})},
    {"fallocate", bits({0, 1})},
    {"fcntl", bits({0, 1})},
    {"flock", bits({0, 1})},
    {"fsync", bits({0})},
    {"ftruncate", bits({0})},
    {"futex", bits({1, 2, 5})},
    {"getrandom", bits({2})},
    {"io_uring_enter", bits({0, 1, 2, 3})},
    {"io_uring_register", bits({0, 1, 3})},
    {"ioctl", bits({0, 1})},
    {"kill", bits({0, 1})},
    {"linkat", bits({0, 2, 4})},
    {"lseek", bits({0, 2})},
    {"madvise", bits({2})},
    {"memfd_create", bits({1})},
    {"mmap", bits({4})},
    {"newfstatat", bits({0, 3})},
    {"openat", bits({0, 2, 3})},
    {"pidfd_send_signal", bits({0, 1, 3})},
    {"poll", bits({1, 2})},
    {"prctl", bits({0})},
    {"pread64", bits({0})},
    {"pwrite64", bits({0})},
    {"pwritev2", bits({5})},
    {"recvfrom", bits({0, 3})},
    {"recvmsg", bits({0, 2})},
    {"renameat", bits({0, 2})},
    {"rt_sigprocmask", bits({0})},
    {"sendmsg", bits({0, 2})},
    {"sendto", bits({0, 3})},
    {"shutdown", bits({0, 1})},
    {"socket", bits({0, 1, 2})},
    {"tgkill", bits({0, 1, 2})},
    {"timerfd_create", bits({0, 1})},
    {"timerfd_settime", bits({0, 1})},
    {"tkill", bits({0, 1})},
    {"unlinkat", bits({0, 2})},
    {"wait4", bits({0, 2})},
});

}  // namespace

std::optional<std::uint64_t> constant(std::string_view name) {
  const auto found = std::ranges::find(kConstants, name, &Constant::name);
  return found == kConstants.end() ? std::nullopt : std::optional(found->value);
}

std::uint64_t argument_bits(std::string_view call, unsigned index) {
  const auto found = std::ranges::find(kInts, call, &IntArguments::call);
  const bool is_int = found != kInts.end() && (found->indices >> index & 1U) != 0;
  return is_int ? UINT32_MAX : UINT64_MAX;
}

}  // namespace mayfly::seccomp
