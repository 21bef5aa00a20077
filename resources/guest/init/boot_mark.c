/*
 * The guest's first process for the boot figure: says HELLO in the kernel's log as the first thing it does
 * and reboots. Level 0, so that the console shows it in spite of `quiet`.
 */
#include <fcntl.h>
#include <sys/reboot.h>
#include <unistd.h>

int main(void) {
  static const char mark[] = "<0>HELLO\n";
  int log = open("/dev/kmsg", O_WRONLY);
  if (log < 0 || write(log, mark, sizeof mark - 1) < 0) return 1;
  return reboot(RB_AUTOBOOT);
}
