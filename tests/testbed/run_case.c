/*
 * Runs one case of the testbed: a command, a script of what to do when its output says something, and a time
 * limit.
 *
 *   run_case DIRECTORY
 *
 * DIRECTORY/case holds one instruction a line; texts are in hex, so that any byte can stand in them:
 *   arg HEX              the command's next word
 *   timeout MS           after which the command's whole process group is killed
 *   terminal             stdin, stdout and stderr are a terminal (a pty), not pipes
 *   on HEX signal N      steps are taken in turn, each once its text has appeared in the output after the one
 *   on HEX write HEX     before (an empty text: at once): send a signal, write to stdin, close stdin, or
 *   on HEX close         just note the time
 *   on HEX note
 * The command runs with DIRECTORY as its working directory. Written there: stdout, stderr, and result:
 *   exit N | signal N | timeout
 *   ns N                 from just before exec to the end
 *   step I N             when step I was taken, in ns after the start
 *   peak_kib N           the largest resident size
 *   terminal restored | terminal changed
 *
 * Static and small, because the same program runs on the host and inside the testbed's virtual machine.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { kMaxArgs = 64, kMaxSteps = 64, kLine = 65536 };
static const size_t kMaxOutput = 32u << 20; /* a guest that never stops talking must not fill the disk */

enum action { kSignal, kWrite, kClose, kNote };
struct step {
  char* text;
  size_t text_size;
  enum action action;
  int signal_number;
  char* data;
  size_t data_size;
  int64_t taken_ns;
};

static char* args[kMaxArgs + 1];
static size_t arg_count;
static struct step steps[kMaxSteps];
static size_t step_count;
static int64_t timeout_ns = INT64_C(60) * 1000000000;
static bool on_terminal;

struct output {
  int from, to;
  char* data;
  size_t size, searched;
};

static void die(const char* what) {
  fprintf(stderr, "run_case: %s: %s\n", what, strerror(errno));
  exit(125);
}

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static char* from_hex(const char* hex, size_t* size) {
  size_t length = strlen(hex) / 2;
  char* bytes = calloc(1, length + 1);
  if (!bytes) die("memory");
  for (size_t i = 0; i < length; i++) {
    unsigned byte = 0;
    if (sscanf(hex + 2 * i, "%2x", &byte) != 1) die("bad hex in case");
    bytes[i] = (char)byte;
  }
  *size = length;
  return bytes;
}

/* A step's text may be empty, which sscanf cannot read: "-" stands for it. */
static void parse_step(const char* line) {
  static char text[kLine], action[kLine], value[kLine];
  value[0] = 0;
  if (step_count == kMaxSteps || sscanf(line, "on %65535s %65535s %65535s", text, action, value) < 2)
    die("bad step in case");
  struct step* step = &steps[step_count++];
  step->taken_ns = -1;
  step->text = from_hex(strcmp(text, "-") ? text : "", &step->text_size);
  if (!strcmp(action, "signal")) {
    step->action = kSignal;
    step->signal_number = atoi(value);
  } else if (!strcmp(action, "write")) {
    step->action = kWrite;
    step->data = from_hex(value, &step->data_size);
  } else {
    step->action = !strcmp(action, "close") ? kClose : kNote;
  }
}

static void parse_case(void) {
  static char line[kLine];
  FILE* file = fopen("case", "re");
  if (!file) die("case");
  while (fgets(line, sizeof line, file)) {
    size_t size;
    line[strcspn(line, "\n")] = 0;
    if (!strncmp(line, "arg ", 4) && arg_count < kMaxArgs)
      args[arg_count++] = from_hex(line + 4, &size);
    else if (!strncmp(line, "timeout ", 8))
      timeout_ns = atoll(line + 8) * 1000000;
    else if (!strcmp(line, "terminal"))
      on_terminal = true;
    else if (!strncmp(line, "on ", 3))
      parse_step(line);
    else
      die("unknown line in case");
  }
  fclose(file);
  if (arg_count == 0) die("no command in case");
}

static int create(const char* name) {
  int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) die(name);
  return fd;
}

static void write_all(int fd, const char* data, size_t size) {
  while (size > 0) {
    ssize_t done = write(fd, data, size);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return; /* the other side is gone: how the command ends tells more than this */
    data += done;
    size -= (size_t)done;
  }
}

/* Takes what is there to read; false at the end of the stream (EIO is a terminal's way to say it). */
static bool take(struct output* out) {
  static char chunk[65536];
  ssize_t got = read(out->from, chunk, sizeof chunk);
  if (got < 0 && (errno == EINTR || errno == EAGAIN)) return true;
  if (got <= 0) return false;
  if (out->size + (size_t)got > kMaxOutput) return true;
  out->data = realloc(out->data, out->size + (size_t)got);
  if (!out->data) die("memory");
  memcpy(out->data + out->size, chunk, (size_t)got);
  out->size += (size_t)got;
  write_all(out->to, chunk, (size_t)got);
  return true;
}

/*
 * Takes every step whose text has appeared, looked for in stdout, then in stderr. `child` is 0 once it has
 * ended: there is then nobody to signal.
 */
static size_t take_steps(size_t next, struct output outs[2], pid_t child, int* input, int64_t start) {
  while (next < step_count) {
    struct step* step = &steps[next];
    struct output* where = NULL;
    char* at = NULL;
    for (int i = 0; i < 2 && !at && step->text_size > 0; i++) {
      where = &outs[i];
      if (where->size > where->searched)
        at =
            memmem(where->data + where->searched, where->size - where->searched, step->text, step->text_size);
    }
    if (step->text_size > 0 && !at) break;
    if (at) where->searched = (size_t)(at - where->data) + step->text_size;
    step->taken_ns = now_ns() - start;
    if (step->action == kSignal && child > 0)
      kill(child, step->signal_number);
    else if (step->action == kWrite)
      write_all(*input, step->data, step->data_size);
    else if (step->action == kClose && *input >= 0) {
      close(*input);
      *input = -1;
    }
    next++;
  }
  return next;
}

static bool needs_input(void) {
  for (size_t i = 0; i < step_count; i++)
    if (steps[i].action == kWrite || steps[i].action == kClose) return true;
  return false;
}

int main(int argc, char** argv) {
  if (argc != 2 || chdir(argv[1]) != 0) {
    fprintf(stderr, "usage: run_case DIRECTORY\n");
    return 125;
  }
  parse_case();
  signal(SIGPIPE, SIG_IGN);

  int in[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1}, started[2];
  int master = -1, slave = -1;
  struct termios before, after;
  if (pipe2(started, O_CLOEXEC)) die("pipe");
  if (on_terminal) {
    master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (master < 0 || grantpt(master) || unlockpt(master)) die("pty");
    slave = open(ptsname(master), O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (slave < 0 || tcgetattr(slave, &before)) die("pty");
  } else {
    if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC)) die("pipe");
    if (needs_input() ? pipe2(in, O_CLOEXEC) : (in[0] = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0)
      die("stdin");
  }

  pid_t child = fork();
  if (child < 0) die("fork");
  if (child == 0) {
    setsid(); /* a process group of its own, so that all of it can be killed */
    dup2(on_terminal ? slave : in[0], 0);
    dup2(on_terminal ? slave : out[1], 1);
    dup2(on_terminal ? slave : err[1], 2);
    if (on_terminal) ioctl(0, TIOCSCTTY, 0);
    signal(SIGPIPE, SIG_DFL);
    int64_t stamp = now_ns();
    write_all(started[1], (const char*)&stamp, sizeof stamp);
    execv(args[0], args);
    fprintf(stderr, "run_case: cannot run %s: %s\n", args[0], strerror(errno));
    _exit(127);
  }
  close(started[1]);
  int64_t start = now_ns();
  if (read(started[0], &start, sizeof start) != sizeof start) die("start");
  if (!on_terminal) {
    close(in[0]);
    close(out[1]);
    close(err[1]);
  }

  int watch = (int)syscall(SYS_pidfd_open, child, 0);
  if (watch < 0) die("pidfd");
  int input = on_terminal ? master : in[1];
  struct output outs[2] = {{.from = on_terminal ? master : out[0], .to = create("stdout")},
                           {.from = on_terminal ? -1 : err[0], .to = create("stderr")}};
  size_t next = 0;
  int status = 0;
  struct rusage usage = {0};
  bool ended = false, timed_out = false, open_out = true, open_err = !on_terminal;
  int64_t end = start;
  /* After the command's end only what it wrote is drained: a grandchild that holds the pipe is not waited
   * for. */
  for (;;) {
    int64_t left = start + timeout_ns - now_ns();
    if (!ended && left <= 0 && !timed_out) {
      timed_out = true;
      kill(-child, SIGKILL);
    }
    /* A negative descriptor is skipped by poll: a stream that has ended, or was never there. */
    struct pollfd polled[3] = {{open_out ? outs[0].from : -1, POLLIN, 0},
                               {open_err ? outs[1].from : -1, POLLIN, 0},
                               {ended ? -1 : watch, POLLIN, 0}};
    int ready = poll(polled, 3, ended ? 0 : left > 0 ? (int)(left / 1000000) + 1 : -1);
    if (ready == 0 && ended) break;
    if (polled[2].revents && wait4(child, &status, 0, &usage) == child) {
      ended = true;
      end = now_ns();
    }
    if (polled[0].revents) open_out = take(&outs[0]);
    if (polled[1].revents) open_err = take(&outs[1]);
    next = take_steps(next, outs, ended ? 0 : child, &input, start);
  }
  kill(-child, SIGKILL);

  FILE* result = fopen("result", "we");
  if (!result) die("result");
  if (timed_out)
    fprintf(result, "timeout\n");
  else if (WIFSIGNALED(status))
    fprintf(result, "signal %d\n", WTERMSIG(status));
  else
    fprintf(result, "exit %d\n", WEXITSTATUS(status));
  fprintf(result, "ns %lld\npeak_kib %ld\n", (long long)(end - start), usage.ru_maxrss);
  for (size_t i = 0; i < step_count && steps[i].taken_ns >= 0; i++)
    fprintf(result, "step %zu %lld\n", i, (long long)steps[i].taken_ns);
  if (on_terminal) {
    bool same = tcgetattr(slave, &after) == 0 && before.c_iflag == after.c_iflag &&
                before.c_oflag == after.c_oflag && before.c_cflag == after.c_cflag &&
                before.c_lflag == after.c_lflag && !memcmp(before.c_cc, after.c_cc, sizeof before.c_cc);
    fprintf(result, "terminal %s\n", same ? "restored" : "changed");
  }
  return fclose(result) ? 125 : 0;
}
