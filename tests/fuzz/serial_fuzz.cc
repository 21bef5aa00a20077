// The 16550A under any sequence of accesses, input and snapshots, beside its model.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "../support/serial_exerciser.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  mayfly::testing::SerialExerciser exerciser;
  if (const auto difference = exerciser.run({data, size})) {
    std::fprintf(stderr, "%s\n", difference->c_str());
    std::abort();
  }
  return 0;
}
