/*
 * What bench/peers_host.c and bench/prefetch_host.c have in common: a monitor as a child of theirs, and what
 * its process has taken so far.
 */
#ifndef MAYFLY_BENCH_MONITOR_PROCESS_H
#define MAYFLY_BENCH_MONITOR_PROCESS_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static char said[4096];  // the last that a guest or a monitor said, for whoever reads of a failure

static void die(const char* what) {
  printf("FAILED: %s: %s\nit was said last:\n%s\n", what, strerror(errno), said);
  exit(1);
}

// Of at most `size` - 1 bytes; -1 and "" where there is no such file.
static int read_text(const char* path, char* text, size_t size) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t got = fd < 0 ? -1 : read(fd, text, size - 1);
  if (fd >= 0) close(fd);
  text[got < 0 ? 0 : got] = 0;
  return got < 0 ? -1 : 0;
}

// *input and *output are this side's ends of its streams; a null `input` is an empty one.
static pid_t start_monitor(char** command, int* input, int* output) {
  int in[2] = {-1, -1}, out[2];
  if ((input && pipe2(in, O_CLOEXEC) != 0) || pipe2(out, O_CLOEXEC) != 0) die("pipe");
  fflush(stdout);
  pid_t pid = fork();
  if (pid < 0) die("fork");
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(input ? in[0] : open("/dev/null", O_RDONLY), 0);
    dup2(out[1], 1);
    dup2(out[1], 2);
    execv(command[0], command);
    dprintf(2, "cannot run %s: %s\n", command[0], strerror(errno));
    _exit(127);
  }
  close(out[1]);
  *output = out[0];
  if (input) {
    close(in[0]);
    *input = in[1];
  }
  return pid;
}

static void end_monitor(pid_t pid) {
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
}

// The next byte of its output, for which it has `patience_ms`; 0 where none comes.
static int next_byte(int output, char* byte, int patience_ms) {
  struct pollfd wait = {.fd = output, .events = POLLIN};
  return poll(&wait, 1, patience_ms) > 0 && read(output, byte, 1) == 1;
}

struct usage {
  uint64_t cpu_ns;        // user and system time of all threads, ended ones too, less the time in the guest
  uint64_t user_ns;       // what of it was not the kernel's
  uint64_t minor, major;  // page faults
};

static struct usage usage_of(pid_t pid) {
  struct usage usage = {0};
  char path[64], text[4096];
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  if (read_text(path, text, sizeof text) != 0) die(path);
  // proc(5): fields 10 and 12 are minor and major faults, 14 and 15 utime and stime, 43 is guest_time, which
  // utime contains. Field 2 may hold blanks.
  const uint64_t tick_ns = 1000000000u / (uint64_t)sysconf(_SC_CLK_TCK);
  char* at = strrchr(text, ')');
  for (int field = 2; at && field <= 43; field++) {
    uint64_t value = strtoull(at + 1, NULL, 10);
    if (field == 10) usage.minor = value;
    if (field == 12) usage.major = value;
    if (field == 14 || field == 15) usage.cpu_ns += value * tick_ns;
    if (field == 14) usage.user_ns += value * tick_ns;
    if (field == 43) usage.cpu_ns -= value * tick_ns, usage.user_ns -= value * tick_ns;
    at = strchr(at + 1, ' ');
  }
  return usage;
}

#endif
