// How often the program has allocated: for tests that a hot path does not.
#pragma once

#include <cstddef>

namespace mayfly::testing {

// Calls of operator new so far, on all threads. Counted where allocation_count.cc is linked in.
std::size_t allocation_count();

}  // namespace mayfly::testing
