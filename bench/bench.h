// What the benchmarks in C++ share: the way out where they cannot measure, their arguments, medians.
#pragma once

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/text.h"

namespace mayfly::bench {

constexpr std::uint64_t kMiB = 1ULL << 20;

[[noreturn]] inline void give_up(const std::string& why) {
  std::fprintf(stderr, "%s: %s\n", program_invocation_short_name, why.c_str());
  std::exit(1);
}

template <typename T>
T must(Result<T> result) {
  if (!result) {
    give_up(result.error().message());
  }
  if constexpr (!std::is_void_v<T>) {
    return std::move(*result);
  }
}

// The argument at `index`, or `otherwise` where it is left out or no number.
inline std::uint64_t number_at(const std::vector<std::string>& words, std::size_t index,
                               std::uint64_t otherwise) {
  return words.size() > index ? parse_integer<std::uint64_t>(words[index]).value_or(otherwise) : otherwise;
}

// Of at least one value.
inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// In the unit of `Period`: std::milli, std::micro.
template <typename Period>
double since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, Period>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace mayfly::bench
