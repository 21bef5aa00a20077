// Runs a fuzz target over every file of its seed corpus: replay <directory>. Fails on an empty corpus.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s CORPUS_DIRECTORY\n", argv[0]);
    return 2;
  }
  std::error_code error;
  std::size_t count = 0;
  for (const auto& file : std::filesystem::directory_iterator(argv[1], error)) {
    std::ifstream stream(file.path(), std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
    const std::vector<std::uint8_t> input(bytes.begin(), bytes.end());
    LLVMFuzzerTestOneInput(input.data(), input.size());
    ++count;
  }
  if (error || count == 0) {
    std::fprintf(stderr, "%s: no corpus to replay\n", argv[1]);
    return 1;
  }
  std::printf("%zu inputs replayed\n", count);
  return 0;
}
