// ELF kernels: the input is the file.
#include "fuzz/kernel_loader_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  mayfly::testing::fuzz_kernel_loader(data, size);
  return 0;
}
