// The one place of this room where ioctl(2) is called on a KVM descriptor.
#pragma once

#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
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

// A structure of KVM's that ends in an array without a size (kvm_cpuid2, kvm_msrs, kvm_msr_list), with room
// for `capacity` elements behind the header.
template <typename Header, typename Element>
class TailedBuffer {
  static_assert(std::is_trivially_copyable_v<Header> && std::is_trivially_copyable_v<Element>);
  static_assert(sizeof(Header) % alignof(Element) == 0 && alignof(Header) >= alignof(Element));

 public:
  explicit TailedBuffer(std::size_t capacity)
      : storage_(1 + (capacity * sizeof(Element) + sizeof(Header) - 1) / sizeof(Header)),
        capacity_(capacity) {}

  Header& header() { return storage_.front(); }
  Header* get() { return storage_.data(); }

  // At most as many elements as there is room for.
  void assign(std::span<const Element> elements) {
    if (!elements.empty()) {
      std::memcpy(tail(), elements.data(), std::min(elements.size(), capacity_) * sizeof(Element));
    }
  }
  std::vector<Element> elements(std::size_t count) const {
    std::vector<Element> out(std::min(count, capacity_));
    if (!out.empty()) {
      std::memcpy(out.data(), tail(), out.size() * sizeof(Element));
    }
    return out;
  }

 private:
  void* tail() { return storage_.data() + 1; }
  const void* tail() const { return storage_.data() + 1; }

  std::vector<Header> storage_;
  std::size_t capacity_;
};

}  // namespace mayfly::kvm_detail
