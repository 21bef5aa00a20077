#include "base/thread_name.h"

#include <pthread.h>

#include <array>
#include <cstddef>

namespace mayfly {
namespace {

constexpr std::size_t kMaxName = 15;  // pthread_setname_np(3)

struct Name {
  std::array<char, kMaxName + 1> text{};
  bool known = false;
};
thread_local constinit Name t_name;

}  // namespace

void set_thread_name(std::string_view name) {
  Name fresh{.text = {}, .known = true};
  name.copy(fresh.text.data(), kMaxName);
  t_name = fresh;
  // Cannot fail for the calling thread with a name of this length.
  ::pthread_setname_np(::pthread_self(), t_name.text.data());
}

std::string_view thread_name() {
  if (!t_name.known) {
    ::pthread_getname_np(::pthread_self(), t_name.text.data(), t_name.text.size());
    t_name.known = true;
  }
  return t_name.text.data();
}

}  // namespace mayfly
