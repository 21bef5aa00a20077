// The split virtqueue under any sequence of a driver's and a device's steps, beside its model.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "../support/queue_exerciser.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  mayfly::testing::QueueExerciser exerciser;
  if (const auto difference = exerciser.run({data, size})) {
    std::fprintf(stderr, "%s\n", difference->c_str());
    std::abort();
  }
  return 0;
}
