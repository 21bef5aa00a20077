// bzImages: the input is the file from the setup header at 0x1f1 on; the boot sector before it is zero.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "fuzz/kernel_loader_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::size_t kHeaderStart = 0x1f1;
  std::vector<std::uint8_t> file(kHeaderStart);
  file.insert(file.end(), data, data + size);
  mayfly::testing::fuzz_kernel_loader(file.data(), file.size());
  return 0;
}
