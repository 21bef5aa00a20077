// The one place of this room where ioctl(2) is called on a KVM descriptor.
#pragma once

#include <linux/types.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mayfly::kvm_detail {

// Calls `request`, again where a signal cut it short (KVM_CREATE_VM does return EINTR: taking part in the
// process's memory map can be interrupted). Not for KVM_RUN, where EINTR means something. The argument is the
// integer or the pointer that the request's entry in Documentation/virt/kvm/api.rst names.
template <typename Argument>
Result<int> call(const UniqueFd& fd, unsigned long request, Argument argument, std::string_view doing) {
  int answer = 0;
  do {
    answer = ::ioctl(fd.get(), request, argument);
  } while (answer < 0 && errno == EINTR);
  if (answer < 0) {
    return fail_errno(errno, doing);
  }
  return answer;
}

// As call(), where success carries no value.
template <typename Argument>
Result<void> command(const UniqueFd& fd, unsigned long request, Argument argument, std::string_view doing) {
  MAYFLY_TRY(call(fd, request, argument, doing));
  return {};
}

// A request that fills a plain structure.
template <typename State>
Result<State> read_state(const UniqueFd& fd, unsigned long request, std::string_view doing) {
  State state{};
  MAYFLY_TRY(call(fd, request, &state, doing));
  return state;
}

// A counted array of KVM's (kvm_cpuid2, kvm_msrs): a header and, behind it, the elements. The kernel's own
// structures are not used, nor the request numbers made from their size: in C++ some versions of
// <linux/kvm.h> give the array without a size at their end a byte of its own, and the numbers come out wrong.
struct CountHeader {
  __u32 count;
  __u32 padding;
};
static_assert(sizeof(CountHeader) == 8);

template <typename Element>
class CountedArray {
  static_assert(std::is_trivially_copyable_v<Element> && alignof(Element) <= alignof(std::uint64_t));

 public:
  // Room for `capacity` elements, and a count that says so.
  explicit CountedArray(std::uint32_t capacity)
      : storage_(1 + (capacity * sizeof(Element) + sizeof(std::uint64_t) - 1) / sizeof(std::uint64_t)),
        capacity_(capacity) {
    const CountHeader header{capacity, 0};
    std::memcpy(storage_.data(), &header, sizeof header);
  }
  explicit CountedArray(std::span<const Element> elements)
      : CountedArray(static_cast<std::uint32_t>(elements.size())) {
    if (!elements.empty()) {
      std::memcpy(storage_.data() + 1, elements.data(), elements.size_bytes());
    }
  }

  // For ioctl(2).
  void* get() { return storage_.data(); }

  // As many as the kernel's count says.
  std::vector<Element> elements() const {
    CountHeader header{};
    std::memcpy(&header, storage_.data(), sizeof header);
    return first(header.count);
  }
  std::vector<Element> first(std::size_t count) const {
    std::vector<Element> out(std::min<std::size_t>(count, capacity_));
    if (!out.empty()) {
      std::memcpy(out.data(), storage_.data() + 1, out.size() * sizeof(Element));
    }
    return out;
  }

 private:
  std::vector<std::uint64_t> storage_;  // the header's eight bytes, then the elements
  std::uint32_t capacity_;
};

}  // namespace mayfly::kvm_detail
