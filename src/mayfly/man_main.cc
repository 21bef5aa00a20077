// Prints the manual page: a program of the build's, not one that ships.
#include <cstdio>
#include <string>

#include "mayfly/man_page.h"
#include "mayfly/program_text.h"
#include "mayfly/version.h"

int main() {
  const std::string page = mayfly::man_page(mayfly::describe_program(), mayfly::monitor_version());
  return std::fputs(page.c_str(), stdout) >= 0 && std::fflush(stdout) == 0 ? 0 : 1;
}
