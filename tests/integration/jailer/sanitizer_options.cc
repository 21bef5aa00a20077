// The sanitizers' options of a monitor in a jail: they look for those of the environment in /proc, which is
// not there; so are leaks, and the names of what is on a stack.
extern "C" const char* __asan_default_options();  // NOLINT(bugprone-reserved-identifier): the sanitizer's own

extern "C" const char*
__asan_default_options() {  // NOLINT(bugprone-reserved-identifier): the sanitizer's own
  return "detect_leaks=0:symbolize=0:detect_stack_use_after_return=1:strict_string_checks=1";
}
