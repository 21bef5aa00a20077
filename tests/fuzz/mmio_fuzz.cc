// The virtio-mmio transport under any sequence of register accesses and device events, beside its model.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "../support/mmio_exerciser.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  mayfly::testing::MmioExerciser exerciser;
  if (const auto difference = exerciser.run({data, size})) {
    std::fprintf(stderr, "%s\n", difference->c_str());
    std::abort();
  }
  return 0;
}
