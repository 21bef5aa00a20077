// Prints every call that the control API's router knows, one a line: for the test of the API's description.
#include <cstdio>

#include "api/router.h"

int main() {
  for (const auto& call : mayfly::api::Router::calls()) {
    std::puts(call.c_str());
  }
}
