#include "seccomp/compiler/compile.h"

#include <seccomp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "base/file.h"
#include "base/unique_fd.h"
#include "seccomp/format.h"

namespace mayfly::seccomp {
namespace {

// More than any processor has, by far.
constexpr int kMaxSyscall = 1024;

void append(std::string& file, std::uint32_t value) {
  std::array<char, sizeof(value)> bytes{};
  std::memcpy(bytes.data(), &value, sizeof(value));
  file.append(bytes.data(), bytes.size());
}

// libseccomp answers with a negative errno.
Result<void> checked(int result, const std::string& doing) {
  return result < 0 ? Result<void>(fail_errno(-result, doing)) : Result<void>();
}

Result<void> allow(scmp_filter_ctx context, const Rule& rule) {
  std::vector<scmp_arg_cmp> tests;
  for (const ArgumentTest& test : rule.arguments) {
    tests.push_back(
        {.arg = test.index, .op = SCMP_CMP_MASKED_EQ, .datum_a = test.mask, .datum_b = test.value});
  }
  return checked(::seccomp_rule_add_exact_array(context, SCMP_ACT_ALLOW, rule.number,
                                                static_cast<unsigned>(tests.size()), tests.data()),
                 "add the rule for system call " + std::to_string(rule.number));
}

// The program as the kernel takes it.
Result<std::string> to_program(const Policy& policy) {
  const std::unique_ptr<void, void (*)(scmp_filter_ctx)> context(::seccomp_init(SCMP_ACT_TRAP),
                                                                 ::seccomp_release);
  if (!context) {
    return fail(ErrorCode::kInternal, "libseccomp makes no filter");
  }
  // Another architecture's calls are numbered otherwise: no handler could say which one it was.
  MAYFLY_TRY(checked(::seccomp_attr_set(context.get(), SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS),
                     "end the process at other architectures' calls"));
  // A binary search for the call's number (2), in place of one comparison after another. The kernel goes
  // through the program once for every call that there is when it takes it, which is most of what a filter
  // costs.
  MAYFLY_TRY(checked(::seccomp_attr_set(context.get(), SCMP_FLTATR_CTL_OPTIMIZE, 2), "order the rules"));
  for (const Rule& rule : policy.rules) {
    MAYFLY_TRY(allow(context.get(), rule));
  }
  const UniqueFd memory(::memfd_create("seccomp", MFD_CLOEXEC));
  if (!memory) {
    return fail_errno(errno, "make a file in memory");
  }
  MAYFLY_TRY(checked(::seccomp_export_bpf(context.get(), memory.get()), "export the filter"));
  struct stat status {};
  if (::fstat(memory.get(), &status) != 0) {
    return fail_errno(errno, "look at the filter");
  }
  std::string program(static_cast<std::size_t>(status.st_size), '\0');
  MAYFLY_TRY_ASSIGN(
      const std::size_t size,
      read_at(memory, 0, {.iov_base = program.data(), .iov_len = program.size()}, "the filter"));
  program.resize(size);
  return program;
}

}  // namespace

Result<std::string> compile(std::span<const Policy> policies) {
  std::array<std::string, kFilteredThreads.size()> programs;
  for (const Policy& policy : policies) {
    std::string& program = programs.at(static_cast<std::size_t>(policy.thread));
    if (!program.empty()) {
      return fail(ErrorCode::kInvalidArgument,
                  std::string("there are two policies for thread ") + name_of(policy.thread));
    }
    MAYFLY_TRY_ASSIGN(program, to_program(policy));
  }
  std::string file(seccomp_format::kMagic);
  append(file, seccomp_format::kVersion);
  append(file, seccomp_format::kArchitecture);
  for (const FilteredThread thread : kFilteredThreads) {
    const std::string& program = programs.at(static_cast<std::size_t>(thread));
    if (program.empty() && !may_lack(thread)) {
      return fail(ErrorCode::kInvalidArgument,
                  std::string("there is no policy for thread ") + name_of(thread));
    }
    append(file, static_cast<std::uint32_t>(program.size() / sizeof(sock_filter)));
    file.append(program);
  }
  return file;
}

std::string syscall_names() {
  std::string names;
  std::size_t end_of_last = 0;
  for (int number = 0; number < kMaxSyscall; ++number) {
    const std::unique_ptr<char, void (*)(void*)> name(
        ::seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, number), std::free);
    if (name) {
      names.append(name.get());
      end_of_last = names.size() + 1;
    }
    names.push_back('\n');
  }
  names.resize(end_of_last);
  return names;
}

}  // namespace mayfly::seccomp
